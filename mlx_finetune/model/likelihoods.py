"""How probable a model finds given tokens: losses token by token, of rows, of answers, of long texts in windows.

Rows of similar length go through the model together; what is added to fill a batch is never a target, and a causal
model never sees it. What all rows begin with, as examples in front of a question, goes through once where the layers
keep plain keys and values, and so does a question in front of each of its labels. Logits are formed for targets only, a
chunk at a time, so memory is that of ``BATCH_TOKENS`` positions and one chunk of logits. Losses are in nats, fp32,
summed in fp64 by whoever needs a sum.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from mlx_finetune.model.answers.caches import picked, plain_caches
from mlx_finetune.model.cpu.cpu_math import numpy_math
from mlx_finetune.model.cpu.second_core import SecondCore
from mlx_finetune.model.inside.segments import learned_positions
from mlx_finetune.model.inside.split import SplitModel

BATCH_TOKENS = 2048
MAX_WINDOW = 2048  # of a longer context: what a longer one adds to a perplexity is small, what it costs is not
_ROWS_AT_ONCE = 32
_WORTH_SHARING = 0.25  # of all tokens: what a common beginning saves for one forward pass more
_LEFT_OVER = 0.25  # of a question's tokens: what questions of unlike lengths may read again, all labels together

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

    def repeated(self, count: int) -> Sequence[Any] | None:
        """Caches with it for ``count`` rows; None where it is nothing."""
        return picked(self.caches, [0] * count) if self.num_tokens else None


@dataclass(frozen=True, slots=True)
class _Batch:
    """Places of rows that go together. With ``num_shared`` these come question after question, as many rows of each,
    which begin with so many tokens alike."""

    places: list[int]
    num_shared: int = 0


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

    def losses(
        self, rows: Sequence[Scored], step: Callable[[int], None] | None = None, *, together: int = 1
    ) -> list[Losses]:
        """``-log p(ids[i] | ids[:i])`` at the positions of each row, in the order of ``rows``.

        Every ``together`` rows in turn are of one question, which is read once where that saves enough. ``step`` is
        told how many rows are done.
        """

        def compute(thread: int, batch: _Batch) -> list[Losses]:
            its = [rows[place] for place in batch.places]
            split = self._splits[thread]
            if batch.num_shared:
                return self._questions(split, its, together, batch.num_shared, beginning)
            return self._batch(split, its, beginning.num_tokens, beginning.repeated(len(its)))

        def done(num_batches: int) -> None:
            if step is not None and num_batches:
                step(int(ends[num_batches - 1]))

        with self._forms():
            beginning = self._beginning(rows)
            batches = self._batches(rows, together, beginning.num_tokens)
            ends = np.cumsum([len(batch.places) for batch in batches])
            made = self._shared_out(batches, compute, done)
        places = [place for batch in batches for place in batch.places]
        found = dict(zip(places, (losses for batch in made for losses in batch), strict=True))
        return [found[place] for place in range(len(rows))]

    def _shared_out(
        self,
        batches: Sequence[_Batch],
        compute: Callable[[int, _Batch], list[Losses]],
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
        if not _is_worth_sharing(rows, num_tokens, 0):
            return _Beginning()
        split = self._splits[0]
        caches = plain_caches(split.model) if split.is_split else None
        if caches is None:
            return _Beginning()
        split.hidden(mx.array(rows[0].ids[None, :num_tokens]), caches)
        mx.eval([cache.state for cache in caches])
        return _Beginning(num_tokens, caches)

    def _batches(self, rows: Sequence[Scored], together: int, start: int) -> list[_Batch]:
        """Rows that go through the model together; those of one question share it where that saves enough."""
        split = self._splits[0]
        may_share = together > 1 and split.is_split and plain_caches(split.model) is not None
        questions = [range(first, first + together) for first in range(0, len(rows), together)] if may_share else []
        shared = {its: num_shared([rows[place] for place in its]) for its in questions}
        worth = [its for its in questions if _is_worth_sharing([rows[place] for place in its], shared[its], start)]
        batches = [
            _Batch([place for its in part for place in its], min(shared[its] for its in part))
            for part in _questions_by_length(worth, shared, together)
        ]
        inside = {place for batch in batches for place in batch.places}
        others = [place for place in range(len(rows)) if place not in inside]
        parts = batches_by_length([len(rows[place].ids) for place in others])
        return [*batches, *(_Batch([others[number] for number in part]) for part in parts)]

    def _questions(
        self, split: SplitModel, rows: Sequence[Scored], together: int, num_tokens: int, beginning: _Beginning
    ) -> list[Losses]:
        """Each question once, then what follows it in each of its ``together`` rows."""
        firsts = rows[::together]
        tokens = np.stack([row.ids[beginning.num_tokens : num_tokens] for row in firsts])
        caches = beginning.repeated(len(firsts)) or plain_caches(split.model)
        assert caches is not None, "the model keeps plain keys and values"
        split.hidden(mx.array(tokens), caches)
        mx.eval([cache.state for cache in caches])
        found: dict[int, Losses] = {}
        for part in batches_by_length([len(row.ids) for row in rows]):
            own = picked(caches, [place // together for place in part])
            losses = self._batch(split, [rows[place] for place in part], num_tokens, own)
            found |= dict(zip(part, losses, strict=True))
        return [found[place] for place in range(len(rows))]

    def _batch(
        self, split: SplitModel, rows: Sequence[Scored], start: int, caches: Sequence[Any] | None
    ) -> list[Losses]:
        """``caches`` have the first ``start`` tokens of each row."""
        longest = max(len(row.ids) for row in rows) - start
        tokens = np.zeros((len(rows), longest), np.int32)
        for place, row in enumerate(rows):
            tokens[place, : len(row.ids) - start] = row.ids[start:]
        # Hidden state i predicts token i + 1.
        sources = np.concatenate([place * longest + row.positions - 1 - start for place, row in enumerate(rows)])
        targets = np.concatenate([row.ids[row.positions] for row in rows]).astype(np.int32)
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


def _is_worth_sharing(rows: Sequence[Scored], num_tokens: int, start: int) -> bool:
    """Whether reading the first ``num_tokens`` of all ``rows`` once saves enough, where ``start`` are read anyway."""
    saved = (num_tokens - start) * (len(rows) - 1)
    return saved > 0 and saved >= _WORTH_SHARING * sum(len(row.ids) - start for row in rows)


def _questions_by_length(questions: Sequence[range], shared: Mapping[range, int], together: int) -> list[list[range]]:
    """Questions that are read together, up to the length of the shortest; what is left of the others is read with each
    of their ``together`` rows."""
    parts: list[list[range]] = []
    for question in sorted(questions, key=lambda one: -shared[one]):
        last = parts[-1] if parts else []
        longest = shared[last[0]] if last else 0
        is_near = bool(last) and (longest - shared[question]) * together <= _LEFT_OVER * longest
        if is_near and len(last) < _ROWS_AT_ONCE and (len(last) + 1) * longest <= BATCH_TOKENS:
            last.append(question)
        else:
            parts.append([question])
    return parts


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
