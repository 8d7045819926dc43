"""Pack rows or pad them: the cheaper of the two by arithmetic.

The cost of a layout is the positions that go through the model times ``1 + T / T0``: every position pays for the
matrices once and for a score with each of the ``T`` positions of its sequence. ``T0 = 2 W / (4 A k)`` with ``W``
weights of a block and ``A = heads * head_dim``: where attention costs as much as the rest. ``k`` says how much dearer
an operation of attention is than one of a matrix product: 3 on a GPU, where a block-diagonal mask takes the unfused
path, and 8 on a CPU, where the exponential has no fast path (PERF.md section 2: softmax 20 ms of 61 at T = 192).
So long packs of short rows do not pay on a CPU, and short ones do.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlx_finetune.dataset.pack import pack_lengths
from mlx_finetune.dataset.stream import length_step, round_up
from mlx_finetune.hardware.shapes import ModelShape

PACKED_LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
WORTH_IT = 0.95  # pack when it costs at most this share of padding
ROUND_TO = 32
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
    sample = lengths[:: max(1, -(-len(lengths) // MAX_ROWS))]
    needed = int(lengths.max()) - 1
    context = max(needed, shape.context_length or needed * ROUND_TO)
    longest = min(round_up(needed, ROUND_TO), context)
    ceiling = min(max(longest, max_length), context)
    candidates = sorted({longest, *(one for one in PACKED_LENGTHS if longest <= one <= ceiling)})
    costs = {one: packed_positions(sample, one) * relative_cost(shape, one, on_gpu=on_gpu) for one in candidates}
    best = min(candidates, key=lambda one: costs[one])
    padded = padded_cost(sample, shape, batch_size, on_gpu=on_gpu)
    ratio = costs[best] / padded
    if wanted == "auto" and ratio > WORTH_IT:
        return RowLayout(None, f"packs of {best} would cost {ratio:.0%} of batches padded by length")
    return RowLayout(best, f"packs of {best} cost {ratio:.0%} of batches padded by length")


def why_unpackable(model_type: str) -> str:
    """Why rows of this family cannot share a sequence, "" where they can (``model.segments`` refuses the same)."""
    if model_type in ("gpt2", "gpt_bigcode"):
        return f"{model_type} has learned positions, which start at 0 for every row"
    if any(name in model_type for name in ("mamba", "rwkv", "recurrent", "jamba", "plamo2", "lfm2", "qwen3_next")):
        return f"{model_type} has recurrent layers, whose state would run from row to row"
    return ""


def relative_cost(shape: ModelShape, length: int, *, on_gpu: bool) -> float:
    """``1 + T / T0``: cost of a position in a sequence of ``length``, the matrices being 1."""
    dearness = 3 if on_gpu else 8
    matrices = 2 * shape.block_weights
    scores = 4 * shape.num_heads * shape.head_dim * length * dearness
    return 1 + scores / max(1, matrices)


def packed_positions(lengths: NDArray[np.integer], packed_length: int) -> int:
    """Positions of all packs, padding included."""
    return count_sequences(lengths, packed_length) * packed_length


def padded_cost(lengths: NDArray[np.integer], shape: ModelShape, batch_size: int, *, on_gpu: bool) -> float:
    """Cost of rows sorted by length, ``batch_size`` at once, each batch padded as ``dataset.stream`` does."""
    step = length_step(int(lengths.max()) - 1)
    ordered = np.sort(lengths)
    cost = 0.0
    for start in range(0, len(ordered), batch_size):
        length = round_up(int(ordered[start : start + batch_size][-1]) - 1, step)
        cost += batch_size * length * relative_cost(shape, length, on_gpu=on_gpu)
    return cost


def count_sequences(lengths: NDArray[np.integer], packed_length: int | None) -> int:
    """Rows, or packs of ``packed_length`` positions (one token more is read), in an epoch."""
    if packed_length is None:
        return len(lengths)
    return len(pack_lengths(lengths, packed_length + 1, range(len(lengths))))


def longest_padded(lengths: NDArray[np.integer]) -> int:
    """T of the longest batch without packing."""
    longest = int(lengths.max()) - 1
    return round_up(longest, length_step(longest))


def epoch_positions(lengths: NDArray[np.integer], packed_length: int | None, batch_size: int) -> int:
    """Positions that go through the model in an epoch, padding included; rows are taken to be sorted by length."""
    if packed_length is not None:
        return packed_positions(lengths, packed_length)
    step = length_step(int(lengths.max()) - 1)
    ordered = np.sort(lengths)
    firsts = range(0, len(ordered), batch_size)
    return sum(len(part := ordered[at : at + batch_size]) * round_up(int(part[-1]) - 1, step) for at in firsts)
