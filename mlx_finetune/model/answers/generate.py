"""A stream of tokens from a model, with a KV cache that is reused between turns.

One token is computed when it is asked for, so the cache never holds a token that was not shown, and stopping needs no
repair; the price on a GPU is the gap between two tokens that a pipelined loop would hide. Tokens that a grammar leaves
no choice about are not computed at all: they are read with the next one.

On a CPU a prompt is read with exponentials in numpy (``cpu_math``), and one token with products that copy no weight
(``few_rows``): SmolLM2-135M in fp32 reads 1.6 times and says 1.1 times as many tokens a second as mlx_lm's loop
(``benchmarks/generation_speed.py``). Names of modules are replaced meanwhile, so one thread at a time may generate.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_finetune.dataset.tokens import Tokenizer
from mlx_finetune.errors import MlxftError, ModelError, UsageError
from mlx_finetune.model.answers.constrain import Constraint, Grammar
from mlx_finetune.model.answers.endings import Endings
from mlx_finetune.model.answers.sampling import Sampling, draw_token
from mlx_finetune.model.cpu.cpu_math import numpy_math
from mlx_finetune.model.cpu.few_rows import MOST_ROWS, few_row_products
from mlx_finetune.model.inside.parts import check_ids
from mlx_finetune.model.inside.segments import learned_positions
from mlx_finetune.model.upstream import can_trim_prompt_cache, make_prompt_cache, trim_prompt_cache

PREFILL_TOKENS = 512
_NUMPY_TOKENS = 32  # from so many on, exponentials in numpy are worth an evaluation for each
# A character has at most four bytes, so at most three tokens wait for the next; more are not UTF-8 at all.
_LONGEST_WAIT = 4

Finish = Literal["stop", "length", "context", "cancelled", "failed"]


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be answered, and how an answer may end besides the model's own end mark.

    ``stop``: texts that end it and are never shown. ``ends_with_object``: with the brace that closes the first JSON
    object. ``grammar``: only what it admits is said. ``num_logprobs``: log-probabilities of that many likeliest tokens.
    ``logit_bias``: token id -> what is added to its logit, before everything else.
    """

    prompt_ids: Sequence[int]
    sampling: Sampling
    stop: Sequence[str] = ()
    ends_with_object: bool = False
    grammar: Grammar | None = None
    num_logprobs: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Piece:
    """One generated token and the text that became certain with it, often "". The last one has a ``finish``.

    ``stop``: the answer ended as it should (``text`` never holds the end mark). ``length``: ``max_tokens`` were
    generated, and an answer to a schema is cut short. ``context``: the model has no further positions. ``cancelled``:
    the caller said so. ``failed``: in a batch alone, for the reason in ``error``. ``token_id`` is None in the last two.

    ``logprob`` is that of the token, ``likeliest`` are token ids with theirs, likeliest first: of the model's own
    distribution, before the schema, the temperature and what follows it. They are there where they were asked for.
    """

    text: str
    token_id: int | None
    finish: Finish | None = None
    logprob: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()
    error: MlxftError | None = None


class PromptCache:
    """Keys and values of the tokens a model has seen, for the next prompt that starts with the same tokens.

    It belongs to one model with one adapter: make another for another.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.layers: list[Any] = make_prompt_cache(model)
        self.ids: list[int] = []

    def rewind(self, prompt_ids: Sequence[int]) -> list[int]:
        """Keep what ``prompt_ids`` starts with, forget the rest; returns the tokens still to be computed, at least one.

        Layers that cannot go back (recurrent ones, full sliding windows) start anew.
        """
        same = 0
        for ours, theirs in zip(self.ids, prompt_ids[:-1], strict=False):
            if ours != theirs:
                break
            same += 1
        surplus = len(self.ids) - same
        if surplus and can_trim_prompt_cache(self.layers):
            trim_prompt_cache(self.layers, surplus)
            del self.ids[same:]
        elif surplus:
            self.clear()
        return list(prompt_ids[len(self.ids) :])

    def clear(self) -> None:
        """Forget everything."""
        self.layers = make_prompt_cache(self._model)
        self.ids = []

    def advance(self, ids: Sequence[int]) -> mx.array:
        """Feed ``ids`` and return the logits after the last, (V,), not yet evaluated; the cache is."""
        try:
            with cpu_forms(self._model, 1, len(ids)):
                logits = cast(Any, self._model)(mx.array([list(ids)]), cache=self.layers)[0, -1]  # (V,)
            mx.eval([layer.state for layer in self.layers])
        except BaseException:
            self.clear()  # some layers may hold the tokens and others not
            raise
        self.ids.extend(ids)
        return logits


class Detokenizer:
    """Token ids to text, piece by piece; the pieces joined are the decoded whole.

    A few tokens before the new ones are decoded along with them, because a token's text may depend on its neighbours
    (leading spaces), and text that ends in an unfinished character waits.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = list(context)
        self._start = 0
        self._shown = len(self._ids)

    def add(self, token_id: int) -> str:
        """The text that is certain now and was not before."""
        self._ids.append(token_id)
        text = self._new_text()
        if not text or (text.endswith("\ufffd") and len(self._ids) - self._shown < _LONGEST_WAIT):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return text

    def finish(self) -> str:
        """What is left at the end: half a character, shown as U+FFFD."""
        text = self._new_text()
        self._start = self._shown = len(self._ids)
        return text

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._ids[self._start : self._shown], skip_special_tokens=True)
        whole = self._tokenizer.decode(self._ids[self._start :], skip_special_tokens=True)
        return whole[len(before) :]


class Answer:
    """One answer as it grows. Whoever computes the logits, alone or as a row of a batch, hands them to ``take``."""

    def __init__(
        self, model: nn.Module, tokenizer: Tokenizer, request: Request, *, like: "Answer | None" = None
    ) -> None:
        """Raises ``ModelError`` for a prompt that is empty or too long, ``UsageError`` for settings at odds.

        ``like`` is another one of ``model``, whose prompt need not be looked at again where it is the same.
        """
        if like is not None and like._request.prompt_ids == request.prompt_ids:
            self._room = like._room
        else:
            self._room = _room(model, request.prompt_ids)
        sampling = request.sampling
        if request.grammar is not None and sampling.repetition_penalty != 1:
            raise UsageError(
                f"a schema and repetition_penalty = {sampling.repetition_penalty:g} do not go together: the penalty "
                "falls on brackets and quotes first",
                "set repetition_penalty to 1",
            )
        if request.grammar is not None and request.stop:
            raise UsageError("a schema and a stop text do not go together: the schema says where the answer ends")
        self.ids = list(request.prompt_ids)
        self._request = request
        self._index = 0
        self._bias: np.ndarray | None = None
        self._num_logits = 0
        self._ends = tokenizer.stop_token_ids
        # An encoder-decoder model's answer begins anew behind the start token: nothing before it is said
        self._begin = len(self.ids) if tokenizer.start_token_id is not None else 0
        self._text = Detokenizer(tokenizer, self.ids[max(self._begin, len(self.ids) - 4) :])
        self._constraint = None if request.grammar is None else Constraint(request.grammar)
        has_end = self._constraint is not None
        self._endings = Endings(request.stop, ends_with_object=request.ends_with_object and not has_end)

    def take(self, logits: mx.array) -> Piece:
        """Draw the next token from ``logits`` (V,); the last piece has a ``finish``, and nothing may follow it.

        Raises ``ModelError`` where the grammar cannot go on.
        """
        token_id = cast(int, self.draw(logits).item())
        return self.take_drawn(token_id, logits)

    def draw(self, logits: mx.array) -> mx.array:
        """The next token of ``take`` as an array that is not yet evaluated: those of several answers can be, at once.

        A grammar looks at logits, so they are evaluated where there is one.
        """
        self._num_logits = logits.shape[-1]
        bias = self._bias_of(self._num_logits)
        biased = logits if bias is None else logits + mx.array(bias)
        allowed = biased if self._constraint is None else self._constraint.mask(biased)
        return draw_token(allowed, self.ids[self._begin :], self._request.sampling, self._index)

    def take_drawn(self, token_id: int, logits: mx.array | np.ndarray) -> Piece:
        """``take`` where ``draw`` has said which; ``logits`` (V,) are the model's."""
        return self.say(token_id, *log_probabilities(logits, token_id, self._request.num_logprobs))

    def forced(self) -> int | None:
        """The next token, where the grammar leaves no choice and nobody asks how likely it was; None before ``take``.

        It needs no logits of its own: a stretch of such tokens goes through the model with the one behind it.
        """
        if self._constraint is None or self._request.num_logprobs:
            return None
        token_id = self._constraint.forced()
        is_known = token_id is not None and token_id < self._num_logits and token_id not in self._ends
        return token_id if is_known else None

    def say(self, token_id: int, logprob: float | None = None, likeliest: tuple[tuple[int, float], ...] = ()) -> Piece:
        """Go on with ``token_id``."""
        request, constraint = self._request, self._constraint
        self.ids.append(token_id)
        self._index += 1
        is_end = token_id in self._ends
        is_complete = is_end or (constraint is not None and constraint.advance(token_id))
        text = "" if is_end else self._endings.feed(self._text.add(token_id))
        finish: Finish | None = None
        if is_complete:
            finish = "stop"
        elif self._index == request.sampling.max_tokens:
            finish = "length"
        elif self._index == self._room:
            finish = "context"
        if finish is not None and not self._endings.is_reached:
            text += self.rest()
        if constraint is not None:
            constraint.hear(text, is_last=finish == "stop")
        return Piece(text, token_id, "stop" if self._endings.is_reached else finish, logprob, likeliest)

    @property
    def is_plain(self) -> bool:
        """True where the next token is the likeliest one, whatever was said before."""
        sampling = self._request.sampling
        is_greedy = sampling.temperature == 0 and sampling.repetition_penalty == 1
        return is_greedy and self._constraint is None and not self._request.num_logprobs

    def take_likeliest(self, logits: np.ndarray) -> Piece:
        """``take`` where ``is_plain``, without another trip to MLX. ``logits`` (V,), fp32."""
        bias = self._bias_of(len(logits))
        return self.say(int((logits if bias is None else logits + bias).argmax()))

    def _bias_of(self, size: int) -> np.ndarray | None:
        """(V,) to be added to logits; ids that the model does not have are nobody's."""
        if self._bias is None and self._request.logit_bias:
            self._bias = np.zeros(size, np.float32)
            for token_id, value in self._request.logit_bias.items():
                if 0 <= token_id < size:
                    self._bias[token_id] = value
        return self._bias

    def rest(self) -> str:
        """The text that waits for more, when none will come."""
        return self._endings.feed(self._text.finish()) + self._endings.finish()


def log_probabilities(
    logits: mx.array | np.ndarray, token_id: int, count: int
) -> tuple[float | None, tuple[tuple[int, float], ...]]:
    """Log-probability of ``token_id``, and the ``count`` likeliest ids of ``logits`` (V,) with theirs."""
    if not count:
        return None, ()
    single = logits if isinstance(logits, np.ndarray) else logits.astype(mx.float32)
    values = np.array(single, dtype=np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    count = min(count, len(values))
    ids = np.argpartition(-values, count - 1)[:count]
    ids = ids[np.lexsort((ids, -values[ids]))]
    return float(values[token_id]), tuple((int(one), float(values[one])) for one in ids)


def generate_tokens(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    sampling: Sampling,
    *,
    cache: PromptCache | None = None,
    stop: Callable[[], bool] | None = None,
    stop_texts: Sequence[str] = (),
    ends_with_object: bool = False,
    grammar: Grammar | None = None,
    num_logprobs: int = 0,
) -> Iterator[Piece]:
    """Answer ``prompt_ids`` token by token; ``model`` is in eval mode. The last piece has a ``finish``.

    With a ``cache`` only what differs from the last prompt and answer is computed. ``stop`` is asked before every
    token and every 512 tokens of the prompt. The other options are those of ``Request``. Raises ``ModelError`` for an
    empty prompt or one that is too long, and where a grammar cannot go on.
    """
    answer = Answer(
        model, tokenizer, Request(prompt_ids, sampling, stop_texts, ends_with_object, grammar, num_logprobs)
    )
    cache = cache or PromptCache(model)
    rest = cache.rewind(prompt_ids)
    for start in range(0, len(rest) - 1, PREFILL_TOKENS):
        if stop is not None and stop():
            yield Piece("", None, "cancelled")
            return
        cache.advance(rest[start : min(start + PREFILL_TOKENS, len(rest) - 1)])
    for _ in range(sampling.max_tokens):
        if stop is not None and stop():
            yield Piece(answer.rest(), None, "cancelled")
            return
        forced = answer.forced()
        piece = answer.take(cache.advance(answer.ids[len(cache.ids) :])) if forced is None else answer.say(forced)
        yield piece
        if piece.finish is not None:
            return


def generate_text(model: nn.Module, tokenizer: Tokenizer, prompt_ids: Sequence[int], sampling: Sampling) -> str:
    """The whole answer of ``generate_tokens`` as text."""
    return "".join(piece.text for piece in generate_tokens(model, tokenizer, prompt_ids, sampling))


def cpu_forms(model: nn.Module, num_rows: int, num_tokens: int) -> AbstractContextManager[None]:
    """What computes ``num_tokens`` positions of ``num_rows`` rows faster on a CPU; nothing on a GPU."""
    if mx.default_device().type != mx.DeviceType.cpu:
        return nullcontext()
    if num_rows * num_tokens <= MOST_ROWS:
        return few_row_products()
    return numpy_math(model) if num_rows * num_tokens >= _NUMPY_TOKENS else nullcontext()


def _room(model: nn.Module, prompt_ids: Sequence[int]) -> int | None:
    """How many tokens can follow the prompt; None without a limit. The last one needs no position of its own."""
    if not prompt_ids:
        raise ModelError("there is nothing to answer: the prompt has no tokens")
    check_ids(model, prompt_ids, "the prompt")
    learned = learned_positions(model)
    if learned is None:
        return None
    room = learned.num_positions - len(prompt_ids) + 1
    if room < 1:
        raise ModelError(
            f"the prompt has {len(prompt_ids)} tokens, and this model has positions for {learned.num_positions}",
            "shorten the prompt, or start a new conversation",
        )
    return room
