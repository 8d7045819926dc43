"""Answers to prompts: one, or a file of them, one by one or several at once. ``answer`` is what chat uses too.

A row that cannot be answered is reported and the next one is taken. Row ``i`` (from 0) draws with ``seed + i``, so a
file gives the same answers again, in batches too, and the same prompt twice in it two different ones.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import mlx.nn as nn

from mlx_finetune.dataset.read import read_rows
from mlx_finetune.dataset.template import render_prompt
from mlx_finetune.dataset.tokens import Message, Tokenizer
from mlx_finetune.dataset.turns import TurnError, read_turns
from mlx_finetune.errors import DataError, MlxftError, Problem
from mlx_finetune.model.answers.batches import BatchDecoder, Piece, Request
from mlx_finetune.model.answers.constrain import Grammar
from mlx_finetune.model.answers.generate import PromptCache, generate_tokens
from mlx_finetune.model.answers.sampling import Sampling
from mlx_finetune.recipe.data import DataRecipe
from mlx_finetune.recipe.schema import ChatRecipe
from mlx_finetune.scoring.json_text import first_object


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer. ``finish`` is that of its last piece; ``answer_tokens`` counts the end mark too."""

    text: str
    finish: str
    prompt_tokens: int
    answer_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Form:
    """What an answer looks like: where it ends besides the model's end mark, what it admits, and what is kept of it.

    ``cleaned``: it ends with its first JSON object, and of its text that object is kept.
    """

    stop: tuple[str, ...] = ()
    cleaned: bool = False
    grammar: Grammar | None = None

    def request(self, prompt_ids: Sequence[int], sampling: Sampling) -> Request:
        """``prompt_ids`` to be answered in this form."""
        return Request(prompt_ids, sampling, self.stop, self.cleaned, self.grammar)


FREE = Form()


@dataclass(frozen=True, slots=True)
class Answerer:
    """What answers: a model as it is now, with its tokenizer, template settings, system message, and the form."""

    model: nn.Module
    tokenizer: Tokenizer
    data: DataRecipe
    chat: ChatRecipe
    seed: int
    form: Form = FREE


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of a file: its turns, and the fields that identify it in the output. ``where`` is ``file:line``."""

    messages: tuple[Message, ...]
    shown: Mapping[str, object]
    where: str


def answer(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    sampling: Sampling,
    *,
    cache: PromptCache | None = None,
    show: Callable[[str], None] | None = None,
    stop: Callable[[], bool] | None = None,
    form: Form = FREE,
) -> Reply:
    """The whole reply; ``show`` is handed each piece of text as it comes. A second Ctrl-C cancels like ``stop``."""
    growing = _Growing(len(prompt_ids))
    pieces = generate_tokens(
        model,
        tokenizer,
        prompt_ids,
        sampling,
        cache=cache,
        stop=stop,
        stop_texts=form.stop,
        ends_with_object=form.cleaned,
        grammar=form.grammar,
    )
    try:
        for piece in pieces:
            growing.add(piece)
            if piece.text and show is not None:
                show(piece.text)
    except KeyboardInterrupt:
        if stop is None:
            raise
    return growing.reply()


@dataclass(slots=True)
class _Growing:
    """A reply as its pieces come; ``index`` is the row it belongs to."""

    num_prompt: int
    index: int = 0
    texts: list[str] = field(default_factory=list[str])
    num_tokens: int = 0
    finish: str = "cancelled"
    started: float = field(default_factory=time.perf_counter)

    def add(self, piece: Piece) -> None:
        self.num_tokens += piece.token_id is not None
        self.texts.append(piece.text)
        self.finish = piece.finish or self.finish

    def reply(self) -> Reply:
        seconds = time.perf_counter() - self.started
        return Reply("".join(self.texts), self.finish, self.num_prompt, self.num_tokens, seconds)


def sampling_of(chat: ChatRecipe, seed: int) -> Sampling:
    """The sampling settings of [chat], drawing with ``seed`` (taken modulo 2^31)."""
    return Sampling(
        temperature=chat.temperature,
        top_p=chat.top_p,
        top_k=chat.top_k,
        min_p=chat.min_p,
        repetition_penalty=chat.repetition_penalty,
        max_tokens=chat.max_tokens,
        seed=seed % 2**31,
    )


def question(text: str, chat: ChatRecipe) -> tuple[Message, ...]:
    """One user turn after the system message of ``chat``, where it has one."""
    system: list[Message] = [{"role": "system", "content": chat.system}] if chat.system else []
    return (*system, {"role": "user", "content": text})


def prompt_ids(messages: Sequence[Message], tokenizer: Tokenizer, data: DataRecipe) -> list[int]:
    """The tokens of a prompt. Raises ``DataError`` for control markers and for text that is not Unicode."""
    for message in messages:
        try:
            str(message["content"]).encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(f"the {message['role']} turn is not UTF-8 at character {error.start + 1}") from None
    return render_prompt(messages, tokenizer, data)


def answer_prompt(answerer: Answerer, prompt: Prompt, index: int, show: Callable[[str], None] | None = None) -> Reply:
    """The reply to one prompt of a file. Raises ``MlxftError`` where it cannot be rendered or is too long."""
    ids = prompt_ids(prompt.messages, answerer.tokenizer, answerer.data)
    sampling = sampling_of(answerer.chat, answerer.seed + index)
    return answer(answerer.model, answerer.tokenizer, ids, sampling, show=show, form=answerer.form)


Row = tuple[dict[str, object], Reply | None]


def answer_rows(
    answerer: Answerer, prompts: Sequence[Prompt], report: Callable[[Problem], None], *, max_rows: int = 1
) -> Iterator[Row]:
    """For each prompt, in order, its output row and the reply; a prompt that fails has an ``error`` in its row.

    Up to ``max_rows`` are answered at once. A row without a reply was not answered at all. Raises ``ModelError`` for
    a model that answers one prompt at a time where ``max_rows`` is more.
    """
    if max_rows > 1:
        yield from _Batch(answerer, prompts, report, max_rows).rows()
        return
    for index, prompt in enumerate(prompts):
        try:
            reply = answer_prompt(answerer, prompt, index)
        except MlxftError as error:
            yield _failed(prompt, error, report)
            continue
        yield _answered(answerer, prompt, reply, report)


class _Batch:
    """Prompts answered several at a time; rows come in the order of the prompts, as soon as those before are there."""

    def __init__(
        self, answerer: Answerer, prompts: Sequence[Prompt], report: Callable[[Problem], None], max_rows: int
    ) -> None:
        self._answerer, self._prompts, self._report, self._max_rows = answerer, prompts, report, max_rows
        self._decoder = BatchDecoder(answerer.model, answerer.tokenizer, max_rows=max_rows)
        self._growing: dict[int, _Growing] = {}  # by the decoder's number
        self._done: dict[int, Row] = {}  # by the index of the prompt
        self._num_begun = 0

    def rows(self) -> Iterator[Row]:
        """Every row; after a Ctrl-C those that are whole, and then it goes on."""
        try:
            for index in range(len(self._prompts)):
                while index not in self._done:
                    self._begin()
                    for number, piece in self._decoder.step():
                        self._take(number, piece)
                yield self._done.pop(index)
        except KeyboardInterrupt:
            yield from (self._done[index] for index in sorted(self._done))
            raise

    def _begin(self) -> None:
        """Hand the decoder prompts while it has rows to spare, so that none waits while its seconds are counted."""
        while self._num_begun < len(self._prompts) and len(self._decoder) < self._max_rows:
            index, answerer = self._num_begun, self._answerer
            self._num_begun += 1
            try:
                ids = prompt_ids(self._prompts[index].messages, answerer.tokenizer, answerer.data)
                sampling = sampling_of(answerer.chat, answerer.seed + index)
                number = self._decoder.add(answerer.form.request(ids, sampling))
            except MlxftError as error:
                self._done[index] = _failed(self._prompts[index], error, self._report)
                continue
            self._growing[number] = _Growing(len(ids), index)

    def _take(self, number: int, piece: Piece) -> None:
        growing = self._growing[number]
        growing.add(piece)
        if piece.finish is None:
            return
        del self._growing[number]
        prompt = self._prompts[growing.index]
        if piece.error is not None:
            self._done[growing.index] = _failed(prompt, piece.error, self._report)
        else:
            self._done[growing.index] = _answered(self._answerer, prompt, growing.reply(), self._report)


def _failed(prompt: Prompt, error: MlxftError, report: Callable[[Problem], None]) -> Row:
    report(Problem(prompt.where, error.message, error.hint))
    return {**prompt.shown, "error": error.message}, None


def _answered(answerer: Answerer, prompt: Prompt, reply: Reply, report: Callable[[Problem], None]) -> Row:
    fields = reply_fields(reply, answerer.form)
    if "error" in fields:
        report(Problem(prompt.where, str(fields["error"])))
    return {**prompt.shown, **fields}, reply


def reply_fields(reply: Reply, form: Form = FREE) -> dict[str, object]:
    """A reply as it stands in a JSON Lines row.

    A cleaned answer without an object has None for ``answer``, an ``error``, and what was said under ``text``. An
    answer to a schema says whether it is ``truncated``.
    """
    fields: dict[str, object] = {
        "answer": reply.text,
        "finish": reply.finish,
        "prompt_tokens": reply.prompt_tokens,
        "answer_tokens": reply.answer_tokens,
        "seconds": round(reply.seconds, 3),
    }
    if form.grammar is not None:
        fields["truncated"] = reply.finish != "stop"
    if form.cleaned:
        fields["answer"] = first_object(reply.text)
        if fields["answer"] is None:
            fields |= {"error": "the answer holds no JSON object", "text": reply.text}
    return fields


def to_line(fields: Mapping[str, object]) -> str:
    """One row of JSON Lines, without its newline; text that is not Unicode is escaped."""
    line = json.dumps(fields, ensure_ascii=False, allow_nan=False)
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(fields, allow_nan=False)
    return line


def read_prompts(path: Path, chat: ChatRecipe, report: Callable[[Problem], None]) -> list[Prompt]:
    """The prompts in a file, in order; rows that hold none go to ``report``.

    A text file has one prompt a line. Rows of other files have ``prompt`` or ``messages``; the answer at the end of
    ``messages`` is left out, so that a test file can be answered as it is. Raises ``DataError`` where nothing is left.
    """
    if not path.is_file():
        raise DataError(
            f"{path}: there is no such file", "give a text file with one prompt a line, or a JSON Lines file"
        )
    problems: list[Problem] = []
    if path.suffix.lower() in (".txt", ".md", ""):
        prompts = _read_lines(path, chat)
    else:
        prompts = list(_read_rows(path, chat, problems.append))
    if not prompts:
        raise DataError(f"{path} holds no prompt", "a row needs `prompt` or `messages`", problems[:5])
    for problem in problems:
        report(problem)
    return prompts


def _read_lines(path: Path, chat: ChatRecipe) -> list[Prompt]:
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start})", "save it as UTF-8") from None
    return [
        Prompt(question(line, chat), {"prompt": line}, f"{path}:{number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def _read_rows(path: Path, chat: ChatRecipe, report: Callable[[Problem], None]) -> Iterator[Prompt]:
    for row in read_rows(path, report=report):
        where = f"{row.source}:{row.line}"
        kept = {"id": row.fields["id"]} if "id" in row.fields else {}
        prompt = row.fields.get("prompt")
        if isinstance(prompt, str) and prompt.strip():
            yield Prompt(question(prompt, chat), {**kept, "prompt": prompt}, where)
            continue
        if "messages" not in row.fields:
            names = ", ".join(map(str, list(row.fields)[:8]))
            report(Problem(where, "a row needs `prompt` (a text) or `messages`", f"this one has {names}"))
            continue
        try:
            turns = list(read_turns(row.fields["messages"], "messages"))
        except TurnError as error:
            report(Problem(where, error.message, error.hint))
            continue
        if turns[-1]["role"] == "assistant":
            turns.pop()
        if not turns or turns[-1]["role"] not in ("user", "tool"):
            report(Problem(where, "the conversation has no question at its end"))
            continue
        if chat.system and turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": chat.system})
        yield Prompt(tuple(turns), {**kept, "prompt": turns[-1]["content"], "messages": turns}, where)
