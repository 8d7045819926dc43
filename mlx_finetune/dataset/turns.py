"""Conversations of many tools to one shape: a tuple of turns with ``role``, ``content`` and what belongs to them.

A turn that leaves here has ``role`` (system, user, assistant or tool) and ``content`` (a text, perhaps empty), and
where the row has them ``reasoning_content``, ``tool_calls`` (each ``{"type": "function", "function": {"name",
"arguments"}}`` with the arguments as an object), ``tool_call_id`` and ``name``. Other keys of a turn are left out.
"""

from collections.abc import Mapping, Sequence
from typing import cast

from mlx_finetune.dataset.problems import show, show_names
from mlx_finetune.dataset.sources.decode import DecodeError, decode_text

Turn = Mapping[str, object]

#: Names of speakers in data sets -> the role of chat templates.
ROLES: Mapping[str, str] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}

_ROLE_NAMES = frozenset({"system", "user", "assistant", "tool"})
_CALL_ROLES = ("function_call", "tool_call")
_KEPT = ("reasoning_content", "tool_call_id", "name")


class TurnError(ValueError):
    """What is wrong with one turn or one tool; ``hint`` may be empty."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def read_turns(value: object, field: str) -> tuple[Turn, ...]:
    """The turns in ``value``, in our shape. Raises ``TurnError`` naming ``field`` and the turn, counted from 1."""
    if not isinstance(value, list):
        raise TurnError(f"`{field}` must be a list of turns; this is {show(value)}")
    if not value:
        raise TurnError(f"`{field}` is empty")
    turns = cast(list[object], value)
    return tuple(
        [
            cast(Turn, turn) if _is_plain(turn) else _read_turn(turn, f"`{field}` turn {number}")
            for number, turn in enumerate(turns, 1)
        ]
    )


def _is_plain(turn: object) -> bool:
    """True for a turn that has our shape already, as most have: it is kept as it is, without a copy."""
    if type(turn) is not dict or len(turn) != 2:  # pyright: ignore[reportUnknownArgumentType]
        return False
    fields = cast(dict[str, object], turn)
    return fields.get("role") in _ROLE_NAMES and type(fields.get("content")) is str


def read_turn(value: object, field: str) -> Turn:
    """One turn in our shape. Raises ``TurnError``."""
    return _read_turn(value, f"`{field}`")


def _read_turn(value: object, place: str) -> Turn:
    if not isinstance(value, dict):
        raise TurnError(f"{place} must be an object with `role` and `content`; this is {show(value)}")
    fields = cast(dict[str, object], value)
    speaker = fields.get("role", fields.get("from"))
    if not isinstance(speaker, str):
        what = "has no `role`" if speaker is None else f"has the role {show(speaker)}, which is not a text"
        raise TurnError(f"{place} {what}", f"the turn has {show_names(list(fields))}" if speaker is None else "")
    role = ROLES.get(speaker) or ROLES.get(speaker.strip().lower())
    if role is None:
        raise TurnError(f"{place} has the unknown role {show(speaker)}", "roles are system, user, assistant and tool")
    content = fields["content"] if "content" in fields else fields.get("value")
    if speaker in _CALL_ROLES:
        return {"role": role, "content": "", "tool_calls": read_calls(content, place)}
    return _read_rich_turn(fields, role, content, place)


def _read_rich_turn(fields: Mapping[str, object], role: str, content: object, place: str) -> Turn:
    turn: dict[str, object] = {"role": role}
    calls: list[object] = []
    if isinstance(content, str):
        turn["content"] = content
    elif isinstance(content, list):
        text, reasoning = _read_parts(cast(list[object], content), calls, place)
        turn["content"] = text
        if reasoning:
            turn["reasoning_content"] = reasoning
    elif content is None and fields.get("tool_calls"):
        turn["content"] = ""
    elif "content" not in fields and "value" not in fields:
        raise TurnError(f"{place} has no `content`", f"the turn has {show_names(list(fields))}")
    else:
        raise TurnError(f"{place}: `content` must be a text; this is {show(content)}")
    for name in _KEPT:
        kept = fields.get(name)
        if kept is not None and not isinstance(kept, str):
            raise TurnError(f"{place}: `{name}` must be a text; this is {show(kept)}")
        if kept:
            turn[name] = kept
    if fields.get("tool_calls"):
        calls.extend(read_calls(fields["tool_calls"], place))
    if calls:
        if role != "assistant":
            raise TurnError(f"{place}: only an assistant turn can have `tool_calls`; this one is {show(role)}")
        turn["tool_calls"] = tuple(calls)
    return turn


def _read_parts(parts: Sequence[object], calls: list[object], place: str) -> tuple[str, str]:
    """Text and reasoning of typed content parts; tool calls among them are added to ``calls``."""
    texts: list[str] = []
    reasoning: list[str] = []
    for part in parts:
        if not isinstance(part, dict):
            raise TurnError(f"{place}: a content part must be an object with `type`; this is {show(part)}")
        fields = cast(dict[str, object], part)
        kind = fields.get("type")
        value = next((fields[key] for key in ("text", "value", "thinking", "reasoning") if key in fields), None)
        if kind in ("tool_call", "function_call"):
            calls.extend(read_calls(fields if value is None else value, place))
        elif kind in ("text", "reasoning", "thinking"):
            if not isinstance(value, str):
                raise TurnError(f"{place}: a content part of type {show(kind)} needs a text; this is {show(value)}")
            (texts if kind == "text" else reasoning).append(value)
        else:
            raise TurnError(
                f"{place}: a content part of type {show(kind)} cannot be learned from",
                "text, reasoning and tool_call parts can",
            )
    return "".join(texts), "".join(reasoning)


def read_calls(value: object, place: str) -> tuple[Mapping[str, object], ...]:
    """Tool calls given as JSON text, one object or a list, in one shape. Raises ``TurnError``."""
    decoded = _decode(value, f"{place}: a tool call")
    items = cast(list[object], decoded) if isinstance(decoded, list) else [decoded]
    return tuple(_read_call(item, place) for item in items)


def _read_call(item: object, place: str) -> Mapping[str, object]:
    if not isinstance(item, dict):
        raise TurnError(f"{place}: a tool call must be an object with `name` and `arguments`; this is {show(item)}")
    fields = cast(dict[str, object], item)
    inner = fields.get("function", fields)
    function = cast(dict[str, object], inner) if isinstance(inner, dict) else {"name": inner, **fields}
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise TurnError(f"{place}: a tool call has no `name`", f"it has {show_names(list(function))}")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            decoded = decode_text(arguments)
        except DecodeError:
            decoded = arguments
        arguments = decoded if isinstance(decoded, dict) else arguments
    call: dict[str, object] = {"type": "function", "function": {"name": name, "arguments": arguments}}
    if isinstance(fields.get("id"), str):
        call["id"] = fields["id"]
    return call


def read_tools(value: object) -> tuple[Mapping[str, object], ...] | None:
    """Tool descriptions given as a list or as JSON text; None where there are none. Raises ``TurnError``."""
    if value is None or value == "":
        return None
    decoded = _decode(value, "`tools`")
    if not isinstance(decoded, list):
        raise TurnError(f"`tools` must be a list, or a list as JSON text; this is {show(decoded)}")
    tools = cast(list[object], decoded)
    for tool in tools:
        if not isinstance(tool, dict):
            raise TurnError(f"`tools`: each must be an object; this is {show(tool)}")
    return tuple(cast(list[Mapping[str, object]], tools)) or None


def _decode(value: object, place: str) -> object:
    if not isinstance(value, str):
        return value
    try:
        return decode_text(value)
    except DecodeError as error:
        raise TurnError(f"{place} cannot be read ({error.message}): {show(value)}") from None
