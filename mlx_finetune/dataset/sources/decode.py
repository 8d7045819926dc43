"""Bytes to text and one JSON object, stricter than the standard library where that protects training.

Refused: invalid UTF-8, NaN and infinities, numbers beyond a float, a key given twice, half a surrogate pair, nesting
beyond the interpreter's limit. The hook for repeated keys costs about 0.4 us an object.
"""

import json
import re
import sys
from collections.abc import Iterable, Mapping
from typing import NoReturn, cast

from mlx_finetune.dataset.problems import show

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")

Fields = dict[str, object]


class DecodeError(ValueError):
    """What is wrong with one piece of JSON; ``column`` is 1-based, or None where it is not known."""

    def __init__(self, message: str, *, position: int | None = None, is_cut: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.position = position
        self.is_cut = is_cut


def decode_utf8(line: bytes) -> str:
    """The text of one line. Raises ``DecodeError`` naming the byte."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise DecodeError(f"byte {error.start + 1} of the line is 0x{byte:02x}, which is not UTF-8") from None


def _refuse_constant(name: str) -> NoReturn:
    raise DecodeError(f"the number {name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise DecodeError("a number is too large")
    return number


def _unique(pairs: list[tuple[str, object]]) -> Fields:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise DecodeError(f"the key {show(name)} stands twice in one object")
            seen.add(name)
    return fields


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite)


def decode_value(text: str, start: int = 0) -> tuple[object, int]:
    """The JSON value that begins at ``start`` and the position after it. Raises ``DecodeError``.

    ``DecodeError.is_cut`` is True where the text may simply end too early.
    """
    try:
        value, end = cast(tuple[object, int], _DECODER.raw_decode(text, start))
    except json.JSONDecodeError as error:
        is_cut = error.pos >= len(text) - 12 or error.msg.startswith("Unterminated string")
        raise DecodeError(f"not JSON: {_lower(error.msg)}", position=error.pos, is_cut=is_cut) from None
    except RecursionError:
        raise DecodeError(f"nested deeper than {sys.getrecursionlimit()} levels") from None
    except DecodeError:
        raise
    except ValueError:
        raise DecodeError("a number has too many digits") from None
    has_escape = text.find("\\ud", start, end) >= 0 or text.find("\\uD", start, end) >= 0
    if has_escape and _SURROGATE.search(text, start, end):
        _refuse_surrogates(value)
    return value, end


def decode_text(text: str) -> object:
    """The one JSON value that ``text`` is. Raises ``DecodeError``."""
    start = len(text) - len(text.lstrip(" \t\r\n"))
    value, end = decode_value(text, start)
    if text[end:].strip():
        raise DecodeError("something follows the end of the object", position=end)
    return value


def decode_object(line: str) -> Fields:
    """The object on one line. Raises ``DecodeError``."""
    value = decode_text(line)
    if not isinstance(value, dict):
        raise DecodeError(f'a row must be an object such as {{"text": ...}}; this is {show(value)}')
    return cast(Fields, value)


def _refuse_surrogates(value: object) -> None:
    stack: list[object] = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            try:
                item.encode("utf-8")
            except UnicodeEncodeError as error:
                code = ord(item[error.start])
                raise DecodeError(f"\\u{code:04x} is half a character (a lone surrogate)") from None
        elif isinstance(item, dict):
            fields = cast(Mapping[str, object], item)
            stack.extend(fields)
            stack.extend(fields.values())
        elif isinstance(item, list):
            stack.extend(cast(Iterable[object], item))


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]
