"""Many answers at once: one forward pass gives each of them its next token.

The weights are read once for all rows, which is what a token costs. Rows come and go while others go on: every
``step`` reads at most ``PREFILL_TOKENS`` tokens of new prompts and then says one token of every answer. Long prompts
are read alone and in parts; short ones together, which takes half the time, where all layers keep keys and values
only, so that padding never meets a layer with a state. The caches are mlx-lm's. What draws, follows a grammar and ends
an answer is ``generate.Answer``, as for one by one: the same tokens, up to ties within the rounding of the products.

It is not mlx-lm's ``BatchGenerator``: that one computes a token ahead, when a grammar does not know yet what the last
one was, and importing it costs 2 s. Price: the same gap between two tokens on a GPU as in ``generate``. Names of
modules are replaced meanwhile and MLX's streams belong to a thread: use a decoder in one thread, and no other model
beside it.
"""

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_finetune.dataset.tokens import Tokenizer
from mlx_finetune.errors import MlxftError, ModelError
from mlx_finetune.model.answers.caches import extend, keep, merged, plain_caches, taken
from mlx_finetune.model.answers.generate import PREFILL_TOKENS, Answer, Piece, PromptCache, Request, cpu_forms
from mlx_finetune.model.upstream import make_prompt_cache

SHORT_PROMPT = 128  # tokens; two of 100 together take four fifths of the time of one by one, two of 40 half of it
_LARGEST_PADDING = 1.5  # positions over tokens
_TRIED = "_answers_rows"  # an attribute of models that do
# Logits in a batch may differ by so much, as a share of their spread; rows that see wrong positions differ by 0.3 to 1.
_FULL_PRECISION, _HALF_PRECISION = 0.01, 0.2
_ROUNDING = 4.0  # and by so many times what rounding alone is seen to do

__all__ = ["BatchDecoder", "Piece", "Request", "check_batchable"]


@dataclass(slots=True)
class _Row:
    """One answer. ``cache`` is its own while its prompt is read in parts; ``num_read`` does not count its last token,
    which goes with the last ones of the others. The first ``num_begun`` are the beginning, where it has that."""

    number: int
    answer: Answer
    num_read: int
    num_begun: int
    cache: PromptCache | None = None

    @property
    def to_read(self) -> list[int]:
        """The prompt without its last token."""
        return self.answer.ids[: self.num_read]


class BatchDecoder:
    """Answers requests of one model, at most ``max_rows`` at a time; others wait their turn.

    A model whose layers cannot share a cache is refused unless ``max_rows`` is 1. After an exception out of ``step``
    all answers are gone. ``beginning`` are tokens that prompts may begin with, as a template's first words: they are
    read once, where all layers keep keys and values only. There equal prompts that are taken in together are read once
    too; with ``repeats`` the one that was read last is kept, for those that come later.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        *,
        max_rows: int = 8,
        beginning: Sequence[int] = (),
        repeats: bool = False,
    ) -> None:
        assert max_rows > 0
        if max_rows > 1:
            check_batchable(model)
        self._model = model
        self._tokenizer = tokenizer
        self._max_rows = max_rows
        self._num_added = 0
        self._newest: Answer | None = None
        self._waiting: deque[_Row] = deque()
        self._rows: list[_Row] = []  # in the order of the rows in the caches
        self._layers: list[Any] = []
        has_keys_only = plain_caches(model) is not None
        self._can_pad = max_rows > 1 and has_keys_only
        self._beginning = list(beginning) if has_keys_only else []
        self._begun: PromptCache | None = None  # the beginning, once it has been read
        self._keeps_last = repeats and self._can_pad
        self._last: tuple[list[int], list[Any]] | None = None  # the prompt that was read last, and its caches
        self._is_shared = False  # False: the caches are those of a single row

    def __len__(self) -> int:
        """Answers at work, those that wait included."""
        return len(self._waiting) + len(self._rows)

    def add(self, request: Request) -> int:
        """Take up an answer and return its number. Raises ``ModelError`` or ``UsageError`` where it cannot be given."""
        answer = self._newest = Answer(self._model, self._tokenizer, request, like=self._newest)
        self._num_added += 1
        num_read, count = len(request.prompt_ids) - 1, len(self._beginning)
        has_begun = num_read > count and answer.ids[:count] == self._beginning
        self._waiting.append(_Row(self._num_added, answer, num_read, count if has_begun else 0))
        return self._num_added

    def remove(self, number: int) -> None:
        """Give up an answer; its memory is free at once. Nothing happens where it has ended already."""
        self._waiting = deque(row for row in self._waiting if row.number != number)
        self._keep([index for index, row in enumerate(self._rows) if row.number != number])

    def step(self) -> list[tuple[int, Piece]]:
        """The next piece of every answer whose prompt has been read, by number; empty while prompts are read.

        An answer that cannot go on ends with the finish ``failed``; the others are not touched by it.
        """
        try:
            self._read_prompts()
            if not self._rows:
                return []
            logits = self._forward()
            pieces = list(zip([row.number for row in self._rows], self._take_all(logits), strict=True))
            self._keep([index for index, (_, piece) in enumerate(pieces) if piece.finish is None])
        except BaseException:
            self._clear()  # some layers may hold the tokens and others not
            raise
        return pieces

    def _take_all(self, logits: mx.array) -> list[Piece]:
        """The next piece of every row from ``logits`` (B, V), evaluated; the draws are evaluated together."""
        values = np.asarray(logits)
        drawn: dict[int, mx.array] = {}
        pieces: dict[int, Piece] = {}
        for index, row in enumerate(self._rows):
            if row.answer.is_plain:  # it needs no more of MLX
                pieces[index] = row.answer.take_likeliest(values[index])
                continue
            try:
                drawn[index] = row.answer.draw(logits[index])
            except MlxftError as error:
                pieces[index] = _failed(row, error)
        mx.eval(list(drawn.values()))
        for index, token in drawn.items():
            row = self._rows[index]
            try:
                pieces[index] = row.answer.take_drawn(cast(int, token.item()), values[index])
            except MlxftError as error:
                pieces[index] = _failed(row, error)
        return [pieces[index] for index in range(len(self._rows))]

    def _read_prompts(self) -> None:
        """Read on in the prompts of those who wait, in turn, and take in who is done."""
        left = PREFILL_TOKENS
        while self._waiting and left > 0 and len(self._rows) < self._max_rows:
            if self._take_repeats():
                continue
            group = self._next_group(left)
            left -= self._read_together(group) if len(group) > 1 else self._read_on(group[0], left)

    def _take_repeats(self) -> bool:
        """Take in those who are next and whose prompt is the one that was read last; False where there is none."""
        if self._last is None:
            return False
        ids, layers = self._last
        first = itertools.islice(self._waiting, self._max_rows - len(self._rows))
        rows = list(itertools.takewhile(lambda row: row.to_read == ids, first))
        for row in rows:
            self._waiting.popleft()
            row.cache = None
        if rows:
            self._join(rows, taken(layers, [0] * len(rows)), is_shared=True)
        return bool(rows)

    def _keep_last(self, row: _Row, layers: list[Any]) -> None:
        """``layers`` are the caches of this row alone, as those of several rows are."""
        if self._keeps_last and row.num_read:
            mx.eval([layer.state for layer in layers])
            self._last = (row.to_read, layers)

    def _next_group(self, left: int) -> list[_Row]:
        """The next one, with those behind it whose short prompts may be read along with its own."""
        group = [self._waiting[0]]
        prompts = [group[0].to_read]
        tokens = longest = _num_new(group[0])
        for row in itertools.islice(self._waiting, 1, self._max_rows - len(self._rows)):
            if row.num_begun != group[0].num_begun:
                break
            if row.to_read not in prompts:
                tokens, longest = tokens + _num_new(row), max(longest, _num_new(row))
                positions = longest * (len(prompts) + 1)
                if longest > SHORT_PROMPT or positions > min(left, _LARGEST_PADDING * tokens):
                    break
                prompts.append(row.to_read)
            group.append(row)
        are_short = self._can_pad and all(0 < _num_new(row) <= SHORT_PROMPT for row in group)
        return group if are_short else group[:1]

    def _read_on(self, row: _Row, left: int) -> int:
        """Read up to ``left`` tokens of one prompt; their number."""
        cache = row.cache = row.cache or self._begin(row)
        ids = row.answer.ids[len(cache.ids) : min(len(cache.ids) + left, row.num_read)]
        if ids:
            cache.advance(ids)
        if len(cache.ids) == row.num_read:
            self._waiting.popleft()
            row.cache = None
            if self._keeps_last:
                self._keep_last(row, merged([cache.layers]))
            self._join([row], cache.layers, is_shared=False)
        return len(ids)

    def _read_together(self, group: Sequence[_Row]) -> int:
        """Read these prompts, each once, padded on the right to one length; the number of positions."""
        prompts = {tuple(row.to_read): row for row in group}
        caches = [self._begin(row) for row in prompts.values()]
        rests = [row.to_read[row.num_begun :] for row in prompts.values()]
        lengths = [len(rest) for rest in rests]
        padding = [max(lengths) - length for length in lengths]
        tokens = [rest + [0] * pad for rest, pad in zip(rests, padding, strict=True)]
        layers = merged([cache.layers for cache in caches])
        for layer in layers:
            layer.prepare(lengths=lengths, right_padding=padding)
        with cpu_forms(self._model, len(rests), max(lengths)):
            cast(Any, self._model)(mx.array(tokens), cache=layers)
            mx.eval([layer.state for layer in layers])
        for layer in layers:
            layer.finalize()
        for _ in group:
            self._waiting.popleft().cache = None
        places = {prompt: place for place, prompt in enumerate(prompts)}
        if self._keeps_last:
            self._keep_last(group[-1], taken(layers, [places[tuple(group[-1].to_read)]]))
        if len(prompts) < len(group):
            layers = taken(layers, [places[tuple(row.to_read)] for row in group])
        self._join(group, layers, is_shared=True)
        return len(rests) * max(lengths)

    def _begin(self, row: _Row) -> PromptCache:
        """An empty cache, or one that holds the beginning where the prompt goes on behind it."""
        cache = PromptCache(self._model)
        if not row.num_begun:
            return cache
        if self._begun is None:
            self._begun = PromptCache(self._model)
            self._begun.advance(self._beginning)
        for ours, theirs in zip(cache.layers, self._begun.layers, strict=True):
            # A copy: a cache writes into its arrays.
            ours.state = tuple(mx.array(part) if isinstance(part, mx.array) else part for part in theirs.state)
        cache.ids = list(self._beginning)
        return cache

    def _join(self, rows: Sequence[_Row], layers: list[Any], *, is_shared: bool) -> None:
        """Take ``rows`` in with their caches, which are those of several rows where ``is_shared``."""
        if not self._rows:
            self._layers, self._is_shared = layers, is_shared
        else:
            if not self._is_shared:
                self._layers, self._is_shared = merged([self._layers]), True
            extend(self._layers, layers if is_shared else merged([layers]))
        self._rows += rows
        self._evaluate_caches()

    def _forward(self) -> mx.array:
        """Logits (B, V) after the last token of every row, fp32, evaluated."""
        last = mx.array([[row.answer.ids[-1]] for row in self._rows])  # (B, 1)
        with cpu_forms(self._model, len(self._rows), 1):
            logits = cast(Any, self._model)(last, cache=self._layers)[:, -1].astype(mx.float32)
        mx.eval(logits, [layer.state for layer in self._layers])
        return logits

    def _keep(self, indices: Sequence[int]) -> None:
        """Let the other rows go, and their memory with them."""
        if len(indices) == len(self._rows):
            return
        self._rows = [self._rows[index] for index in indices]
        if not self._rows:
            self._layers, self._is_shared = [], False
            return
        keep(self._layers, indices)
        self._evaluate_caches()

    def _evaluate_caches(self) -> None:
        """Until then the arrays that the caches were made of stay in memory."""
        mx.eval([layer.state for layer in self._layers])

    def _clear(self) -> None:
        self._waiting.clear()
        self._rows, self._layers, self._is_shared = [], [], False
        self._last = None


def check_batchable(model: nn.Module) -> None:
    """Raise ``ModelError`` where ``model`` does not answer several rows as it answers each alone, naming why.

    It is tried once for each model, on two rows, of one and three tokens for most: some architectures of mlx-lm 0.32.2
    cannot (gemma2, gpt_bigcode), and one that says something else in a batch would go unnoticed.
    """
    if getattr(model, _TRIED, False):
        return
    caches = make_prompt_cache(model)
    others = sorted({type(one).__name__ for one in caches if not hasattr(one, "merge") or getattr(one, "keep", 0)})
    reason = f"rows cannot share its caches ({', '.join(others)})" if others else _try_rows(model)
    if reason:
        name = str(getattr(model, "model_type", type(model).__name__))
        raise ModelError(f"a {name} model answers one prompt at a time: {reason}", "answer one by one: --batch 1")
    setattr(model, _TRIED, True)


def _try_rows(model: nn.Module) -> str:
    """What is wrong with two rows of different length side by side; empty where nothing is.

    In half precision the logits of some models after a few odd tokens are mostly rounding (SmolLM2-135M in bf16: 6.6
    times their spread). Where they differ, each row is therefore tried beside itself, which has nothing to pad or mix.
    """
    prompts = cast("tuple[list[int], list[int]]", getattr(model, "probe_prompts", ([1, 2, 3], [4])))
    alone = mx.stack([PromptCache(model).advance(ids) for ids in prompts]).astype(mx.float32)  # (2, V)
    try:
        logits = _side_by_side(model, prompts)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        return f"several rows at once end in an error of its architecture ({' '.join(str(error).split())[:120]})"
    bound = _FULL_PRECISION if logits.dtype == mx.float32 else _HALF_PRECISION
    difference = _apart(logits, alone)
    if difference > bound:
        twice = [_apart(_side_by_side(model, (ids, ids)), row[None]) for ids, row in zip(prompts, alone, strict=True)]
        bound = max(bound, _ROUNDING * max(twice))
    return "" if difference <= bound else "it says something else in a batch than alone"


def _side_by_side(model: nn.Module, prompts: tuple[list[int], list[int]]) -> mx.array:
    """Logits (2, V) after each of two prompts whose last tokens are read in a batch, evaluated."""
    caches = [PromptCache(model) for _ in prompts]
    for cache, ids in zip(caches, prompts, strict=True):
        if ids[:-1]:
            cache.advance(ids[:-1])
    layers = merged([cache.layers for cache in caches])
    logits = cast("mx.array", cast(Any, model)(mx.array([ids[-1:] for ids in prompts]), cache=layers)[:, -1])
    mx.eval(logits)
    return logits


def _apart(logits: mx.array, expected: mx.array) -> float:
    """Root mean square of the difference, as a share of the spread of what is expected."""
    difference = mx.sqrt(mx.mean(mx.square(logits.astype(mx.float32) - expected))) / mx.std(expected)
    return cast(float, difference.item())


def _num_new(row: _Row) -> int:
    """Tokens of the prompt to be read for this row alone."""
    return row.num_read - row.num_begun


def _failed(row: _Row, error: MlxftError) -> Piece:
    return Piece(row.answer.rest(), None, "failed", error=error)
