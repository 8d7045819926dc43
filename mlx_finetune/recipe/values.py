"""Values as TOML text: exact for files, shortened and safe for messages.

Whole values parse back with ``tomllib`` into the same value. Messages never carry a secret, a control character or
more than about eighty characters.
"""

import re
from collections.abc import Mapping, Sequence

#: A Hugging Face access token: the prefix and a long run of letters and digits (real ones have 34).
TOKEN = re.compile(r"hf_[A-Za-z0-9]{16,}")
#: Characters that reorder the text around them: what a person reads is then not what the program sees.
BIDI = re.compile("[\u202a-\u202e\u2066-\u2069]")
_ESCAPES = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r", '"': '\\"', "\\": "\\\\"}
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_MESSAGE_CHARACTERS = 80
_MESSAGE_DEPTH = 3
_MESSAGE_ITEMS = 8
_MESSAGE_DIGITS = 40


def toml_key(key: str) -> str:
    """``key`` as it stands left of ``=``: bare where TOML allows it, else in quotes."""
    return key if _BARE_KEY.fullmatch(key) else toml_value(key)


def toml_value(value: object) -> str:
    """``value`` as TOML on one line; tables are written inline. ``value`` holds no None."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + "".join(_escape(character) for character in value) + '"'
    if isinstance(value, Mapping):
        pairs = [f"{toml_key(str(key))} = {toml_value(item)}" for key, item in value.items()]  # pyright: ignore[reportUnknownVariableType,reportUnknownArgumentType]
        return "{ " + ", ".join(pairs) + " }" if pairs else "{}"
    if isinstance(value, Sequence):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"  # pyright: ignore[reportUnknownVariableType]
    return str(value)  # int; float, whose repr is TOML including nan and inf; dates, which are ISO 8601


def _escape(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isprintable() or character == " ":
        return character
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}"


def shown(value: object) -> str:
    """``value`` as TOML for a message: short, on one line, without secrets or control characters."""
    text = without_tokens(_shown(value, 0))
    return text if len(text) <= _MESSAGE_CHARACTERS else text[: _MESSAGE_CHARACTERS - 3] + "..."


def shown_name(name: object) -> str:
    """A key as the user wrote it, safe for a message."""
    return _shorten(without_tokens("".join(_escape(c) if c not in '"\\' else c for c in str(name))))


def shown_path(path: Sequence[str | int]) -> str:
    """``("data", "sources", 0, "path")`` -> ``"data.sources[0].path"``, safe for a message."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{shown_name(part)}" if text else shown_name(part)
    return text


def _shorten(text: str) -> str:
    return text if len(text) <= _MESSAGE_CHARACTERS else text[: _MESSAGE_CHARACTERS - 3] + "..."


def without_tokens(text: str) -> str:
    """``text`` with every access token of the hub cut out."""
    return TOKEN.sub("hf_***", text)


def _shown(value: object, depth: int) -> str:
    if isinstance(value, str):
        # The token is cut out before the text is shortened, or half of it would survive.
        return toml_value(without_tokens(value)[:_MESSAGE_CHARACTERS])
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**_MESSAGE_DIGITS:
        # Above 4300 digits Python refuses to print an integer at all.
        return f"a whole number of more than {_MESSAGE_DIGITS} digits"
    if isinstance(value, Mapping | list | tuple):
        if depth >= _MESSAGE_DEPTH:
            return "..."
        return _shown_items(value, depth)  # pyright: ignore[reportUnknownArgumentType]
    return toml_value(value)


def _shown_items(value: Mapping[object, object] | Sequence[object], depth: int) -> str:
    if isinstance(value, Mapping):
        pairs = [
            f"{toml_key(str(key))} = {_shown(item, depth + 1)}" for key, item in list(value.items())[:_MESSAGE_ITEMS]
        ]
        return "{ " + ", ".join(pairs) + (", ..." if len(value) > _MESSAGE_ITEMS else "") + " }" if pairs else "{}"
    items = [_shown(item, depth + 1) for item in value[:_MESSAGE_ITEMS]]
    return "[" + ", ".join(items) + (", ..." if len(value) > _MESSAGE_ITEMS else "") + "]"
