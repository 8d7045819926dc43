"""What each part of the training step is worth on this machine: one part taken out at a time, in turns with the whole.

    python benchmarks/ablation.py [--layers 16] [--batch 4] [--repeats 5] [--only packs,graph]

SmolLM2-135M-Instruct, LoRA of rank 8 on every linear layer of the last blocks, the same rows of ../shared/data/alpaca
for every line; all variants share one set of weights in one process. A line tells the time of a pass over the rows
against that of the whole, which runs directly before it in every repeat (median, fastest to fastest), the peak beyond
the weights, and how far the summed loss is from the whole's.
"""

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT.parent / "shared/data/alpaca/alpaca_2k.jsonl"
NUM_ROWS = 24
MAX_LENGTH = 512


@dataclass(frozen=True, slots=True)
class Variant:
    """``kind`` names the trainer, ``batching`` how rows are put together, ``patch`` what is changed meanwhile."""

    name: str
    kind: str = "kept"
    batching: str = "sorted"
    patch: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext


@contextlib.contextmanager
def mlx_exponentials() -> Generator[None]:
    """The blocks with MLX's own functions; the loss keeps numpy's."""
    from mlx_finetune.train import both_cores

    with mock.patch.object(both_cores, "numpy_math", return_value=contextlib.nullcontext()):
        yield


@contextlib.contextmanager
def one_thread(*, has_blas_threads: bool) -> Generator[None]:
    """Microbatches whole, with one BLAS thread or all."""
    from mlx_finetune.hardware import blas
    from mlx_finetune.train import both_cores

    def whole(batch: Any) -> list[Any]:
        return [both_cores.part_of(batch, range(len(batch.lengths)))]

    threads = contextlib.nullcontext() if has_blas_threads else blas.single_threaded()
    never = mock.patch.object(both_cores.BothCores, "_can_divide", return_value=False)
    with mock.patch.object(both_cores, "halves", whole), never, threads:
        yield


@contextlib.contextmanager
def along_positions() -> Generator[None]:
    """Every row cut along its positions, as a single one is, instead of some rows for each core."""
    from mlx_finetune.train import both_cores

    def whole(batch: Any) -> list[Any]:
        return [both_cores.part_of(batch, range(len(batch.lengths)))]

    with mock.patch.object(both_cores, "halves", whole):
        yield


@contextlib.contextmanager
def every_position() -> Generator[None]:
    """Logits for every position that is not padding, targets or not."""
    import mlx.core as mx
    import numpy as np

    from mlx_finetune.train.objectives import next_token

    original = next_token.target_arrays

    def everywhere(batch: Any, parts: int) -> tuple[mx.array, mx.array]:
        positions, targets = original(batch, parts)
        everything = np.flatnonzero(batch.segment_ids[:, :-1].reshape(-1)).astype(np.int32)
        wanted = np.full(everything.shape, -1, np.int32)
        wanted[np.searchsorted(everything, np.asarray(positions))] = np.asarray(targets)
        return mx.array(everything), mx.array(wanted)

    with patched_objective(arrays=everywhere):
        yield


@contextlib.contextmanager
def patched_objective(**changes: Any) -> Generator[None]:
    """The trainers' objective with other functions."""
    import dataclasses

    kept = [(one, one._objective) for one in TRAINERS_AND_CORES]
    for one, objective in kept:
        one._objective = dataclasses.replace(objective, **changes)
    try:
        yield
    finally:
        for one, objective in kept:
            one._objective = objective


@contextlib.contextmanager
def one_chunk() -> Generator[None]:
    """All logits of a half at once."""
    from mlx_finetune.train import losses

    with mock.patch.object(losses, "CHUNK_BYTES", 2**40):
        yield


@contextlib.contextmanager
def to_the_bottom() -> Generator[None]:
    """The backward pass through every block, also those below the lowest that learns."""
    kept = [(worker.blockwise, worker.blockwise._lowest) for core in CORES for worker in core._workers]
    for blockwise, _ in kept:
        blockwise._lowest = 0
    try:
        yield
    finally:
        for blockwise, lowest in kept:
            blockwise._lowest = lowest


@contextlib.contextmanager
def cleared_cache() -> Generator[None]:
    """MLX's cache cleared after every step, as the stock trainer does."""
    import mlx.core as mx

    from mlx_finetune.train.step import Trainer

    compute = Trainer.compute

    def computed(*arguments: Any) -> Any:
        result = compute(*arguments)
        mx.clear_cache()
        return result

    with mock.patch.object(Trainer, "compute", computed):
        yield


VARIANTS = (
    Variant("rows in random order, padded to 32 (as the stock does)", batching="random"),
    Variant("packs of 512 instead of sorted rows", kind="packed", batching="packed"),
    Variant("logits for every position", patch=every_position),
    Variant("all logits of a half at once", patch=one_chunk),
    Variant("exponentials by MLX", patch=mlx_exponentials),
    Variant("rows cut along their positions", patch=along_positions),
    Variant("one thread, all BLAS threads", patch=lambda: one_thread(has_blas_threads=True)),
    Variant("one thread, one BLAS thread", patch=lambda: one_thread(has_blas_threads=False)),
    Variant("each block computed twice (recomputation)", kind="recomputed"),
    Variant("one graph, every activation kept", kind="plain"),
    Variant("one graph, recomputed", kind="plain-recomputed"),
    Variant("backward through every block", patch=to_the_bottom),
    Variant("frozen blocks computed once before (epoch 2 on)", batching="kept states"),
    Variant("cache cleared after every step", patch=cleared_cache),
)

TRAINERS_AND_CORES: list[Any] = []
CORES: list[Any] = []


def read_rows() -> list[Any]:
    """Real rows as tokens, with SmolLM2's template; the first that fit."""
    from mlx_finetune.dataset.formats import Messages
    from mlx_finetune.dataset.template import tokenize
    from mlx_finetune.model.sources.fetch import fetch_model
    from mlx_finetune.model.tokens.tokenizer import load_tokenizer
    from mlx_finetune.recipe.data import DataRecipe

    tokenizer = load_tokenizer(fetch_model("smollm2-135m", report=lambda _: None).folder)
    examples: list[Any] = []
    for number, text in enumerate(ROWS.read_text(encoding="utf-8").splitlines(), start=1):
        row = json.loads(text)
        asked = "\n\n".join(part for part in (row["instruction"], row.get("input", "")) if part)
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": row["output"]}]
        examples.append(Messages(tuple(turns), None, "alpaca", number))
        if len(examples) == 2 * NUM_ROWS:
            break
    data = DataRecipe.model_validate({"path": "alpaca", "max_seq_length": MAX_LENGTH})
    return list(tokenize(examples, tokenizer, data, task="sft", base=ROOT).rows)[:NUM_ROWS]


def batches_of(rows: Sequence[Any], batching: str, batch_size: int) -> list[list[Any]]:
    """The steps of one pass: sorted by length, in random order, or packed to as many positions a step."""
    import numpy as np

    from mlx_finetune.dataset.pack import pack_lengths
    from mlx_finetune.dataset.stream import make_batch, round_up

    lengths = [len(row.ids) for row in rows]
    if batching == "packed":
        packs = pack_lengths(lengths, MAX_LENGTH + 1, np.arange(len(rows)))
        return [[make_batch(rows, [pack], num_sequences=1, length=MAX_LENGTH, is_packed=True)] for pack in packs]
    if batching == "random":
        order = np.random.default_rng(1).permutation(len(rows)).tolist()
    else:
        order = sorted(range(len(rows)), key=lambda row: lengths[row])
    steps: list[list[Any]] = []
    for at in range(0, len(order), batch_size):
        group = [[row] for row in order[at : at + batch_size]]
        longest = round_up(max(lengths[row[0]] for row in group) - 1, 32 if batching == "random" else 8)
        steps.append([make_batch(rows, group, num_sequences=len(group), length=longest)])
    return steps


def make_trainers(num_layers: int) -> dict[str, Any]:
    """A trainer of every kind over one set of weights."""
    from mlx_finetune.model.adapters.lora import adapter_parameters, attach_adapter
    from mlx_finetune.model.cpu.twin import twin
    from mlx_finetune.model.inside.noise import checkpoint_blocks
    from mlx_finetune.model.load import load_model, on_gpu
    from mlx_finetune.model.sources.fetch import fetch_model
    from mlx_finetune.recipe.schema import LoraRecipe
    from mlx_finetune.train.objectives.next_token import next_token
    from mlx_finetune.train.optim import AdamW, decayed_names
    from mlx_finetune.train.step import Trainer

    local = fetch_model("smollm2-135m", report=lambda _: None)
    model = load_model(local, quantize=None, compute_dtype="float32", on_gpu=on_gpu()).model
    attach_adapter(model, LoraRecipe.model_validate({"num_layers": num_layers, "rank": 8, "alpha": 16}), seed=0)
    trainers: dict[str, Any] = {}
    for kind in ("kept", "recomputed", "packed", "plain", "plain-recomputed"):
        own = twin(model)
        if kind == "plain-recomputed":
            checkpoint_blocks(own)
        parameters = adapter_parameters(own)
        is_blockwise = not kind.startswith("plain")
        trainers[kind] = Trainer(
            own,
            next_token("sft"),
            AdamW(0.9, 0.999, 1e-8, 0.01, decayed_names(parameters)),
            parameters,
            seed=0,
            max_grad_norm=1.0,
            is_packed=kind == "packed",
            is_compiled=on_gpu(),
            is_blockwise=is_blockwise,
            keeps_products=kind in ("kept", "packed"),
        )
        TRAINERS_AND_CORES.append(trainers[kind])
        if is_blockwise:
            CORES.append(trainers[kind]._cores)
            TRAINERS_AND_CORES.append(trainers[kind]._cores)
    return trainers


def with_kept_states(trainer: Any, rows: Sequence[Any], steps: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """The same steps with what leaves the frozen blocks, as a run has it after its pass over the rows; prints that."""
    from contextlib import ExitStack
    from dataclasses import replace

    from mlx_finetune.dataset.token_rows import rows_of
    from mlx_finetune.hardware.planning.kept_states import GROUP_POSITIONS, KeptStates
    from mlx_finetune.train.signals import StopRequest
    from mlx_finetune.train.start.frozen import compute_states

    largest = max(batch.num_positions for batches in steps for batch in batches)
    kept = KeptStates(trainer.num_frozen, 0, 0, in_memory=True, group_positions=min(GROUP_POSITIONS, largest))
    started = time.perf_counter()
    rows = rows_of(rows)
    states = compute_states(kept, trainer, rows, "rows", ROOT, StopRequest(), lambda _: None, ExitStack())
    assert states is not None, "nobody asked to stop"
    seconds = time.perf_counter() - started
    print(f"the pass over {len(rows)} rows through {trainer.num_frozen} frozen blocks took {seconds:.1f} s")
    return [[replace(batch, entering=states.of(batch)) for batch in batches] for batches in steps]


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over the rows: seconds, summed loss, the peak beyond what was there before."""

    seconds: float
    loss: float
    peak_bytes: int


def run_pass(trainer: Any, steps: Sequence[Sequence[Any]]) -> Pass:
    """Gradients of every step; no update, so that all passes compute the same."""
    import mlx.core as mx

    before = mx.get_active_memory()
    mx.reset_peak_memory()
    started, loss = time.perf_counter(), 0.0
    for number, batches in enumerate(steps):
        _, result = trainer.compute(batches, number)
        loss += result.loss * result.num_targets
    return Pass(time.perf_counter() - started, loss, mx.get_peak_memory() - before)


def main() -> None:
    """Every variant in turns with the whole."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=16, help="blocks with an adapter, the last ones (%(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="rows at once (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="passes of each line (%(default)s)")
    parser.add_argument("--only", help="parts of the names of the variants to run, with commas between them")
    given = parser.parse_args()
    if not ROWS.is_file():
        sys.exit(f"{ROWS} is not there")
    from mlx_finetune.hardware import blas

    blas.prepare()
    import mlx.core as mx

    from mlx_finetune.hardware.limits import CPU_CACHE_BYTES

    mx.set_cache_limit(CPU_CACHE_BYTES)
    chosen = [one for one in VARIANTS if not given.only or any(part in one.name for part in given.only.split(","))]
    rows, trainers = read_rows(), make_trainers(given.layers)
    steps = {name: batches_of(rows, name, given.batch) for name in ("sorted", "random", "packed")}
    if any(one.batching == "kept states" for one in chosen):
        steps["kept states"] = with_kept_states(trainers["kept"], rows, steps["sorted"])
    whole = Variant("the whole")
    run_pass(trainers["kept"], steps["sorted"][:2])
    print(f"{len(rows)} rows, batch {given.batch}, last {given.layers} blocks, {given.repeats} repeats")
    for variant in chosen:
        pairs: list[tuple[Pass, Pass]] = []
        for _ in range(given.repeats):
            first = run_pass(trainers[whole.kind], steps[whole.batching])
            with variant.patch():
                pairs.append((first, run_pass(trainers[variant.kind], steps[variant.batching])))
        print_line(variant.name, pairs)


def print_line(name: str, pairs: Sequence[tuple[Pass, Pass]]) -> None:
    """Ratios of one variant to the whole."""
    median = statistics.median(other.seconds / own.seconds for own, other in pairs)
    fastest = min(other.seconds for _, other in pairs) / min(own.seconds for own, _ in pairs)
    own, other = pairs[0]
    print(
        f"{name:<56} time {median:>5.2f}x (fastest {fastest:>5.2f}x)  peak {other.peak_bytes / 1e9:>5.2f} GB, "
        f"the whole {own.peak_bytes / 1e9:.2f}  loss {abs(other.loss / own.loss - 1):.0e}",
        flush=True,
    )


if __name__ == "__main__":
    main()
