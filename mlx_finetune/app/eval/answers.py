"""Many prompts answered: one at a time, or several at once through one model; either way the same greedy answers.

One at a time an answer's own speed is measured: the time to its first token, and from there to its last. Several at
once give more tokens a second together, and each of them takes longer.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import mlx.nn as nn

from mlx_finetune.dataset.tokens import Tokenizer
from mlx_finetune.errors import MlxftError
from mlx_finetune.model.answers.batches import BatchDecoder, Request
from mlx_finetune.model.answers.generate import Piece


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. ``seconds`` run from the start of its prompt to its last token; ``error`` says why there is none.

    ``logprob`` is the sum over its tokens, where the request asked for log-probabilities; else 0.
    """

    text: str
    finish: str
    prompt_tokens: int
    answer_tokens: int
    first_seconds: float
    seconds: float
    error: str = ""
    logprob: float = 0.0


@dataclass(slots=True)
class _Work:
    place: int
    request: Request
    started: float
    first: float = 0.0
    num_tokens: int = 0
    logprob: float = 0.0
    texts: list[str] = field(default_factory=list[str])

    def take(self, piece: Piece) -> Answer | None:
        """The answer when ``piece`` is its last."""
        now = time.perf_counter()
        if piece.token_id is not None:
            self.num_tokens += 1
            self.first = self.first or now
        self.logprob += piece.logprob or 0.0
        self.texts.append(piece.text)
        if piece.finish is None:
            return None
        if piece.finish == "failed":
            return failed(self.request, piece.error or MlxftError("the answer could not go on"))
        first, whole = (self.first or now) - self.started, now - self.started
        num_prompt = len(self.request.prompt_ids)
        text = "".join(self.texts)
        return Answer(text, piece.finish, num_prompt, self.num_tokens, first, whole, logprob=self.logprob)


def answer_all(
    model: nn.Module, tokenizer: Tokenizer, requests: Sequence[Request], *, at_once: int
) -> Iterator[tuple[int, Answer]]:
    """Each answer with the place of its request, as they are finished; one that cannot be answered has an ``error``."""
    repeats = len({tuple(request.prompt_ids) for request in requests}) < len(requests)
    beginning = _common_beginning(requests)
    decoder = BatchDecoder(model, tokenizer, max_rows=at_once, beginning=beginning, repeats=repeats)
    waiting = deque(enumerate(requests))
    at_work: dict[int, _Work] = {}
    while waiting or at_work:
        while waiting and len(at_work) < at_once:
            place, request = waiting.popleft()
            work = _Work(place, request, time.perf_counter())
            try:
                at_work[decoder.add(request)] = work
            except MlxftError as error:
                yield place, failed(request, error)
        for number, piece in decoder.step():
            answer = at_work[number].take(piece)
            if answer is not None:
                yield at_work.pop(number).place, answer


def _common_beginning(requests: Sequence[Request]) -> Sequence[int]:
    """The tokens that all prompts begin with, read once: the template's first words, a system prompt, examples."""
    if len(requests) < 2:
        return ()
    first, last = min(list(one.prompt_ids) for one in requests), max(list(one.prompt_ids) for one in requests)
    differs = (place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return first[: next(differs, len(first) - 1)]


def failed(request: Request, error: MlxftError) -> Answer:
    """What stands in the place of an answer that could not be given."""
    return Answer("", "failed", len(request.prompt_ids), 0, 0.0, 0.0, error.message)
