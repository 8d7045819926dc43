"""A few rows through the dense layers of a model on the CPU, without a copy of the weights: the same sums.

BLAS packs the matrix on the right before it multiplies, and for a few rows that copies the whole weight. OpenBLAS
leaves it out for small products, so a weight is taken in blocks of its rows that are small enough, and for a single
row as ``W x``, which needs no packing either. 24576 x 576 in fp32, one BLAS thread of an EPYC, least of five, ms
(2026-11-26):

    rows       1      2      4      8     16
    x W^T    8.8    8.9    8.8   10.1   12.0
    here     4.0    4.7    5.2    6.3    9.3

And the first layers are computed while Python still builds the graph of the last, which otherwise adds 4 to 6 ms to a
token. For more rows and other types nothing changes.
"""

import itertools
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn

#: Layers after which what has been built so far is handed to MLX: two blocks of most models.
LAYERS_AT_ONCE = 14
#: Rows from which on the plain product is as fast.
MOST_ROWS = 16

_MULTIPLICATIONS = 600_000
_LARGEST_BLOCK, _SMALLEST_BLOCK = 128, 16  # rows of a weight

_linear, _as_linear = nn.Linear.__call__, nn.Embedding.as_linear


@contextmanager
def few_row_products() -> Generator[None]:
    """Inside, ``nn.Linear`` and tied heads take up to 16 float32 rows so. The classes are changed, for all threads."""
    calls = itertools.count(1)

    def call(layer: nn.Linear, x: mx.array) -> mx.array:
        y = _product(x, layer.weight, lambda: _linear(layer, x), layer.get("bias"))
        if next(calls) % LAYERS_AT_ONCE == 0:
            mx.async_eval(y)
        return y

    def as_linear(layer: nn.Embedding, x: mx.array) -> mx.array:
        return _product(x, layer.weight, lambda: _as_linear(layer, x), None)

    places: list[tuple[Any, str, Any, Any]] = [
        (nn.Linear, "__call__", call, _linear),
        (nn.Embedding, "as_linear", as_linear, _as_linear),
    ]
    try:
        for place, name, function, _ in places:
            setattr(place, name, function)
        yield
    finally:
        for place, name, _, function in places:
            setattr(place, name, function)


def _product(x: mx.array, weight: mx.array, plain: Callable[[], mx.array], bias: mx.array | None) -> mx.array:
    """``x W^T + bias``, x (..., in), W (out, in), by blocks where that is faster, else ``plain``."""
    out, width = weight.shape
    rows = x.size // width
    if x.shape[-1] != width or rows > MOST_ROWS or x.dtype != mx.float32 or weight.dtype != mx.float32:
        return plain()
    is_small = rows * width * out <= _MULTIPLICATIONS
    block = out if is_small else min(_LARGEST_BLOCK, _MULTIPLICATIONS // (rows * width))
    if block < _SMALLEST_BLOCK or (is_small and rows > 1):
        return plain()
    y = _by_blocks(x.reshape(rows, width), weight, block).reshape(*x.shape[:-1], out)
    return y if bias is None else y + bias


def _by_blocks(x: mx.array, weight: mx.array, block: int) -> mx.array:
    """``x W^T`` (rows, out) of x (rows, in), ``block`` rows of W (out, in) at a time."""
    (rows, width), count = x.shape, weight.shape[0] // block
    blocks = weight[: count * block].reshape(count, block, width)
    if rows == 1:
        y = (blocks @ x.reshape(width, 1)).reshape(1, -1)
    else:
        y = x @ mx.swapaxes(blocks, 1, 2)  # (count, rows, block)
        y = mx.swapaxes(y, 0, 1).reshape(rows, -1)
    rest = weight[count * block :]
    return mx.concatenate([y, x @ rest.T], axis=1) if rest.shape[0] else y
