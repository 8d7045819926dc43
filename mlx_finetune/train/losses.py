"""Sums of cross-entropy, never means, at targets only; and the count they are divided by at the very end.

Which tokens are targets, and the shift by one, is ``Batch.target_positions``: hidden state ``i`` predicts token
``i + 1``. mlx-lm's ``default_loss`` forms logits for every position and counts one padding token a row; this does
neither. Nothing of size B x T x V ever exists: logits are formed a chunk of rows at a time, and a chunk's gradient with
respect to its hidden states is formed with them, so that the backward pass keeps H numbers a target and not V.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten
from numpy.typing import NDArray

from mlx_finetune.hardware.planning.blockwise_memory import CHUNK_BYTES
from mlx_finetune.hardware.planning.graph_memory import GPU_CHUNKS
from mlx_finetune.model.cpu.cpu_math import Floats, as_numpy, without_graph
from mlx_finetune.model.heads.score import find_head
from mlx_finetune.model.inside.parts import is_above
from mlx_finetune.model.inside.split import SplitModel
from mlx_finetune.train.optim import FlatArrays

Arrays = Sequence[mx.array]
#: ``logits(outer, hidden)``: (N, H) to (N, V), with the parameters ``outer`` in the model.
Logits = Callable[[FlatArrays, mx.array], mx.array]
#: ``slopes(formed, *given)``: what logits (n, V) cost, and their gradient; ``given`` are (n,), targets the first.
Slopes = Callable[..., tuple[Any, mx.array]]


@dataclass(frozen=True, slots=True)
class Head:
    """What a loss needs of the model above its hidden states.

    ``outer`` are the learned parameters outside the blocks; ``uses_numpy`` takes exponentials there, on a CPU only;
    ``is_learning`` says whether a gradient is wanted.
    """

    split: SplitModel
    outer: FlatArrays
    uses_numpy: bool
    is_learning: bool

    def cross_entropy(self, hidden: mx.array, targets: mx.array, z_loss: float = 0.0) -> mx.array:
        """``sum_i logsumexp(l_i) - l_i[t_i]`` in nats over rows (N, H) and targets (N,); a negative one is padding.

        Where there is something to learn, ``z_loss`` times the sum of ``logsumexp(l_i)^2`` is added.
        """
        size, uses_numpy = self.split.vocab_size, self.uses_numpy and hidden.dtype == mx.float32
        if self.is_learning:
            learned = (self._logits, self._below(), hidden, targets)
            return cross_entropy(*learned, vocab_size=size, uses_numpy=uses_numpy, z_loss=z_loss)
        return cross_entropy_only(self._logits, hidden, targets, vocab_size=size, uses_numpy=uses_numpy)

    def log_probs(self, hidden: mx.array, targets: mx.array) -> mx.array:
        """``l_i[t_i] - logsumexp(l_i)`` in nats, (N,) fp32, of rows (N, H) and targets (N,); 0 for a negative one."""
        size, uses_numpy = self.split.vocab_size, self.uses_numpy and hidden.dtype == mx.float32
        if self.is_learning:
            return log_probs(self._logits, self._below(), hidden, targets, vocab_size=size, uses_numpy=uses_numpy)
        return log_probs_only(self._logits, hidden, targets, vocab_size=size, uses_numpy=uses_numpy)

    def scores(self, hidden: mx.array) -> mx.array:
        """The numbers of the score head, (..., n) in fp32, of states (..., H); the model has one where it is wanted."""
        head = find_head(self.split.model)
        assert head is not None, "an objective that scores says so with num_outputs"
        return head(hidden)

    def _below(self) -> FlatArrays:
        """The parameters that logits depend on."""
        return {name: value for name, value in self.outer.items() if not is_above(name)}

    def _logits(self, outer: FlatArrays, hidden: mx.array) -> mx.array:
        if outer:
            self.split.model.update(tree_unflatten(list(outer.items())))
        return self.split.logits(hidden)


def chunk_rows(vocab_size: int, *, uses_numpy: bool) -> int:
    """Rows of logits formed at once, at least 16."""
    return max(16, CHUNK_BYTES * (1 if uses_numpy else GPU_CHUNKS) // (4 * vocab_size))


def cross_entropy(
    logits: Logits,
    outer: FlatArrays,
    hidden: mx.array,
    targets: mx.array,
    *,
    vocab_size: int,
    uses_numpy: bool,
    z_loss: float = 0.0,
) -> mx.array:
    """``sum_i logsumexp(l_i) - l_i[t_i]`` over the targets ``t`` (N,) with ``t_i >= 0``, a scalar in fp32.

    ``z_loss`` times ``sum_i logsumexp(l_i)^2`` is added (Chowdhery et al., 2204.02311, section 5).

    ``hidden`` is (N, H), one row a target; rows whose target is negative are padding and count nothing. Differentiable
    in ``outer`` and ``hidden``; the gradient is formed in the forward pass, so call ``cross_entropy_only`` where none
    is wanted. ``uses_numpy`` takes the exponentials there (``model.cpu.cpu_math`` says why).
    """
    names = list(outer)

    @mx.custom_function
    def summed(hidden: mx.array, targets: mx.array, *values: mx.array) -> tuple[mx.array, ...]:
        learned = dict(zip(names, values, strict=True))
        chunked, slopes = (_chunked_in_numpy, numpy_slopes) if uses_numpy else (_chunked, fused_slopes)
        rows = chunk_rows(vocab_size, uses_numpy=uses_numpy)
        found, *gradients = chunked(logits, learned, hidden, (targets,), partial(slopes, z_loss=z_loss), rows)
        return mx.array(sum(found, 0.0)), *gradients

    @summed.vjp  # pyright: ignore[reportUntypedFunctionDecorator]
    def summed_vjp(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, ...]:
        """The gradients that the forward pass formed, times the cotangent of the sum."""
        _, d_hidden, *d_outer = outputs
        scale = cotangents[0]
        slopes = [(scale * slope).astype(slope.dtype) for slope in (d_hidden, *d_outer)]
        return (slopes[0], mx.zeros_like(primals[1]), *slopes[1:])

    return cast("tuple[mx.array, ...]", summed(hidden, targets, *outer.values()))[0]


def cross_entropy_only(
    logits: Logits, hidden: mx.array, targets: mx.array, *, vocab_size: int, uses_numpy: bool
) -> mx.array:
    """The same sum without a gradient, chunk by chunk."""
    total = mx.array(0.0)
    rows = chunk_rows(vocab_size, uses_numpy=uses_numpy)
    for start in range(0, hidden.shape[0], rows):
        chosen = targets[start : start + rows]
        scores = logits({}, hidden[start : start + rows]).astype(mx.float32)
        if uses_numpy:
            total = total + mx.array(_numpy_loss(scores, chosen))
            mx.eval(total)
        else:
            total = total + mx.sum(mx.where(chosen >= 0, fused_losses(scores, mx.maximum(chosen, 0)), 0.0))
    return total


def _chunked(
    logits: Logits, outer: FlatArrays, hidden: mx.array, given: Arrays, slopes: Slopes, rows: int
) -> tuple[Any, ...]:
    """What each chunk costs, then the gradient of all for ``hidden`` (N, H), and one for each of ``outer``."""
    found: list[mx.array] = []
    d_hidden: list[mx.array] = []
    d_outer = [mx.zeros_like(value) for value in outer.values()]
    for start in range(0, hidden.shape[0], rows):
        part, *known = (one[start : start + rows] for one in (hidden, *given))
        if found:  # chunk after chunk, or MLX might form all logits first
            part = cast("list[mx.array]", mx.depends([part], [found[-1], d_hidden[-1], *d_outer]))[0]
        formed = logits(outer, part)
        losses, slope = slopes(formed.astype(mx.float32), *known)
        d_part, *d_values = _pull_back(logits, outer, part, slope.astype(formed.dtype))
        found.append(losses)
        d_hidden.append(d_part)
        d_outer = [kept + new for kept, new in zip(d_outer, d_values, strict=True)]
    return (found, mx.concatenate(d_hidden, axis=0) if d_hidden else mx.zeros_like(hidden), *d_outer)


def _chunked_in_numpy(
    logits: Logits, outer: FlatArrays, hidden: mx.array, given: Arrays, slopes: Slopes, rows: int
) -> tuple[Any, ...]:
    """The same, each chunk evaluated and its graph dropped; an array of MLX would keep it until the trace ends."""
    hidden, *given = without_graph(hidden, *given)
    found: list[Any] = []
    d_hidden = np.empty(hidden.shape, np.float32)
    d_outer = [np.zeros(value.shape, np.float32) for value in outer.values()]
    for start in range(0, hidden.shape[0], rows):
        part, *known = (one[start : start + rows] for one in (hidden, *given))
        losses, slope = slopes(logits(outer, part), *known)
        d_part, *d_values = _pull_back(logits, outer, part, slope)
        found.append(losses)
        d_hidden[start : start + rows] = as_numpy(d_part)
        _add_to(d_outer, d_values)
        del slope, d_part, d_values  # or their logits would be there beside the next chunk's
    return (found, mx.array(d_hidden), *(mx.array(value) for value in d_outer))


def _add_to(sums: list[Floats], values: list[mx.array]) -> None:
    """Add each of ``values`` in place. A function, so that no name keeps the last of them, its graph and its logits."""
    for kept, new in zip(sums, values, strict=True):
        kept += as_numpy(new)


def _pull_back(logits: Logits, outer: FlatArrays, part: mx.array, slope: mx.array) -> list[mx.array]:
    """Gradients for ``part`` and each of ``outer`` from that of the logits."""
    names = list(outer)

    def scores(part: mx.array, *values: mx.array) -> mx.array:
        return logits(dict(zip(names, values, strict=True)), part)

    return mx.vjp(scores, [part, *outer.values()], [slope])[1]


def log_probs(
    logits: Logits, outer: FlatArrays, hidden: mx.array, targets: mx.array, *, vocab_size: int, uses_numpy: bool
) -> mx.array:
    """``l_i[t_i] - logsumexp(l_i)`` for each target, (N,) fp32; 0 where the target is negative, which is padding.

    Differentiable in ``outer`` and ``hidden``, each target with a cotangent of its own. Without ``outer`` the slopes of
    ``hidden`` are formed with the values, H numbers a target. With ``outer`` the logits are formed once more in the
    backward pass: the gradient of a head is a sum over targets that can be weighted only when their weights are known.
    """
    names, rows = list(outer), chunk_rows(vocab_size, uses_numpy=uses_numpy)

    @mx.custom_function
    def found(hidden: mx.array, targets: mx.array, *values: mx.array) -> tuple[mx.array, ...]:
        learned = dict(zip(names, values, strict=True))
        if learned:
            return (_log_probs(logits, learned, hidden, targets, rows=rows, uses_numpy=uses_numpy),)
        weights = mx.ones((hidden.shape[0],))
        values_found, d_hidden, *_ = _weighted(logits, {}, hidden, targets, weights, rows=rows, uses_numpy=uses_numpy)
        return values_found, d_hidden

    @found.vjp  # pyright: ignore[reportUntypedFunctionDecorator]
    def found_vjp(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, ...]:
        hidden, targets, *values = primals
        weights = cotangents[0] if isinstance(cotangents, list | tuple) else cotangents
        if not values:
            slope = (weights[:, None] * outputs[1]).astype(hidden.dtype)
            return slope, mx.zeros_like(targets)
        learned = dict(zip(names, values, strict=True))
        _, *slopes = _weighted(logits, learned, hidden, targets, weights, rows=rows, uses_numpy=uses_numpy)
        slopes = [slope.astype(like.dtype) for slope, like in zip(slopes, (hidden, *values), strict=True)]
        return (slopes[0], mx.zeros_like(targets), *slopes[1:])

    return cast("tuple[mx.array, ...]", found(hidden, targets, *outer.values()))[0]


def log_probs_only(
    logits: Logits, hidden: mx.array, targets: mx.array, *, vocab_size: int, uses_numpy: bool
) -> mx.array:
    """The same without a gradient."""
    rows = chunk_rows(vocab_size, uses_numpy=uses_numpy)
    return _log_probs(logits, {}, hidden, targets, rows=rows, uses_numpy=uses_numpy)


def _log_probs(
    logits: Logits, outer: FlatArrays, hidden: mx.array, targets: mx.array, *, rows: int, uses_numpy: bool
) -> mx.array:
    """Chunk by chunk, each evaluated (in numpy) or behind the one before it."""
    if uses_numpy:
        (hidden,) = without_graph(hidden)
    found: list[mx.array] = []
    for start in range(0, hidden.shape[0], rows):
        part, chosen = hidden[start : start + rows], targets[start : start + rows]
        if found and not uses_numpy:
            part = cast("list[mx.array]", mx.depends([part], [found[-1]]))[0]
        scores = logits(outer, part).astype(mx.float32)
        if uses_numpy:
            found.append(mx.array(-_numpy_losses(scores, chosen)[0]))
        else:
            found.append(-mx.where(chosen >= 0, fused_losses(scores, mx.maximum(chosen, 0)), 0.0))
    return mx.concatenate(found) if found else mx.zeros((0,))


def _weighted(
    logits: Logits,
    outer: FlatArrays,
    hidden: mx.array,
    targets: mx.array,
    weights: mx.array,
    *,
    rows: int,
    uses_numpy: bool,
) -> tuple[mx.array, ...]:
    """Log-probabilities (N,), and the gradients of their sum, each times its weight: for ``hidden`` and ``outer``."""
    chunked, slopes = (_chunked_in_numpy, _numpy_weighted) if uses_numpy else (_chunked, _fused_weighted)
    found, *gradients = chunked(logits, outer, hidden, (targets, weights), slopes, rows)
    return (mx.concatenate(found) if found else mx.zeros((0,)), *gradients)


def _fused_weighted(scores: mx.array, targets: mx.array, weights: mx.array) -> tuple[mx.array, mx.array]:
    """The log-probability of each row (n,), and its gradient for the scores (n, V) times its weight."""
    losses, slope = _fused_row_slopes(scores, targets)
    return -losses, -weights[:, None] * slope


def _numpy_weighted(scores: mx.array, targets: mx.array, weights: mx.array) -> tuple[mx.array, mx.array]:
    """The same in numpy, the gradient in the place of ``scores``."""
    losses, slope = _numpy_row_slopes(scores, targets)
    values = as_numpy(slope)
    values *= -as_numpy(weights)[:, None]
    return mx.array(-losses), slope


def fused_losses(scores: mx.array, targets: mx.array) -> mx.array:
    """``logsumexp(l_i) - l_i[t_i]``, (N,) fp32; one kernel on a GPU."""
    return mx.fast.cross_entropy(scores, targets)


def fused_slopes(scores: mx.array, targets: mx.array, z_loss: float = 0.0) -> tuple[mx.array, mx.array]:
    """Summed loss of the rows with a target, and its gradient for the scores (N, V).

    That is ``softmax(l) - onehot(t)``, with z-loss ``(1 + 2 z logsumexp(l)) softmax(l) - onehot(t)``.
    """
    losses, slope = _fused_row_slopes(scores, targets, z_loss)
    return mx.sum(losses), slope


def _fused_row_slopes(scores: mx.array, targets: mx.array, z_loss: float = 0.0) -> tuple[mx.array, mx.array]:
    """The loss of each row, (N,), 0 without a target, and the same gradient."""
    counts = (targets >= 0)[:, None]
    safe = mx.maximum(targets, 0)
    losses = fused_losses(scores, safe)
    normaliser = losses[:, None] + mx.take_along_axis(scores, safe[:, None], axis=1)  # (N, 1)
    one_hot = safe[:, None] == mx.arange(scores.shape[1])[None]
    shares = mx.exp(scores - normaliser)
    if z_loss:
        losses = losses + z_loss * mx.square(normaliser[:, 0])
        shares = (1 + 2 * z_loss * normaliser) * shares
    slope = mx.where(counts, shares - one_hot, 0.0)
    return mx.where(counts[:, 0], losses, 0.0), slope


def numpy_slopes(scores: mx.array, targets: mx.array, z_loss: float = 0.0) -> tuple[float, mx.array]:
    """The same in numpy; the gradient is ``scores`` (N, V) fp32 themselves, whose values are written over in place."""
    losses, slope = _numpy_row_slopes(scores, targets, np.float64, z_loss)
    return float(losses[np.asarray(targets) >= 0].sum()), slope


def _numpy_row_slopes(
    scores: mx.array, targets: mx.array, dtype: type[np.floating[Any]] = np.float32, z_loss: float = 0.0
) -> tuple[NDArray[Any], mx.array]:
    """The loss of each row, (N,) of ``dtype``, 0 without a target, and the same gradient."""
    largest = as_numpy(scores).max(axis=1, keepdims=True) if z_loss else None
    losses, values, normaliser = _numpy_losses(scores, targets, dtype)
    chosen: NDArray[np.int32] = np.asarray(targets)
    counts = np.flatnonzero(chosen >= 0)
    values /= normaliser
    if largest is not None:
        logs = largest + np.log(normaliser)
        losses[counts] += z_loss * np.square(logs[counts, 0], dtype=np.float64)
        values *= 1 + 2 * z_loss * logs
    values[counts, chosen[counts]] -= 1
    values[chosen < 0] = 0
    return losses, scores


def _numpy_loss(scores: mx.array, targets: mx.array) -> float:
    """Summed loss, in fp64."""
    losses, _, _ = _numpy_losses(scores, targets, np.float64)
    return float(losses[np.asarray(targets) >= 0].sum())


def _numpy_losses(
    scores: mx.array, targets: mx.array, dtype: type[np.floating[Any]] = np.float32
) -> tuple[NDArray[Any], Floats, Floats]:
    """The loss of each row (0 without a target), ``exp(l - max)`` in the place of ``scores``, and its sums (N, 1)."""
    mx.eval(scores, targets)
    values: Floats = np.asarray(scores)
    chosen: NDArray[np.int32] = np.asarray(targets)
    counts = np.flatnonzero(chosen >= 0)
    values -= values.max(axis=1, keepdims=True)
    picked = values[counts, chosen[counts]].astype(np.float64)
    np.exp(values, out=values)
    normaliser = values.sum(axis=1, keepdims=True)
    losses = np.zeros(len(chosen), dtype)
    losses[counts] = np.log(normaliser[counts, 0], dtype=np.float64) - picked
    return losses, values, normaliser
