"""Pack rows or pad them: the cheaper of the two by arithmetic, on a GPU.

The cost of a layout is the positions that go through the model times ``1 + T / T0``: every position pays for the
matrices once and for a score with each of the ``T`` positions of its sequence. ``T0 = 2 W / (4 A k)`` with ``W``
weights of a block and ``A = heads * head_dim``: where attention costs as much as the rest. ``k = 3`` says how much
dearer an operation of attention is than one of a matrix product where a block-diagonal mask takes the unfused path.

On a CPU nothing is compiled for a shape and each half of a batch is cut to its longest row, so there is no padding to
save, and rows are packed only where the recipe asks for it: 48 rows of Alpaca, SmolLM2-135M, 2 cores: packs of 512 in
0.99 of the time of batches of 4 (2026-11-26, ``benchmarks/layout_cost.py``).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlx_finetune.dataset.pack import pack_lengths
from mlx_finetune.dataset.stream import length_step, round_up
from mlx_finetune.hardware.planning.shapes import ModelShape
from mlx_finetune.recipe.heads import SCORED_TASKS
from mlx_finetune.recipe.preference import TWO_ANSWER_TASKS
from mlx_finetune.recipe.schema import Recipe

PACKED_LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
WORTH_IT = 0.95  # pack when it costs at most this share of padding
ROUND_TO = 32
DEARNESS = 3.0
MAX_ROWS = 20_000  # more rows than this are judged by as many, spread evenly


@dataclass(frozen=True, slots=True)
class RowLayout:
    """``packed_length`` is T of a pack, None for one row a sequence; ``reason`` compares the two."""

    packed_length: int | None
    reason: str


def choose_layout(
    lengths: NDArray[np.integer],
    shape: ModelShape,
    *,
    batch_size: int,
    max_length: int,
    on_gpu: bool,
    wanted: bool | str,
    unpackable: str,
) -> RowLayout:
    """What ``data.packing`` comes to: ``wanted`` is its value. ``lengths`` are those of the training rows, in tokens.

    A pack is one of ``PACKED_LENGTHS`` (at most ``max_length``), or the longest row rounded up to 32; never longer
    than the model's context.
    """
    if wanted is False or (unpackable and wanted == "auto"):
        return RowLayout(None, unpackable)
    if wanted == "auto" and not on_gpu:
        return RowLayout(None, "on a CPU padding is cut off, so packs have nothing to save")
    sample = lengths[:: max(1, -(-len(lengths) // MAX_ROWS))]
    needed = int(lengths.max()) - 1
    context = max(needed, shape.context_length or needed * ROUND_TO)
    longest = min(round_up(needed, ROUND_TO), context)
    ceiling = min(max(longest, max_length), context)
    candidates = sorted({longest, *(one for one in PACKED_LENGTHS if longest <= one <= ceiling)})
    costs = {one: epoch_cost(sample, shape, one, batch_size) for one in candidates}
    best = min(candidates, key=lambda one: costs[one])
    ratio = costs[best] / epoch_cost(sample, shape, None, batch_size)
    if wanted == "auto" and ratio > WORTH_IT:
        return RowLayout(None, f"packs of {best} would cost {ratio:.0%} of batches padded by length")
    return RowLayout(best, f"packs of {best} cost {ratio:.0%} of batches padded by length")


#: Task -> why its rows are alone.
_ALONE = {
    **dict.fromkeys(TWO_ANSWER_TASKS, "a row holds two answers"),
    **SCORED_TASKS,
    "grpo": "every answer has a reward of its own",
}


def shares_prompts(recipe: Recipe, model_type: str) -> bool:
    """True where two answers are expected to share their prompt; the loaded model has the last word."""
    if recipe.task in SCORED_TASKS:
        return False
    asked = recipe.preference.share_prompt if recipe.preference else "auto"
    return asked is not False and not why_unpackable(model_type)


def why_unpackable(model_type: str, task: str = "") -> str:
    """Why rows of this family and task cannot share a sequence, "" where they can (``inside.segments`` and the task's
    objective refuse the same)."""
    if task in _ALONE:
        return _ALONE[task]
    if model_type in ("gpt2", "gpt_bigcode"):
        return f"{model_type} has learned positions, which start at 0 for every row"
    if model_type == "t5":
        return "an encoder-decoder model reads a prompt and writes an answer: two sequences"
    if any(name in model_type for name in ("mamba", "rwkv", "recurrent", "jamba", "plamo2", "lfm2", "qwen3_next")):
        return f"{model_type} has recurrent layers, whose state would run from row to row"
    return ""


def relative_cost(shape: ModelShape, length: int) -> float:
    """``1 + T / T0``: cost of a position in a sequence of ``length``, the matrices being 1."""
    return 1 + length / _equal_length(shape)


def _equal_length(shape: ModelShape) -> float:
    """T0, where attention costs as much as the matrices."""
    return max(1, 2 * shape.block_weights) / (4 * shape.num_heads * shape.head_dim * DEARNESS)


def epoch_cost(lengths: NDArray[np.integer], shape: ModelShape, packed_length: int | None, batch_size: int) -> float:
    """Time of an epoch in units of one position's matrices, padding included; unpacked rows are sorted by length."""
    if packed_length is not None:
        return epoch_positions(lengths, packed_length, batch_size) * relative_cost(shape, packed_length)
    batches = _batches(lengths, batch_size)
    longest = _padded(batches[:, -1], int(lengths.max()))
    return float(np.sum(np.count_nonzero(batches, axis=1) * longest * (1 + longest / _equal_length(shape))))


def epoch_positions(lengths: NDArray[np.integer], packed_length: int | None, batch_size: int) -> int:
    """Positions that go through the model in an epoch, padding included; rows are taken to be sorted by length."""
    if packed_length is not None:
        return count_sequences(lengths, packed_length) * packed_length
    batches = _batches(lengths, batch_size)
    return int(np.sum(np.count_nonzero(batches, axis=1) * _padded(batches[:, -1], int(lengths.max()))))


def _batches(lengths: NDArray[np.integer], batch_size: int) -> NDArray[np.int64]:
    """Rows sorted by length, ``(batches, batch_size)`` rising; 0 where the last batch has fewer rows."""
    ordered = np.zeros(round_up(len(lengths), batch_size), np.int64)
    ordered[: len(lengths)] = np.sort(lengths)
    return np.sort(ordered.reshape(-1, batch_size), axis=1)


def _padded(longest: NDArray[np.int64], longest_of_all: int) -> NDArray[np.int64]:
    """T of batches whose longest rows have so many tokens, as ``dataset.stream`` pads them."""
    step = length_step(longest_of_all - 1)
    return np.maximum(1, -(-(longest - 1) // step)) * step


def count_sequences(lengths: NDArray[np.integer], packed_length: int | None) -> int:
    """Rows, or packs of ``packed_length`` positions (one token more is read), in an epoch."""
    if packed_length is None:
        return len(lengths)
    return len(pack_lengths(lengths, packed_length + 1, range(len(lengths))))


def longest_padded(lengths: NDArray[np.integer]) -> int:
    """T of the longest batch without packing."""
    longest = int(lengths.max()) - 1
    return round_up(longest, length_step(longest))
