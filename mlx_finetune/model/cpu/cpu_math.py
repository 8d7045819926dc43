"""Exponentials in numpy, for training on MLX's CPU backend only. Same mathematics, the same bits every time.

On x86 ``mx.exp``, softmax, sigmoid and tanh take 12 to 17 ns an element, numpy 0.4 (PERF.md section 4), and softmax and
SwiGLU are two thirds of a block's forward pass. Inside ``numpy_math`` attention, silu, SwiGLU and gelu are custom
functions whose exponentials are numpy's; products stay with MLX. One layer of SmolLM2-135M, 4 x 193 tokens, one thread
of an EPYC: softmax 18.0 -> 1.9 ms, SwiGLU 19.0 -> 1.2 ms, the block 105 -> 69 ms (2026-11-26).

The price: numpy wants values, so what leads to them is computed while the graph is still being built. Under one
``mx.grad`` of a whole model every intermediate would stay alive (PERF.md section 3: memory doubles), which is why this
goes together with ``model.cpu.blockwise``, where a graph is one block long. Attention is computed in strips of queries
against the keys they can see and keeps one number a query (Dao et al. 2022, 2205.14135), never T x T of them.
"""

import math
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from mlx_finetune.model.cpu.tape import current_tape

Floats = NDArray[np.float32]

STRIP = 128  # queries at once
_GELU_A, _GELU_B = math.sqrt(2 / math.pi), 0.044715


@contextmanager
def numpy_math(model: nn.Module) -> Generator[None]:
    """Inside, the functions that the blocks of ``model`` call compute their exponentials in numpy.

    What is replaced are names of modules (``mx.fast``, ``mlx.nn``, those of the model's own code), so nothing else may
    use MLX meanwhile. Calls it does not know how to serve (other types than float32, sinks, additive masks, one
    query) go to the original.
    """
    places: list[tuple[Any, str, Any]] = [(mx.fast, "scaled_dot_product_attention", _attention_instead)]
    places += [(nn, "silu", _guarded(_silu, nn.silu)), (nn, "gelu_approx", _guarded(_gelu_approx, nn.gelu_approx))]
    sources = sorted({type(module).__module__ for module in model.modules()})
    for source in (sys.modules[name] for name in sources if name in sys.modules):
        if hasattr(source, "swiglu"):
            places.append((source, "swiglu", _guarded(_swiglu, cast(Any, source).swiglu)))
    kept = [(place, name, getattr(place, name)) for place, name, _ in places]
    try:
        for place, name, function in places:
            setattr(place, name, function)
        yield
    finally:
        for place, name, function in reversed(kept):
            setattr(place, name, function)


def as_numpy(array: mx.array) -> Floats:
    """The evaluated values of ``array`` without a copy. They may be written over where nobody else has the array."""
    mx.eval(array)
    return np.asarray(array)


def without_graph(*arrays: mx.array) -> list[mx.array]:
    """Copies that no graph hangs on. What is computed from the originals while a gradient is being traced is kept until
    the trace ends, even after its evaluation."""
    return [mx.array(as_numpy(array)) for array in arrays]


def _guarded(function: Callable[..., object], original: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """``function`` for float32, ``original`` for other types."""

    def call(*arrays: mx.array) -> mx.array:
        chosen = function if all(array.dtype == mx.float32 for array in arrays) else original
        return cast("mx.array", chosen(*arrays))

    return call


def _sigmoid(x: Floats) -> Floats:
    """``1 / (1 + exp(-x))``; where exp overflows to infinity the quotient is 0, as it should be."""
    with np.errstate(over="ignore"):
        out = np.negative(x)
        np.exp(out, out=out)
    out += 1
    return np.reciprocal(out, out=out)


@mx.custom_function
def _silu(x: mx.array) -> mx.array:
    values = as_numpy(x)
    return mx.array(values * _sigmoid(values))


@_silu.vjp  # pyright: ignore[reportUntypedFunctionDecorator]
def _silu_vjp(x: mx.array, cotangent: mx.array, _: mx.array) -> mx.array:
    """``s (1 + x (1 - s))``, s the sigmoid."""
    values = as_numpy(x)
    return mx.array(_silu_slope(values, _sigmoid(values)) * as_numpy(cotangent))


def _silu_slope(x: Floats, sigmoid: Floats) -> Floats:
    slope = np.subtract(1, sigmoid)
    slope *= x
    slope += 1
    slope *= sigmoid
    return slope


@mx.custom_function
def _swiglu(gate: mx.array, x: mx.array) -> mx.array:
    values = as_numpy(gate)
    out = _sigmoid(values)
    out *= values
    out *= as_numpy(x)
    return mx.array(out)


@_swiglu.vjp  # pyright: ignore[reportUntypedFunctionDecorator]
def _swiglu_vjp(primals: tuple[mx.array, mx.array], cotangent: mx.array, _: mx.array) -> tuple[mx.array, mx.array]:
    gate, x, slope_out = as_numpy(primals[0]), as_numpy(primals[1]), as_numpy(cotangent)
    sigmoid = _sigmoid(gate)
    slope = _silu_slope(gate, sigmoid)
    slope *= x
    slope *= slope_out
    sigmoid *= gate
    sigmoid *= slope_out
    return mx.array(slope), mx.array(sigmoid)


@mx.custom_function
def _gelu_approx(x: mx.array) -> mx.array:
    values = as_numpy(x)
    out = _gelu_tanh(values)
    out += 1
    out *= values
    out *= 0.5
    return mx.array(out)


@_gelu_approx.vjp  # pyright: ignore[reportUntypedFunctionDecorator]
def _gelu_approx_vjp(x: mx.array, cotangent: mx.array, _: mx.array) -> mx.array:
    """``(1 + t) / 2 + x (1 - t^2) / 2 * a (1 + 3 b x^2)``, t the tanh."""
    values = as_numpy(x)
    tanh = _gelu_tanh(values)
    inner = values * values
    inner *= 3 * _GELU_B * _GELU_A
    inner += _GELU_A
    inner *= values
    inner *= 1 - tanh * tanh
    inner += 1
    inner += tanh
    inner *= 0.5
    inner *= as_numpy(cotangent)
    return mx.array(inner)


def _gelu_tanh(x: Floats) -> Floats:
    """``tanh(a (x + b x^3))``."""
    out = x * x
    out *= _GELU_B
    out += 1
    out *= x
    out *= _GELU_A
    return np.tanh(out, out=out)


def _attention_instead(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    *,
    scale: float,
    mask: mx.array | str | None = None,
    sinks: mx.array | None = None,
    stream: Any = None,
) -> mx.array:
    """``mx.fast.scaled_dot_product_attention``: (B, heads, T, D), fewer heads of keys allowed."""
    is_ours = (
        sinks is None
        and all(array.dtype == mx.float32 for array in (queries, keys, values))
        and (queries.shape[2] == keys.shape[2] or 1 < queries.shape[2] < keys.shape[2])
        and _is_known(mask)
    )
    if not is_ours:
        more = {} if stream is None else {"stream": stream}
        return _original_attention(queries, keys, values, scale=scale, mask=mask, sinks=sinks, **more)
    return _attention(queries, keys, values, scale, mask)


def _is_known(mask: mx.array | str | None) -> bool:
    """True for a causal mask, none, and booleans that are the same for all heads."""
    if isinstance(mask, mx.array):
        return mask.dtype == mx.bool_ and (mask.ndim == 2 or (mask.ndim == 4 and mask.shape[1] == 1))
    return mask is None or mask == "causal"


_original_attention = mx.fast.scaled_dot_product_attention


def _attention(
    queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: mx.array | str | None
) -> mx.array:
    """``softmax(scale Q K^T + mask) V`` strip by strip; gradients from the log of each query's normaliser."""
    strips = _Strips(mask, queries.shape[2], keys.shape[2])

    @mx.custom_function
    def attend(q: mx.array, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        tape = current_tape()
        if tape is None:
            return _attention_values(q, k, v, scale, strips)
        return tape.take(lambda: _attention_values(q, k, v, scale, strips))

    @attend.vjp  # pyright: ignore[reportUntypedFunctionDecorator]
    def attend_vjp(
        primals: tuple[mx.array, ...], cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
    ) -> tuple[mx.array, ...]:
        return _attention_gradients(primals, cotangents[0], outputs[0], as_numpy(outputs[1]), scale, strips)

    return cast("tuple[mx.array, mx.array]", attend(queries, keys, values))[0]


def _attention_values(
    queries: mx.array, keys: mx.array, values: mx.array, scale: float, strips: "_Strips"
) -> tuple[mx.array, mx.array]:
    """The output (B, heads, T, D), and the log of each query's normaliser (B, groups, heads of one, T, 1)."""
    queries, keys, values = without_graph(queries, keys, values)
    B, H, T, D = queries.shape
    groups = keys.shape[1]
    q = queries.reshape(B, groups, H // groups, T, D)
    output = np.empty((*q.shape[:-1], values.shape[-1]), np.float32)
    logs = np.empty((*q.shape[:-1], 1), np.float32)
    for rows, columns in strips:
        scores, shares = _scores(q[..., rows, :] * scale, keys[..., columns, :])
        strips.hide(shares, rows, columns)
        largest = shares.max(axis=-1, keepdims=True)
        shares -= largest
        np.exp(shares, out=shares)
        normaliser = shares.sum(axis=-1, keepdims=True)
        shares /= normaliser
        logs[..., rows, :] = largest + np.log(normaliser)
        output[..., rows, :] = as_numpy(scores @ values[..., columns, :]).reshape(*shares.shape[:-1], -1)
    return mx.array(output.reshape(B, H, T, -1)), mx.array(logs)


def _scores(rows: mx.array, columns: mx.array) -> tuple[mx.array, Floats]:
    """Products of ``rows`` (B, groups, heads of one, R, D) with ``columns`` (B, groups, C, D), in one product a group.

    Twice the same memory: (B, groups, heads R, C) for products of MLX, and (B, groups, heads, R, C) to be written over.
    """
    B, groups, heads, R, D = rows.shape
    products = rows.reshape(B, groups, heads * R, D) @ mx.swapaxes(columns, -1, -2)
    return products, as_numpy(products).reshape(B, groups, heads, R, -1)


def _attention_gradients(
    primals: tuple[mx.array, ...],
    cotangent: mx.array,
    output: mx.array,
    logs: Floats,
    scale: float,
    strips: "_Strips",
) -> tuple[mx.array, ...]:
    """Gradients of queries, keys and values.

    ``dS = P (dO V^T - sum(dO O))`` with P recomputed from the normalisers (2205.14135, appendix B).
    """
    queries, keys, values, cotangent, output = without_graph(*primals, cotangent, output)
    B, H, T, D = queries.shape
    groups = keys.shape[1]
    q = queries.reshape(B, groups, H // groups, T, D)
    slope = cotangent.reshape(B, groups, H // groups, T, -1)
    offsets = as_numpy(mx.sum(cotangent * output, axis=-1)).reshape(B, groups, H // groups, T, 1)
    # Sums in numpy: an array of MLX would keep what it was computed from until the trace ends
    d_queries, d_keys, d_values = (np.zeros(array.shape, np.float32) for array in (q, keys, values))
    for rows, columns in strips:
        part, seen, d_out = q[..., rows, :] * scale, keys[..., columns, :], slope[..., rows, :]
        weights, shares = _scores(part, seen)
        strips.hide(shares, rows, columns)
        shares -= logs[..., rows, :]
        np.exp(shares, out=shares)
        slopes, d_scores = _scores(d_out, values[..., columns, :])
        d_scores -= offsets[..., rows, :]
        d_scores *= shares
        d_values[:, :, columns] += as_numpy(
            mx.swapaxes(weights, -1, -2) @ d_out.reshape(B, groups, -1, d_out.shape[-1])
        )
        d_keys[:, :, columns] += as_numpy(mx.swapaxes(slopes, -1, -2) @ part.reshape(B, groups, -1, D))
        d_queries[..., rows, :] = as_numpy(slopes @ seen).reshape(*shares.shape[:-1], D)
    d_queries *= scale
    return mx.array(d_queries.reshape(B, H, T, D)), mx.array(d_keys), mx.array(d_values)


class _Strips:
    """Strips of queries with the keys that any of them sees: ``(rows, columns)`` as slices.

    Queries stand at the last positions: with fewer of them than keys, the first sees what came before it.
    """

    def __init__(self, mask: mx.array | str | None, num_queries: int, num_keys: int) -> None:
        self._is_causal = isinstance(mask, str)
        self._seen = np.asarray(mask) if isinstance(mask, mx.array) else None  # (..., queries, keys)
        self._num_before = num_keys - num_queries
        starts = range(0, num_queries, STRIP)
        rows = [slice(start, min(num_queries, start + STRIP)) for start in starts]
        self._pairs = [(one, self._columns(one, num_keys)) for one in rows]

    def __iter__(self) -> Any:
        return iter(self._pairs)

    def _columns(self, rows: slice, num_keys: int) -> slice:
        if self._is_causal:
            return slice(0, self._num_before + rows.stop)
        if self._seen is None:
            return slice(0, num_keys)
        part = self._seen[..., rows, :]
        used = np.flatnonzero(part.any(axis=tuple(range(part.ndim - 1))))
        return slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, num_keys)

    def hide(self, scores: Floats, rows: slice, columns: slice) -> None:
        """Set the scores (B, groups, heads, rows, columns) of keys that a query does not see to the lowest number."""
        lowest = np.finfo(np.float32).min
        if self._is_causal:
            size = rows.stop - rows.start
            np.copyto(scores[..., columns.stop - size :], lowest, where=np.triu(np.ones((size, size), np.bool_), 1))
        elif self._seen is not None:
            hidden = ~self._seen[..., rows, columns]
            if hidden.ndim == 4:
                hidden = hidden[:, :, None]  # (B, 1, 1, rows, columns): the same for all heads
            np.copyto(scores, lowest, where=hidden)
