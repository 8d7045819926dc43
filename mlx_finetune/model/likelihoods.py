"""How probable a model finds given tokens: losses token by token, of rows, of answers, of long texts in windows.

Rows of similar length go through the model together; what is added to fill a batch is never a target, and a causal
model never sees it. What all rows begin with, as examples in front of a question, goes through once where the layers
keep plain keys and values. Logits are formed for targets only, a chunk at a time, so memory is that of ``BATCH_TOKENS``
positions and one chunk of logits. Losses are in nats, fp32, summed in fp64 by whoever needs a sum.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from mlx_finetune.model.answers.caches import plain_caches, repeated
from mlx_finetune.model.cpu.cpu_math import numpy_math
from mlx_finetune.model.cpu.second_core import SecondCore
from mlx_finetune.model.inside.segments import learned_positions
from mlx_finetune.model.inside.split import SplitModel

BATCH_TOKENS = 2048
MAX_WINDOW = 2048  # of a longer context: what a longer one adds to a perplexity is small, what it costs is not
_ROWS_AT_ONCE = 32
_WORTH_SHARING = 0.25  # of all tokens: what a common beginning saves for one forward pass more

Ids = NDArray[np.int32]
Losses = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scored:
    """A sequence of tokens and which of them are scored: ``positions`` rise and are all above 0."""

    ids: Ids
    positions: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Beginning:
    """What the first ``num_tokens`` of every row left in the ``caches``; nothing where rows are read whole."""

    num_tokens: int = 0
    caches: Sequence[Any] = ()


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens ``[start, end)`` of a text, of which those from ``first`` on are scored."""

    start: int
    end: int
    first: int


class ChunkRows(Protocol):
    """Rows of logits formed at once for a vocabulary; ``train.losses.chunk_rows``, which is above this module."""

    def __call__(self, vocab_size: int, *, uses_numpy: bool) -> int: ...


class LikelihoodModel:
    """A model as it is now, with or without its adapter, ready to score tokens."""

    def __init__(self, model: nn.Module, chunk_rows: ChunkRows, second: SecondCore | None = None) -> None:
        """On a CPU batches are shared out to two threads where there is a ``second``."""
        self._model = model
        self._splits = [SplitModel(model)]
        self._chunk_rows = chunk_rows
        self._on_cpu = mx.default_device().type == mx.DeviceType.cpu
        self._second = second if self._on_cpu else None

    def losses(self, rows: Sequence[Scored], step: Callable[[int], None] | None = None) -> list[Losses]:
        """``-log p(ids[i] | ids[:i])`` at the positions of each row, in the order of ``rows``.

        ``step`` is told how many rows are done.
        """
        batches = batches_by_length([len(row.ids) for row in rows])
        ends = np.cumsum([len(batch) for batch in batches])

        def compute(thread: int, batch: list[int]) -> list[Losses]:
            return self._batch(self._splits[thread], [rows[place] for place in batch], beginning)

        def done(num_batches: int) -> None:
            if step is not None and num_batches:
                step(int(ends[num_batches - 1]))

        with self._forms():
            beginning = self._beginning(rows)
            made = self._shared_out(batches, compute, done)
        places = [place for batch in batches for place in batch]
        found = dict(zip(places, (losses for batch in made for losses in batch), strict=True))
        return [found[place] for place in range(len(rows))]

    def _shared_out(
        self,
        batches: Sequence[list[int]],
        compute: Callable[[int, list[int]], list[Losses]],
        done: Callable[[int], None],
    ) -> list[list[Losses]]:
        """Each batch computed, by two threads where there are two; ``done`` is told how many."""
        if self._second is None or len(batches) < 2:
            made: list[list[Losses]] = []
            for batch in batches:
                made.append(compute(0, batch))
                done(len(made))
            return made
        if len(self._splits) == 1:
            mx.eval(self._model.parameters())  # streams belong to threads
            self._splits.append(self._splits[0].twin())
        return self._second.map(batches, compute, done)

    def text_losses(
        self, texts: Sequence[Ids], window: int, stride: int, step: Callable[[int], None] | None = None
    ) -> list[tuple[Losses, NDArray[np.int64]]]:
        """Of each text its losses and the positions they belong to; see ``windows``. ``step`` counts windows."""
        pieces = [windows(len(ids), window, stride) for ids in texts]
        rows = [
            Scored(ids[one.start : one.end], np.arange(one.first, one.end) - one.start)
            for ids, own in zip(texts, pieces, strict=True)
            for one in own
        ]
        losses = iter(self.losses(rows, step))
        found: list[tuple[Losses, NDArray[np.int64]]] = []
        for own in pieces:
            places = [np.arange(one.first, one.end) for one in own]
            scored = [next(losses) for _ in own]
            found.append(
                (np.concatenate([np.empty(0, np.float32), *scored]), np.concatenate([np.empty(0, np.int64), *places]))
            )
        return found

    def _beginning(self, rows: Sequence[Scored]) -> _Beginning:
        """The common beginning of all rows, read once where that saves enough."""
        num_tokens = num_shared(rows)
        saved = num_tokens * (len(rows) - 1)
        if not saved or saved < _WORTH_SHARING * sum(len(row.ids) for row in rows):
            return _Beginning()
        split = self._splits[0]
        caches = plain_caches(split.model) if split.is_split else None
        if caches is None:
            return _Beginning()
        split.hidden(mx.array(rows[0].ids[None, :num_tokens]), caches)
        mx.eval([cache.state for cache in caches])
        return _Beginning(num_tokens, caches)

    def _batch(self, split: SplitModel, rows: Sequence[Scored], beginning: _Beginning) -> list[Losses]:
        start = beginning.num_tokens
        longest = max(len(row.ids) for row in rows) - start
        tokens = np.zeros((len(rows), longest), np.int32)
        for place, row in enumerate(rows):
            tokens[place, : len(row.ids) - start] = row.ids[start:]
        # Hidden state i predicts token i + 1.
        sources = np.concatenate([place * longest + row.positions - 1 - start for place, row in enumerate(rows)])
        targets = np.concatenate([row.ids[row.positions] for row in rows]).astype(np.int32)
        caches = repeated(beginning.caches, len(rows)) if start else None
        hidden = split.hidden(mx.array(tokens), caches)  # (B, T, H)
        chosen = hidden.reshape(-1, hidden.shape[-1])[mx.array(sources)]  # (N, H)
        mx.eval(chosen)
        losses = head_losses(split, chosen, targets, self._chunk_rows)
        return np.split(losses, np.cumsum([len(row.positions) for row in rows])[:-1])

    def _forms(self) -> AbstractContextManager[None]:
        return numpy_math(self._model) if self._on_cpu else nullcontext()


def head_losses(split: SplitModel, hidden: mx.array, targets: NDArray[np.int32], chunk_rows: ChunkRows) -> Losses:
    """``-log p(target)`` of rows of hidden states (N, H) and their next tokens (N,), a chunk of logits at a time."""
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    size = chunk_rows(split.vocab_size, uses_numpy=on_cpu)
    losses = np.empty(len(targets), np.float32)
    for start in range(0, len(targets), size):
        part = slice(start, start + size)
        scores = split.logits(hidden[part]).astype(mx.float32)
        losses[part] = _numpy_losses(scores, targets[part]) if on_cpu else _losses(scores, targets[part])
    return losses


def num_shared(rows: Sequence[Scored]) -> int:
    """Tokens that all rows begin with and behind which each is scored, in front of the token that predicts first."""
    if not rows:
        return 0
    limit = min(int(row.positions[0]) if len(row.positions) else len(row.ids) for row in rows) - 1
    return max(0, min(limit, num_equal([row.ids for row in rows])))


def num_equal(rows: Sequence[Ids]) -> int:
    """Tokens that all ``rows``, of which there is one at least, begin with."""
    shortest = min(len(row) for row in rows)
    stacked = np.stack([row[:shortest] for row in rows])
    differs = np.flatnonzero((stacked != stacked[0]).any(axis=0))
    return int(differs[0]) if len(differs) else shortest


def window_of(model: nn.Module, context_length: int | None) -> int:
    """The window for a text: the model's context, at most 2048 tokens."""
    learned = learned_positions(model)
    limits = [MAX_WINDOW, context_length, learned.num_positions if learned else None]
    return min(limit for limit in limits if limit is not None)


def stride_of(window: int) -> int:
    """Half a window: every token but the first of all is predicted from at least half a window of text."""
    return max(1, window // 2)


def windows(num_tokens: int, window: int, stride: int) -> list[Window]:
    """Windows that begin every ``stride`` tokens; each scores the tokens that no earlier one has scored.

    The first token of all is never scored, and where ``stride`` is ``window`` the first of each window is not either:
    those are then independent chunks.
    """
    assert 0 < stride <= window
    found: list[Window] = []
    end = 0
    for start in range(0, num_tokens, stride):
        first = max(end, start + 1)
        end = min(start + window, num_tokens)
        if first < end:
            found.append(Window(start, end, first))
        if end == num_tokens:
            break
    return found


def batches_by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Places of rows that go together: neighbours by length, as many as fit into ``BATCH_TOKENS``, at least one."""
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        last = batches[-1] if batches else []
        fits = last and len(last) < _ROWS_AT_ONCE and (len(last) + 1) * lengths[last[0]] <= BATCH_TOKENS
        if fits:
            last.append(place)
        else:
            batches.append([place])
    return batches


def _losses(scores: mx.array, targets: NDArray[np.int32]) -> Losses:
    return np.asarray(mx.fast.cross_entropy(scores, mx.array(targets)))


def _numpy_losses(scores: mx.array, targets: NDArray[np.int32]) -> Losses:
    """The same with exponentials in numpy, which MLX's CPU backend is slow at; ``scores`` are written over."""
    mx.eval(scores)
    values: NDArray[np.float32] = np.asarray(scores)
    values -= values.max(axis=1, keepdims=True)
    picked = values[np.arange(len(targets)), targets].astype(np.float64)
    np.exp(values, out=values)
    return (np.log(values.sum(axis=1), dtype=np.float64) - picked).astype(np.float32)
