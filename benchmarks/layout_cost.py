"""Packs and rows side by side on a CPU: what they cost there, where nothing is packed unless the recipe says so.

    python benchmarks/layout_cost.py [--repeats 3]

SmolLM2-135M-Instruct, LoRA on every block, gradients of a step. The same rows in batches of 4 as the stream pads them,
and in packs of a few lengths (about 16 rows, at most 4 packs, at once). Ratios of interleaved passes; fastest and
median.
"""

import argparse
import statistics
import time
from typing import Any

import numpy as np
from ablation import make_trainers, read_rows

CASES = {"alpaca": (512,), "rows of 20 tokens": (64, 256)}
SHORT_ROWS = 64


def main() -> None:
    """Print both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="passes over the rows for each layout (%(default)s)")
    given = parser.parse_args()
    from mlx_finetune.hardware import blas

    blas.prepare()
    trainers, rows = make_trainers(30), read_rows()
    print_packed("alpaca", rows, trainers, given.repeats)
    print_packed("rows of 20 tokens", _short(rows), trainers, given.repeats)


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
    from mlx_finetune.hardware.planning.layout import count_sequences

    lengths = np.array([len(row.ids) for row in rows])
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
    for packed, taken in seconds.items():
        pairs = [mine / whole for mine, whole in zip(taken, seconds[None], strict=True)]
        print(
            f"{name}, {f'packs of {packed}' if packed else 'batches of 4'} ({len(layouts[packed][1])} steps): "
            f"{int(lengths.sum()) / min(taken):,.0f} tokens/s; time against batches of 4 "
            f"{min(taken) / min(seconds[None]):.2f} (median {statistics.median(pairs):.2f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
