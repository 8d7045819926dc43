"""Answers to prompts: one, or a file of them. ``answer`` is what chat uses too.

A row that cannot be answered is reported and the next one is taken. Row ``i`` (from 0) draws with ``seed + i``, so a
file gives the same answers again, and the same prompt twice in it two different ones.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.nn as nn

from mlx_finetune.dataset.read import read_rows
from mlx_finetune.dataset.template import Tokenizer, render_prompt
from mlx_finetune.dataset.turns import TurnError, read_turns
from mlx_finetune.errors import DataError, MlxftError, Problem
from mlx_finetune.model.generate import PromptCache, generate_tokens
from mlx_finetune.model.sampling import Sampling
from mlx_finetune.recipe.schema import ChatRecipe, DataRecipe

Message = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer. ``finish`` is stop, length, context or cancelled; ``answer_tokens`` counts the end mark too."""

    text: str
    finish: str
    prompt_tokens: int
    answer_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Answerer:
    """What answers: a model as it is now, with its tokenizer, template settings and system message."""

    model: nn.Module
    tokenizer: Tokenizer
    data: DataRecipe
    chat: ChatRecipe
    seed: int


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
) -> Reply:
    """The whole reply; ``show`` is handed each piece of text as it comes. A second Ctrl-C cancels like ``stop``."""
    started = time.perf_counter()
    texts: list[str] = []
    num_tokens, finish = 0, "cancelled"
    try:
        for piece in generate_tokens(model, tokenizer, prompt_ids, sampling, cache=cache, stop=stop):
            num_tokens += piece.token_id is not None
            texts.append(piece.text)
            if piece.text and show is not None:
                show(piece.text)
            finish = piece.finish or finish
    except KeyboardInterrupt:
        if stop is None:
            raise
    return Reply("".join(texts), finish, len(prompt_ids), num_tokens, time.perf_counter() - started)


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
    return answer(answerer.model, answerer.tokenizer, ids, sampling, show=show)


def answer_rows(
    answerer: Answerer, prompts: Sequence[Prompt], report: Callable[[Problem], None]
) -> Iterator[tuple[dict[str, object], Reply | None]]:
    """For each prompt its output row and the reply; a prompt that fails has an ``error`` in its row and no reply."""
    for index, prompt in enumerate(prompts):
        try:
            reply = answer_prompt(answerer, prompt, index)
        except MlxftError as error:
            report(Problem(prompt.where, error.message, error.hint))
            yield {**prompt.shown, "error": error.message}, None
            continue
        yield {**prompt.shown, **reply_fields(reply)}, reply


def reply_fields(reply: Reply) -> dict[str, object]:
    """A reply as it stands in a JSON Lines row."""
    return {
        "answer": reply.text,
        "finish": reply.finish,
        "prompt_tokens": reply.prompt_tokens,
        "answer_tokens": reply.answer_tokens,
        "seconds": round(reply.seconds, 3),
    }


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
