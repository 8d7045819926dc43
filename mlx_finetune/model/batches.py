"""Many answers at once: one forward pass gives each of them its next token.

The weights are read once for all rows, which is what a token costs. Rows come and go while others go on: every
``step`` reads at most ``PREFILL_TOKENS`` tokens of new prompts and then says one token of every answer. A prompt is
read alone, so its keys and values are those of ``generate_tokens`` and padding never meets a layer with a state; rows
share only the steps after it, in mlx-lm's batch caches. What draws, follows a grammar and ends an answer is
``generate.Answer``, as for one by one: the same tokens, up to ties within the rounding of the batched products.

It is not mlx-lm's ``BatchGenerator``: that one computes a token ahead, when a grammar does not know yet what the last
one was, and importing it costs 2 s. Price: the same gap between two tokens on a GPU as in ``generate``. Names of
modules are replaced meanwhile and MLX's streams belong to a thread: use a decoder in one thread, and no other model
beside it.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from mlx_finetune.dataset.template import Tokenizer
from mlx_finetune.errors import MlxftError, ModelError
from mlx_finetune.model.generate import PREFILL_TOKENS, Answer, Piece, PromptCache, Request, cpu_forms
from mlx_finetune.model.upstream import make_prompt_cache

__all__ = ["BatchDecoder", "Piece", "Request", "check_batchable"]


@dataclass(slots=True)
class _Row:
    """One answer. ``cache`` is its own while its prompt is read, and None once it shares that of the batch."""

    number: int
    answer: Answer
    num_prompt: int
    cache: PromptCache | None


class BatchDecoder:
    """Answers requests of one model, at most ``max_rows`` at a time; others wait their turn.

    A model whose layers cannot share a cache is refused unless ``max_rows`` is 1. After an exception out of ``step``
    all answers are gone.
    """

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, *, max_rows: int = 8) -> None:
        assert max_rows > 0
        if max_rows > 1:
            check_batchable(model)
        self._model = model
        self._tokenizer = tokenizer
        self._max_rows = max_rows
        self._num_added = 0
        self._waiting: deque[_Row] = deque()
        self._rows: list[_Row] = []  # in the order of the rows in the caches
        self._layers: list[Any] = []
        self._is_shared = False  # False: the caches are those of a single row

    def __len__(self) -> int:
        """Answers at work, those that wait included."""
        return len(self._waiting) + len(self._rows)

    def add(self, request: Request) -> int:
        """Take up an answer and return its number. Raises ``ModelError`` or ``UsageError`` where it cannot be given."""
        answer = Answer(self._model, self._tokenizer, request)
        self._num_added += 1
        self._waiting.append(_Row(self._num_added, answer, len(request.prompt_ids), None))
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
            pieces = [(row.number, _take(row.answer, logits[index])) for index, row in enumerate(self._rows)]
            self._keep([index for index, (_, piece) in enumerate(pieces) if piece.finish is None])
        except BaseException:
            self._clear()  # some layers may hold the tokens and others not
            raise
        return pieces

    def _read_prompts(self) -> None:
        """Read on in the prompts of those who wait, in turn, and take in who is done."""
        left, joining = PREFILL_TOKENS, list[_Row]()
        while self._waiting and left > 0 and len(self._rows) + len(joining) < self._max_rows:
            row = self._waiting[0]
            row.cache = row.cache or PromptCache(self._model)
            start = len(row.cache.ids)
            ids = row.answer.ids[start : min(start + left, row.num_prompt - 1)]
            if ids:
                row.cache.advance(ids)
                left -= len(ids)
            if len(row.cache.ids) == row.num_prompt - 1:  # the last token goes with the others' last ones
                joining.append(self._waiting.popleft())
        if joining:
            self._join(joining)

    def _join(self, joining: Sequence[_Row]) -> None:
        caches = [row.cache.layers for row in joining if row.cache is not None]
        if not self._rows and len(joining) == 1:
            self._layers, self._is_shared = caches[0], False
        elif self._is_shared and self._rows:
            for ours, theirs in zip(self._layers, _merged(caches), strict=True):
                ours.extend(theirs)
        else:
            self._layers = _merged([self._layers, *caches] if self._rows else caches)
            self._is_shared = True
        for row in joining:
            row.cache = None
        self._rows += joining
        self._evaluate_caches()

    def _forward(self) -> mx.array:
        """Logits (B, V) after the last token of every row, evaluated."""
        last = mx.array([[row.answer.ids[-1]] for row in self._rows])  # (B, 1)
        with cpu_forms(self._model, len(self._rows), 1):
            logits = cast(Any, self._model)(last, cache=self._layers)[:, -1]
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
        for layer in self._layers:
            layer.filter(list(indices))
        self._evaluate_caches()

    def _evaluate_caches(self) -> None:
        """Until then the arrays that the caches were made of stay in memory."""
        mx.eval([layer.state for layer in self._layers])

    def _clear(self) -> None:
        self._waiting.clear()
        self._rows, self._layers, self._is_shared = [], [], False


def check_batchable(model: nn.Module) -> None:
    """Raise ``ModelError`` where the layers of ``model`` cannot keep several rows in one cache, naming theirs."""
    caches = cast(list[Any], make_prompt_cache(model))
    others = sorted(
        {type(cache).__name__ for cache in caches if not hasattr(cache, "merge") or getattr(cache, "keep", 0)}
    )
    if others:
        name = str(getattr(model, "model_type", type(model).__name__))
        raise ModelError(
            f"a {name} model answers one prompt at a time: rows cannot share its caches ({', '.join(others)})",
            "answer one by one: --batch 1",
        )


def _take(answer: Answer, logits: mx.array) -> Piece:
    try:
        return answer.take(logits)
    except MlxftError as error:
        return Piece(answer.rest(), None, "failed", error=error)


def _merged(caches: Sequence[Sequence[Any]]) -> list[Any]:
    """Layer by layer, one cache for the rows of all ``caches``, each of a single row."""
    return [layers[0].merge(list(layers)) for layers in zip(*caches, strict=True)]
