"""Conversations in the shapes that templates want: instructions as turns, tool calls with ids, tools wrapped."""

from collections.abc import Mapping, Sequence
from typing import cast

from mlx_finetune.dataset.formats import Example, Instruction, Messages, Preference, Text
from mlx_finetune.dataset.turns import Turn
from mlx_finetune.errors import DataError


def instruction_turns(example: Instruction) -> tuple[Turn, ...]:
    """A user turn (instruction, blank line, input) and an assistant turn; no system turn is made up."""
    question = f"{example.instruction}\n\n{example.input}" if example.input else example.instruction
    return ({"role": "user", "content": question}, {"role": "assistant", "content": example.output})


def prompt_and_reference(example: Example) -> tuple[tuple[Turn, ...], str]:
    """The turns before the last answer of a row, and that answer (of a pair the chosen one); nothing for text."""
    if isinstance(example, Text):
        return (), ""
    if isinstance(example, Preference):
        answer = example.chosen or example.rejected or ()
        return tuple(example.prompt), str(answer[-1]["content"]) if answer else ""
    assert isinstance(example, Instruction | Messages), "load_splits refuses the other kinds"
    turns: tuple[Turn, ...] = (
        instruction_turns(example) if isinstance(example, Instruction) else tuple(example.messages)
    )
    last = max((place for place, turn in enumerate(turns) if turn["role"] == "assistant"), default=-1)
    return (turns[:last], str(turns[last]["content"])) if last > 0 else ((), "")


def single_exchange(messages: Sequence[Turn]) -> tuple[str, str, str]:
    """Question, no input, and answer of a conversation of one exchange; a system turn goes in front of the question."""
    system = [str(message["content"]) for message in messages if message.get("role") == "system"]
    others = [message for message in messages if message.get("role") != "system"]
    if [message.get("role") for message in others] != ["user", "assistant"] or others[1].get("tool_calls"):
        raise DataError(
            "the model has no chat template, and this conversation is more than one question and one answer",
            "use an instruction-tuned model, or set data.chat_template to a Jinja file",
        )
    return "\n\n".join([*system, str(others[0]["content"])]), "", str(others[1]["content"])


def complete(messages: Sequence[Turn]) -> tuple[Turn, ...]:
    """Turns with what some templates insist on.

    Content is a text: none becomes the empty one, and text parts are joined (``DataError`` for parts of other kinds).
    Tool calls and tool turns without an id get one of nine characters; reasoning stands under both of the names that
    templates read, ``reasoning_content`` and ``thinking``.
    """
    done: list[Turn] = []
    pending: list[str] = []
    number = 0
    for message in messages:
        if not isinstance(message.get("content"), str):
            message = {**message, "content": _flattened(message.get("content"))}
        calls = message.get("tool_calls")
        if isinstance(calls, list | tuple):
            named: list[Turn] = []
            for call in cast("Sequence[Turn]", calls):
                number += 1
                named.append({"id": f"call{number:05d}", **call})
            pending = [str(call["id"]) for call in named]
            message = {**message, "tool_calls": named}
        elif message.get("role") == "tool" and "tool_call_id" not in message and pending:
            message = {**message, "tool_call_id": pending.pop(0)}
        if message.get("reasoning_content"):
            message = {"thinking": message["reasoning_content"], **message}
        done.append(message)
    return tuple(done)


def _flattened(content: object) -> str:
    parts = (
        cast("Sequence[object]", content) if isinstance(content, list | tuple) else [] if content is None else [content]
    )
    texts: list[str] = []
    for part in parts:
        fields = cast("Turn", part) if isinstance(part, Mapping) else {}
        text = fields.get("text")
        if fields.get("type", "text") != "text" or not isinstance(text, str):
            raise DataError("a turn has content that is no text", "only text can be learned and answered")
        texts.append(text)
    return "".join(texts)


def wrapped_tools(tools: Sequence[Turn] | None) -> Sequence[Turn] | None:
    """Bare tool descriptions in the form ``{"type": "function", "function": ...}`` that templates read."""
    if not tools:
        return None
    return [tool if "function" in tool else {"type": "function", "function": dict(tool)} for tool in tools]
