"""Pieces of answers to OpenAI's objects, whole or chunk by chunk, for both interfaces.

Counts: the prompt's tokens once for each prompt, however many answers it gets; an answer's with its end mark.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mlx_finetune.app.serve.models import Served
from mlx_finetune.app.serve.wire import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    FinishReason,
    Reply,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from mlx_finetune.model.answers.batches import Piece

Pieces = Sequence[tuple[int, Piece]]


@dataclass(slots=True)
class Tally:
    """What has been said so far: tokens in all, characters of each answer."""

    num_tokens: int = 0
    lengths: dict[int, int] = field(default_factory=dict)

    def note(self, index: int, piece: Piece) -> int:
        """Count a piece; returns where its text begins in its answer."""
        self.num_tokens += piece.token_id is not None
        offset = self.lengths.get(index, 0)
        self.lengths[index] = offset + len(piece.text)
        return offset


@dataclass(frozen=True, slots=True)
class Ticket:
    """What every object about one request repeats. ``num_logprobs`` is None where none were asked for."""

    id: str
    created: int
    served: Served
    num_answers: int
    num_prompt_tokens: int
    num_logprobs: int | None
    tally: Tally = field(default_factory=Tally)

    def said(self) -> str:
        """For the log."""
        return f"{self.served.id}, {self.num_prompt_tokens} + {self.tally.num_tokens} tokens"

    def usage(self) -> Usage:
        """Tokens so far."""
        said = self.tally.num_tokens
        return Usage(
            prompt_tokens=self.num_prompt_tokens,
            completion_tokens=said,
            total_tokens=self.num_prompt_tokens + said,
        )


class Writer(Protocol):
    """Writes the answers to one request."""

    ticket: Ticket

    def whole(self, pieces: Pieces) -> Reply:
        """All answers, from all pieces."""
        ...

    def begin(self) -> Iterator[Reply]:
        """Chunks before the first piece."""
        ...

    def chunks(self, pieces: Pieces) -> Iterator[Reply]:
        """One chunk for each piece that says something."""
        ...

    def end(self) -> Reply:
        """The chunk with the usage."""
        ...


class ChatWriter:
    """The objects of /v1/chat/completions."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket

    def whole(self, pieces: Pieces) -> Reply:
        ticket = self.ticket
        answers = _sorted(ticket, pieces)
        return ChatCompletion(
            id=ticket.id,
            created=ticket.created,
            model=ticket.served.id,
            choices=[
                ChatChoice(
                    index=index,
                    message=ChatMessage(content="".join(piece.text for piece in answer)),
                    logprobs=self._logprobs(answer),
                    finish_reason=_finish(answer[-1]) or "stop",
                )
                for index, answer in enumerate(answers)
            ],
            usage=ticket.usage(),
            system_fingerprint=ticket.served.fingerprint,
        )

    def begin(self) -> Iterator[Reply]:
        for index in range(self.ticket.num_answers):
            yield self._chunk([ChatChunkChoice(index=index, delta=ChatDelta(role="assistant", content=""))])

    def chunks(self, pieces: Pieces) -> Iterator[Reply]:
        for index, piece in pieces:
            self.ticket.tally.note(index, piece)
            finish, logprobs = _finish(piece), self._logprobs([piece])
            if piece.text or (logprobs is not None and logprobs.content):
                delta = ChatDelta(content=piece.text)
                yield self._chunk([ChatChunkChoice(index=index, delta=delta, logprobs=logprobs)])
            if finish is not None:
                yield self._chunk([ChatChunkChoice(index=index, delta=ChatDelta(), finish_reason=finish)])

    def end(self) -> Reply:
        return self._chunk([], self.ticket.usage())

    def _chunk(self, choices: list[ChatChunkChoice], usage: Usage | None = None) -> ChatChunk:
        ticket = self.ticket
        return ChatChunk(
            id=ticket.id,
            created=ticket.created,
            model=ticket.served.id,
            choices=choices,
            usage=usage,
            system_fingerprint=ticket.served.fingerprint,
        )

    def _logprobs(self, pieces: Sequence[Piece]) -> ChatLogprobs | None:
        count = self.ticket.num_logprobs
        if count is None:
            return None
        return ChatLogprobs(
            content=[
                TokenLogprob(
                    token=token,
                    logprob=logprob,
                    bytes=_bytes(token),
                    top_logprobs=[TopLogprob(token=t, logprob=p, bytes=_bytes(t)) for t, p in likeliest[:count]],
                )
                for token, logprob, likeliest in map(self._of, pieces)
                if token is not None
            ]
        )

    def _of(self, piece: Piece) -> tuple[str | None, float, list[tuple[str, float]]]:
        return logprobs_of(self.ticket.served, piece)


class CompletionWriter:
    """The objects of /v1/completions."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket

    def whole(self, pieces: Pieces) -> Reply:
        return self._completion(
            [
                CompletionChoice(
                    index=index,
                    text="".join(piece.text for piece in answer),
                    logprobs=self._logprobs(answer, 0),
                    finish_reason=_finish(answer[-1]),
                )
                for index, answer in enumerate(_sorted(self.ticket, pieces))
            ],
            self.ticket.usage(),
        )

    def begin(self) -> Iterator[Reply]:
        yield from ()

    def chunks(self, pieces: Pieces) -> Iterator[Reply]:
        for index, piece in pieces:
            offset = self.ticket.tally.note(index, piece)
            finish, logprobs = _finish(piece), self._logprobs([piece], offset)
            if piece.text or finish is not None or (logprobs is not None and logprobs.tokens):
                choice = CompletionChoice(index=index, text=piece.text, logprobs=logprobs, finish_reason=finish)
                yield self._completion([choice])

    def end(self) -> Reply:
        return self._completion([], self.ticket.usage())

    def _completion(self, choices: list[CompletionChoice], usage: Usage | None = None) -> Completion:
        ticket = self.ticket
        return Completion(
            id=ticket.id,
            created=ticket.created,
            model=ticket.served.id,
            choices=choices,
            usage=usage,
            system_fingerprint=ticket.served.fingerprint,
        )

    def _logprobs(self, pieces: Sequence[Piece], offset: int) -> CompletionLogprobs | None:
        count = self.ticket.num_logprobs
        if count is None:
            return None
        tokens: list[str] = []
        values: list[float] = []
        tops: list[dict[str, float]] = []
        offsets: list[int] = []
        for piece in pieces:
            token, logprob, likeliest = logprobs_of(self.ticket.served, piece)
            if token is not None:
                tokens.append(token)
                values.append(logprob)
                tops.append(dict(likeliest[:count]))
                offsets.append(offset)
            offset += len(piece.text)
        return CompletionLogprobs(tokens=tokens, token_logprobs=values, top_logprobs=tops, text_offset=offsets)


def logprobs_of(served: Served, piece: Piece) -> tuple[str | None, float, list[tuple[str, float]]]:
    """Token, log-probability and likeliest tokens of a piece; no token for an end mark, which is not shown."""
    token_id = piece.token_id
    if token_id is None or piece.logprob is None or token_id in served.tokenizer.stop_token_ids:
        return None, 0.0, []
    likeliest = [(_token(served, id_), _finite(value)) for id_, value in piece.likeliest]
    return _token(served, token_id), _finite(piece.logprob), likeliest


def _token(served: Served, token_id: int) -> str:
    return served.tokenizer.decode([token_id])


def _bytes(token: str) -> list[int] | None:
    """The bytes of a token; None for a part of a character, whose text does not say what it is."""
    return None if "\ufffd" in token else list(token.encode("utf-8"))


def _finite(logprob: float) -> float:
    """JSON has no minus infinity; OpenAI writes -9999 for it."""
    return max(logprob, -9999.0)


def _finish(piece: Piece) -> FinishReason | None:
    if piece.finish is None:
        return None
    return "stop" if piece.finish == "stop" else "length"


def _sorted(ticket: Ticket, pieces: Pieces) -> list[list[Piece]]:
    """The pieces of each answer, all of them tallied."""
    answers: list[list[Piece]] = [[] for _ in range(ticket.num_answers)]
    for index, piece in pieces:
        ticket.tally.note(index, piece)
        answers[index].append(piece)
    return answers
