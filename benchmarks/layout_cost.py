"""What a position costs as a function of T on a CPU, and packs against rows side by side: checks `hardware/layout.py`.

    python benchmarks/layout_cost.py [--repeats 3] [--cost] [--packed]

SmolLM2-135M-Instruct, LoRA on every block, gradients of a step. `--cost`: 2,048 positions as 32 x 64 up to 2 x 1024, in
turns; a line through the seconds a position against T gives ``1 + T / T0``, and from it how much dearer an operation of
attention is than one of a matrix product. `--packed`: the same rows in batches of 4 as the stream pads them and in
packs of a few lengths (about 16 rows, at most 4 packs, at once, as the automatic choice does), with what layout.py
predicts. Ratios of interleaved passes; fastest and median.
"""

import argparse
import statistics
import time
from typing import Any

import numpy as np
from ablation import make_trainers, read_rows

LENGTHS = (64, 128, 256, 512, 1024)
POSITIONS = 2048
CASES = {"alpaca": (512,), "rows of 20 tokens": (64, 256)}
SHORT_ROWS = 64


def main() -> None:
    """Print what was asked for; everything by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--packed", action="store_true")
    given = parser.parse_args()
    from mlx_finetune.hardware import blas

    blas.prepare()
    trainers = make_trainers(30)
    if given.cost or not given.packed:
        print_cost(trainers["kept"], given.repeats)
    if given.packed or not given.cost:
        rows = read_rows()
        print_packed("alpaca", rows, trainers, given.repeats)
        print_packed("rows of 20 tokens", _short(rows), trainers, given.repeats)


def model_shape() -> Any:
    """The shape of the model, as layout.py takes it."""
    from mlx_finetune.hardware.shapes import read_shape
    from mlx_finetune.model.config import read_config
    from mlx_finetune.model.fetch import fetch_model

    return read_shape(read_config(fetch_model("smollm2-135m", report=lambda _: None).folder))


def print_cost(trainer: Any, repeats: int) -> None:
    """Microseconds a position for every T, and the line through them."""
    from mlx_finetune.dataset.stream import make_batch
    from mlx_finetune.dataset.tokens import Tokens

    generator = np.random.default_rng(0)
    batches: dict[int, Any] = {}
    for length in LENGTHS:
        count = POSITIONS // length
        ids = generator.integers(3, 40_000, (count, length + 1)).astype(np.int32)
        mask = np.arange(length + 1) > length // 2
        rows = [Tokens(one, mask, "rows", number) for number, one in enumerate(ids)]
        batches[length] = make_batch(rows, [[row] for row in range(count)], num_sequences=count, length=length)
    seconds: dict[int, list[float]] = {length: [] for length in LENGTHS}
    trainer.compute([batches[LENGTHS[0]]], 0)
    for _ in range(repeats):
        for length, batch in batches.items():
            begin = time.perf_counter()
            trainer.compute([batch], 0)
            seconds[length].append(time.perf_counter() - begin)
    for length, taken in seconds.items():
        least, middle = (1e6 * value / POSITIONS for value in (min(taken), statistics.median(taken)))
        print(f"T {length:>5}: {least:,.0f} us a position (median {middle:,.0f})", flush=True)
    shape = model_shape()
    per_operation = 4 * shape.num_heads * shape.head_dim / (2 * shape.block_weights)
    for name, chosen in (("fastest", min), ("median", statistics.median)):
        slope, at_zero = np.polyfit(LENGTHS, [chosen(seconds[length]) for length in LENGTHS], 1)
        print(f"{name}: 1 + T / {at_zero / slope:,.0f}; attention {slope / at_zero / per_operation:.1f} times as dear")


def _short(rows: Any) -> list[Any]:
    from mlx_finetune.dataset.tokens import Tokens

    generator = np.random.default_rng(0)
    lengths = generator.integers(16, 25, SHORT_ROWS)
    mask = np.arange(25) > 8
    ids = np.concatenate([row.ids for row in rows])
    return [Tokens(ids[25 * at : 25 * at + n], mask[:n], "short", at + 1) for at, n in enumerate(lengths)]


def print_packed(name: str, rows: Any, trainers: Any, repeats: int) -> None:
    """Tokens a second of rows side by side, and of packs, with the predicted and the measured ratio of times."""
    from mlx_finetune.dataset.stream import Stream
    from mlx_finetune.hardware.layout import count_sequences, epoch_cost

    shape, lengths = model_shape(), np.array([len(row.ids) for row in rows])
    layouts: dict[int | None, tuple[Any, Any]] = {}
    for packed in (None, *CASES[name]):
        size = 4
        if packed:
            rows_a_pack = len(rows) / count_sequences(lengths, packed)
            size = max(1, min(4, round(16 / rows_a_pack)))
        stream = Stream(rows, batch_size=size, accumulation=1, packed_length=packed, seed=0)
        steps = [stream.microbatches(step) for step in range(stream.steps_in_epoch(0))]
        layouts[packed] = trainers["packed" if packed else "kept"], steps
    seconds: dict[int | None, list[float]] = {packed: [] for packed in layouts}
    for _ in range(repeats):
        for packed, (trainer, steps) in layouts.items():
            begin = time.perf_counter()
            for number, batches in enumerate(steps):
                trainer.compute(batches, number)
            seconds[packed].append(time.perf_counter() - begin)
    costs = {packed: epoch_cost(lengths, shape, packed, 4, on_gpu=False) for packed in layouts}
    for packed, taken in seconds.items():
        pairs = [mine / whole for mine, whole in zip(taken, seconds[None], strict=True)]
        print(
            f"{name}, {f'packs of {packed}' if packed else 'batches of 4'} ({len(layouts[packed][1])} steps): "
            f"{int(lengths.sum()) / min(taken):,.0f} tokens/s; time against batches of 4 "
            f"{min(taken) / min(seconds[None]):.2f} (median {statistics.median(pairs):.2f}), "
            f"predicted {costs[packed] / costs[None]:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
