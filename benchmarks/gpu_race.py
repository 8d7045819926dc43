"""mlx_lm's own trainer and ours on a GPU (Metal or CUDA), on models of real shapes with random weights.

    python benchmarks/gpu_race.py [--shape smollm2-135m llama-3.1-8b:4] [--batch 4 16] [--steps 40] [--repeats 2]

Speed and memory do not depend on the numbers in the weights, so nothing is fetched: a shape is a ``config.json``, in
bf16, or in 4 bits where the name ends in ``:4``. Rows are random tokens with the lengths of instruction data (mean 200,
95 % below 450, longest 660; three quarters learned), the same for both. Each measurement is a fresh process, sides
alternate. Lines tell learned tokens a second, padding, peak memory, the plan against what is needed, and the share of
the card's own bf16 matrix rate that ``2 N (1 + f)`` operations a token come to (f: share of adapted blocks; MACOS.md
section 2.1).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).resolve().parents[1]
SHAPES: dict[str, dict[str, object]] = {
    "smollm2-135m": {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "max_position_embeddings": 8192,
    },
    "llama-3.1-8b": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "max_position_embeddings": 131072,
    },
}
SIDES = ("stock", "ours", "stock-recomputing", "ours-recomputing")
WARM_UP = 12  # steps that are not counted: most shapes are compiled in them
NUM_ROWS = 512
TARGET_SHARE = 0.75


def make_rows(vocab_size: int) -> list[Any]:
    """Rows of random tokens; lengths are log-normal like those of Alpaca, a quarter of each is its prompt."""
    import numpy as np

    from mlx_finetune.dataset.tokens import Tokens

    rng = np.random.default_rng(5)
    lengths = np.clip(np.exp(rng.normal(np.log(160), 0.65, NUM_ROWS)), 24, 660).astype(int)
    rows: list[Any] = []
    for line, length in enumerate(lengths.tolist(), start=1):
        mask = np.arange(length) >= length // 4
        rows.append(Tokens(rng.integers(3, vocab_size, length).astype(np.int32), mask, "rows", line))
    return rows


def load(name: str) -> tuple[Any, dict[str, object], int | None]:
    """A model of random weights, its config, and the bits of its matrices (None: bf16)."""
    import mlx.core as mx
    import mlx.nn as nn
    from mlx_lm.models import llama

    shape, _, bits = name.partition(":")
    config = SHAPES[shape]
    mx.random.seed(0)
    model: Any = llama.Model(llama.ModelArgs.from_dict(config))
    model.set_dtype(mx.bfloat16)
    if bits:
        nn.quantize(model, group_size=64, bits=int(bits))
    mx.eval(model.parameters())
    model.freeze()
    return model, config, int(bits) if bits else None


def run_stock(name: str, batch_size: int, steps: int, *, recomputes: bool) -> dict[str, Any]:
    """``mlx_lm.tuner.trainer.train`` as it is."""
    import mlx.core as mx
    import mlx.optimizers as optimizers
    from mlx_lm.tuner import trainer
    from mlx_lm.tuner.callbacks import TrainingCallback
    from mlx_lm.tuner.utils import linear_to_lora_layers

    model, config, _ = load(name)
    layers = cast(int, config["num_hidden_layers"])
    linear_to_lora_layers(model, layers, {"rank": 8, "scale": 2.0, "dropout": 0.0})
    rows = [(row.ids.tolist(), int(len(row.ids) // 4)) for row in make_rows(cast(int, config["vocab_size"]))]
    seen: list[tuple[int, int, int]] = []

    def noting(*args: Any, **kwargs: Any) -> Any:
        for batch, spans in trainer.iterate_batches(*args, **kwargs):
            spans_list = cast("list[list[int]]", spans.tolist())
            targets, tokens = (sum(stop - start for start, stop in spans_list), sum(stop - 1 for _, stop in spans_list))
            seen.append((batch.shape[0] * (batch.shape[1] - 1), tokens, targets))
            yield batch, spans

    class Callback(TrainingCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_train_loss_report(self, train_info: dict[str, Any]) -> None:
            self.seconds.append(1 / train_info["iterations_per_second"])

    callback = Callback()
    with tempfile.TemporaryDirectory() as folder:
        arguments = trainer.TrainingArgs(
            batch_size=batch_size,
            iters=WARM_UP + steps,
            steps_per_report=1,
            steps_per_eval=10**6,
            steps_per_save=10**6,
            max_seq_length=1024,
            adapter_file=str(Path(folder) / "adapters.safetensors"),
            grad_checkpoint=recomputes,
        )
        optimizer = optimizers.AdamW(learning_rate=1e-4)
        trainer.train(model, optimizer, rows, None, arguments, iterate_batches=noting, training_callback=callback)
    counted = slice(WARM_UP, WARM_UP + steps)
    positions, tokens, targets = (sum(one[index] for one in seen[counted]) for index in range(3))
    return result(callback.seconds[counted], positions, tokens, targets, mx.get_peak_memory(), None)


def run_ours(name: str, batch_size: int, steps: int, *, recomputes: bool) -> dict[str, Any]:
    """Our stream, step and optimizer, with the layout that the plan would choose."""
    import mlx.core as mx
    import numpy as np

    from mlx_finetune.dataset.stream import Stream
    from mlx_finetune.hardware.planning.layout import choose_layout, longest_padded
    from mlx_finetune.hardware.planning.memory import Layout, plan_memory
    from mlx_finetune.hardware.planning.shapes import read_shape
    from mlx_finetune.model.adapters.lora import adapter_parameters, attach_adapter
    from mlx_finetune.model.inside.noise import checkpoint_blocks
    from mlx_finetune.recipe.schema import LoraRecipe
    from mlx_finetune.train.objectives.next_token import next_token
    from mlx_finetune.train.optim import AdamW, decayed_names
    from mlx_finetune.train.step import Trainer

    model, config, bits = load(name)
    lora = LoraRecipe.model_validate({"rank": 8, "alpha": 16})
    attach_adapter(model, lora, seed=0)
    if recomputes:
        checkpoint_blocks(model)
    rows = make_rows(cast(int, config["vocab_size"]))
    lengths = np.array([len(row.ids) for row in rows])
    shape = read_shape(config)
    layout = choose_layout(
        lengths, shape, batch_size=batch_size, max_length=1024, on_gpu=True, wanted="auto", unpackable=""
    )
    packed = layout.packed_length
    # as many tokens a step as the stock has real ones, so that both do the same work for an update
    size = batch_size if packed is None else max(1, round(batch_size * float(lengths.mean()) / packed))
    stream = Stream(rows, batch_size=size, accumulation=1, packed_length=packed, seed=0)
    parameters = adapter_parameters(model)
    optimizer = AdamW(0.9, 0.999, 1e-8, 0.01, decayed_names(parameters))
    trainer = Trainer(
        model,
        next_token("sft"),
        optimizer,
        parameters,
        seed=0,
        max_grad_norm=0.0,
        is_packed=packed is not None,
        is_compiled=True,
    )
    mx.set_cache_limit(2 * 2**30)
    seconds: list[float] = []
    positions = tokens = targets = 0
    for step in range(WARM_UP + steps):
        batches = stream.microbatches(step)
        started = time.perf_counter()
        gradients, done = trainer.compute(batches, step)
        trainer.apply(gradients, learning_rate=1e-4, step=step)
        if step >= WARM_UP:
            seconds.append(time.perf_counter() - started)
            positions, tokens = positions + done.num_positions, tokens + done.num_tokens
            targets += done.num_targets
    plan = plan_memory(
        shape,
        lora,
        Layout(size, packed or longest_padded(lengths), target_share=TARGET_SHARE, is_packed=packed is not None),
        value_bytes=2,
        stored_bits=bits,
        recompute=recomputes,
        on_gpu=True,
    )
    found = result(seconds, positions, tokens, targets, mx.get_peak_memory(), plan.total)
    found["needed"] = needed_memory(trainer, stream)
    return found | {"layout": f"{size} packs of {packed}" if packed else f"{size} rows"}


def needed_memory(trainer: Any, stream: Any) -> int:
    """The peak of the largest step where MLX waits for each operation, so that nothing is there ahead of its time.

    A GPU is sent operations far ahead of those it has done, and their arrays are all there: the free peak depends on
    the queue. A memory limit makes MLX wait, so what a step needs is what it takes under the smallest limit.
    """
    import mlx.core as mx

    steps = range(stream.steps_in_epoch(0))
    largest = max(steps, key=lambda step: sum(batch.num_positions for batch in stream.microbatches(step)))
    mx.set_memory_limit(1)
    mx.clear_cache()
    mx.reset_peak_memory()
    gradients, _ = trainer.compute(stream.microbatches(largest), largest)
    trainer.apply(gradients, learning_rate=0.0, step=largest)
    return mx.get_peak_memory()


def result(
    seconds: list[float], positions: int, tokens: int, targets: int, peak: int, planned: int | None
) -> dict[str, Any]:
    """One measurement as plain values."""
    ordered = sorted(seconds)
    return {
        "steps": len(seconds),
        "seconds": sum(seconds),
        "median_step": ordered[len(ordered) // 2],
        "positions": positions,
        "tokens": tokens,
        "targets": targets,
        "peak": peak,
        "planned": planned,
    }


def matrix_rate() -> float:
    """Operations a second of a product of two 8,192 x 8,192 matrices in bf16, the best of several."""
    import mlx.core as mx

    size = 8192
    one, two = (mx.random.normal((size, size)).astype(mx.bfloat16) for _ in range(2))
    mx.eval(one, two)
    best = float("inf")
    for _ in range(8):
        started = time.perf_counter()
        mx.eval(one @ two)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def measure(side: str, name: str, batch_size: int, steps: int) -> None:
    """One measurement in this process, printed as JSON; the side "rate" is that of matrix products alone."""
    from mlx_finetune.hardware import blas

    blas.prepare()
    if side == "rate":
        print(json.dumps({"rate": matrix_rate()}))
        return
    run = run_ours if side.startswith("ours") else run_stock
    print(json.dumps(run(name, batch_size, steps, recomputes=side.endswith("recomputing"))))


def in_a_process(side: str, name: str, batch_size: int, steps: int) -> dict[str, Any] | None:
    """``measure`` in a fresh process; None, with the end of its errors on stderr, where it failed."""
    command = [sys.executable, __file__, "--one", side, name, str(batch_size), str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        print(f"{name} batch {batch_size} {side} failed: {done.stderr.strip()[-600:]}", file=sys.stderr, flush=True)
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def line(side: str, name: str, batch_size: int, found: dict[str, Any], rate: float) -> str:
    """One measurement in words."""
    from mlx_finetune.hardware.planning.shapes import read_shape

    shape = read_shape(SHAPES[name.partition(":")[0]])
    matrices = shape.num_layers * shape.block_weights + shape.vocab_size * shape.hidden_size
    work = 2 * matrices * (2 + (1 if side.endswith("recomputing") else 0)) * found["tokens"] / found["seconds"]
    planned = ""
    if "needed" in found:
        planned = f", {found['needed'] / 1e9:.2f} needed, planned {found['planned'] / found['needed']:.3f} of that"
    layout = f" ({found['layout']})" if "layout" in found else ""
    return (
        f"{name:<16} batch {batch_size:<3}{side:<18} {found['targets'] / found['seconds']:>9,.0f} targets/s  "
        f"step {1000 * found['median_step']:>7.1f} ms  padding {1 - found['tokens'] / found['positions']:>4.0%}  "
        f"{work / rate:>5.1%} of {rate / 1e12:.0f} TFLOP/s  peak {found['peak'] / 1e9:.2f} GB{planned}{layout}"
    )


def main() -> None:
    """Every shape, batch size and side, in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--shape",
        nargs="*",
        default=["smollm2-135m", "llama-3.1-8b:4"],
        help="models by the shape of their config, with :4 in 4 bits (%(default)s)",
    )
    parser.add_argument(
        "--batch", nargs="*", type=int, default=[4, 16], help="rows at once, one race each (%(default)s)"
    )
    parser.add_argument("--sides", nargs="*", default=SIDES, choices=SIDES, help="who takes part (%(default)s)")
    parser.add_argument("--steps", type=int, default=40, help="steps of a run (%(default)s)")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each side (%(default)s)")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        side, name, batch_size, steps = given.one
        measure(side, name, int(batch_size), int(steps))
        return
    rate = (in_a_process("rate", "-", 0, 0) or {"rate": float("nan")})["rate"]
    for name in given.shape:
        for batch_size in given.batch:
            for _ in range(given.repeats):
                for side in given.sides:
                    found = in_a_process(side, name, batch_size, given.steps)
                    if found is not None:
                        print(line(side, name, batch_size, found, rate), flush=True)


if __name__ == "__main__":
    main()
