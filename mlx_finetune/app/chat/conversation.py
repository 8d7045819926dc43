"""A conversation and what a person may do to it: ask, take back, save as a row, read back. No model, no terminal.

Turns alternate user, assistant; the system message stands apart. A saved conversation is one ``messages`` row of a
JSON Lines file, so what was talked about can be trained on.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from mlx_finetune.dataset.read import read_rows
from mlx_finetune.dataset.tokens import Message
from mlx_finetune.dataset.turns import TurnError, read_turns
from mlx_finetune.errors import DataError, Problem, RunError

_THINK, _THOUGHT = "<think>", "</think>"


class Conversation:
    """The system message and the turns so far. ``turns`` ends with an assistant turn between two calls of ``ask``."""

    def __init__(self, system: str = "", turns: Sequence[Message] = ()) -> None:
        self.system = system
        self.turns: list[Message] = list(turns)

    def messages(self, question: str | None = None) -> list[Message]:
        """Everything said, system message first, and ``question`` as the last user turn where one is given."""
        system: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        asked: list[Message] = [] if question is None else [{"role": "user", "content": question}]
        return [*system, *self.turns, *asked]

    def add(self, question: str, reply: str) -> None:
        """Keep a question with its reply, which may be cut short; reasoning is kept apart from the answer."""
        self.turns += [{"role": "user", "content": question}, reply_turn(reply)]

    def take_back(self) -> str | None:
        """Remove the last question and everything after it; the question, or None where nothing was asked."""
        for index in range(len(self.turns) - 1, -1, -1):
            turn = self.turns[index]
            if turn["role"] == "user":
                del self.turns[index:]
                return str(turn["content"])
        return None

    def last_exchange(self) -> tuple[str, str] | None:
        """The last question and its reply, None before the first."""
        if len(self.turns) < 2 or self.turns[-1]["role"] != "assistant" or self.turns[-2]["role"] != "user":
            return None
        return str(self.turns[-2]["content"]), str(self.turns[-1]["content"])

    def clear(self) -> None:
        """Forget every turn; the system message stays."""
        self.turns.clear()


def reply_turn(reply: str) -> Message:
    """An assistant turn. Text between ``<think>`` and ``</think>`` becomes ``reasoning_content``."""
    before, mark, after = reply.partition(_THOUGHT)
    if not mark:
        return {"role": "assistant", "content": reply}
    reasoning = before.partition(_THINK)[2] if _THINK in before else before
    turn = {"role": "assistant", "content": after.strip()}
    return turn | {"reasoning_content": reasoning.strip()} if reasoning.strip() else turn


def save_conversation(conversation: Conversation, path: Path) -> int:
    """Append the conversation to ``path`` as one row and return how many rows the file has now.

    Raises ``DataError`` for an empty conversation and ``RunError`` where the file cannot be written.
    """
    if conversation.last_exchange() is None:
        raise DataError("there is nothing to save yet", "ask something first")
    row = json.dumps({"messages": conversation.messages()}, ensure_ascii=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            if file.tell():
                file.seek(-1, 2)
                row = row if file.read(1) == b"\n" else "\n" + row
            file.write(row.encode("utf-8") + b"\n")
        with path.open("rb") as file:
            return sum(1 for line in file if line.strip())
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}") from None


def load_conversation(path: Path) -> Conversation:
    """The last conversation in ``path``, without a question that was left unanswered at its end.

    Raises ``DataError`` with ``file:line`` where there is none or it is not one that can be continued.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file", "/save FILE writes one")
    problems: list[Problem] = []
    last = None
    for row in read_rows(path, report=problems.append):
        last = row if "messages" in row.fields else last
    if last is None:
        raise DataError(f"{path} holds no row with `messages`", "/save FILE writes such rows", problems[:3])
    place = f"{path}:{last.line}"
    try:
        turns = list(read_turns(last.fields["messages"], "messages"))
    except TurnError as error:
        raise DataError(f"{place}: {error.message}", error.hint) from None
    system = str(turns.pop(0)["content"]) if turns and turns[0]["role"] == "system" else ""
    if any(turn["role"] == "system" for turn in turns):
        raise DataError(f"{place}: a system turn in the middle of the conversation", "move it to the front")
    while turns and turns[-1]["role"] != "assistant":
        turns.pop()
    if not turns:
        raise DataError(f"{place}: no assistant turn to go on from")
    return Conversation(system, turns)
