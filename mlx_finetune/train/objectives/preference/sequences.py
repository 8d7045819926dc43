"""Rows of two answers as arrays: log-probabilities of both, with their prompt computed once or twice.

Shared, a row is one sequence prefix + first + second (``model.inside.shared_prefix``). Apart, it becomes two sequences
of the same microbatch. Both give (B, 2) log-probabilities of whole answers.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from mlx_finetune.dataset.pairs import FIRST, PREFIX, SECOND
from mlx_finetune.dataset.stream import Batch
from mlx_finetune.model.inside import shared_prefix
from mlx_finetune.train.losses import Head
from mlx_finetune.train.objective import Arrays

Lengths = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Sequences:
    """Whether the prompt of a row's two answers is shared; ``num_answers`` is 1 for first answers alone."""

    is_shared: bool
    num_answers: int = 2

    def unfold(self, batch: Batch) -> Batch:
        """The rows where the prompt is shared, else (2 B, ...): first and second answer of each row in turn."""
        if self.is_shared:
            return batch
        parts = [_without(batch, row, answer) for row in range(len(batch.tokens)) for answer in (FIRST, SECOND)]
        return _side_by_side(batch, parts, np.repeat(batch.values, 2, axis=0))

    def arrays(self, batch: Batch, parts: int) -> tuple[Arrays, NDArray[np.float64], Lengths]:
        """Of an unfolded batch: positions that predict, targets, and of which answer (N,); with the prompt shared the
        part and the position of each input too, (B, T). Then the rows' values (B, K) and tokens of answers (B, 2)."""
        values = batch.values if self.is_shared else batch.values[:: self.num_answers]
        where, owners = self._targets(batch)
        lengths = np.bincount(owners, minlength=self.num_answers * len(values)).reshape(-1, self.num_answers)
        flat = batch.tokens[:, 1:].reshape(-1)
        sources = where.copy()
        if self.is_shared:
            sources = self._sources(batch, where)
        targets = flat[where]
        if parts:
            size = -(-batch.num_positions // parts)
            more = (0, max(1, -(-len(where) // size)) * size - len(where))
            sources, owners = np.pad(sources, more), np.pad(owners, more)
            targets = np.pad(targets, more, constant_values=-1)
        found = [sources.astype(np.int32), targets.astype(np.int32), owners.astype(np.int32)]
        if self.is_shared:
            found += _places(batch)
        return tuple(mx.array(one) for one in found), values, lengths

    def around(
        self, model: nn.Module, segment_ids: mx.array, *arrays: mx.array
    ) -> AbstractContextManager[Sequence[object]]:
        """What keeps the second answer from seeing the first: parts and positions stand behind the first three."""
        del segment_ids
        return shared_prefix.parts_apart(model, arrays[3], arrays[4])

    def log_probs(self, head: Head, hidden: mx.array, num_rows: int, *arrays: mx.array) -> mx.array:
        """``sum log pi(y | x)`` over the tokens of the answers of each row, (B, 2) fp32. ``hidden`` is (B', T, H)."""
        sources, targets, owners = arrays[:3]
        rows = mx.take(hidden.reshape(-1, hidden.shape[-1]), sources, axis=0)  # (N, H)
        found = head.log_probs(rows, targets)  # (N,)
        # A product with booleans and not a scatter: on a GPU that adds in any order
        own = owners[None, :] == mx.arange(self.num_answers * num_rows)[:, None]  # (2 B, N)
        return mx.sum(mx.where(own, found[None, :], 0.0), axis=1).reshape(num_rows, self.num_answers)

    def _targets(self, batch: Batch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where a target stands in the flat (B, T) of tokens after the first, and the answer it belongs to."""
        where = np.flatnonzero(batch.loss_mask[:, 1:] & (batch.segment_ids[:, 1:] > 0))
        width = batch.tokens.shape[1] - 1
        row, token = where // width, where % width + 1
        if not self.is_shared:
            return where, row
        borders = (batch.values[:, PREFIX] + batch.values[:, FIRST]).astype(np.int64)
        return where, 2 * row + (token >= borders[row])

    def _sources(self, batch: Batch, where: NDArray[np.int64]) -> NDArray[np.int64]:
        """The position before each target, which for the first token of a second answer is the last of its prefix."""
        width = batch.tokens.shape[1] - 1
        row, token = where // width, where % width + 1
        prefix = batch.values[:, PREFIX].astype(np.int64)
        borders = prefix + batch.values[:, FIRST].astype(np.int64)
        return np.where(token == borders[row], row * width + prefix[row] - 1, where)


def _places(batch: Batch) -> list[NDArray[np.int32]]:
    """The part of each input and its position, (B, T) each; padding goes on behind the second answer."""
    prefix, first = (batch.values[:, column, None].astype(np.int32) for column in (PREFIX, FIRST))
    place = np.arange(batch.tokens.shape[1] - 1, dtype=np.int32)[None]
    is_second = place >= prefix + first
    parts = np.where(
        place < prefix, shared_prefix.PREFIX, np.where(is_second, shared_prefix.SECOND, shared_prefix.FIRST)
    )
    return [parts.astype(np.int32), np.where(is_second, place - first, place).astype(np.int32)]


def first_answers(batch: Batch) -> Batch:
    """The rows without their second answers."""
    parts = [_without(batch, row, FIRST) for row in range(len(batch.tokens))]
    return _side_by_side(batch, parts, batch.values)


def _without(batch: Batch, row: int, answer: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Tokens and mask of the prefix with one of the answers."""
    prefix, first, second = (int(batch.values[row, column]) for column in (PREFIX, FIRST, SECOND))
    start = prefix if answer == FIRST else prefix + first
    size = first if answer == FIRST else second
    chosen = np.r_[0:prefix, start : start + size]
    return batch.tokens[row, chosen], batch.loss_mask[row, chosen]


def _side_by_side(
    batch: Batch, parts: Sequence[tuple[NDArray[np.int32], NDArray[np.bool_]]], values: NDArray[np.float64]
) -> Batch:
    """A batch of these sequences; few widths, because a GPU's functions are compiled for each."""
    width, longest = batch.tokens.shape[1] - 1, max((len(ids) - 1 for ids, _ in parts), default=1)
    step = max(8, 1 << (width // 8).bit_length())
    shape = (len(parts), min(width, -(-longest // step) * step) + 1)
    tokens, mask, segments = np.zeros(shape, np.int32), np.zeros(shape, np.bool_), np.zeros(shape, np.int32)
    for place, (ids, own) in enumerate(parts):
        tokens[place, : len(ids)], mask[place, : len(ids)], segments[place, : len(ids)] = ids, own, 1
    return replace(batch, tokens=tokens, loss_mask=mask, segment_ids=segments, values=values, entering=None)
