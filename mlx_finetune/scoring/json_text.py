"""JSON in the texts of models: the first object of an answer, when it closes, and what it holds.

``first_object`` and ``ObjectScanner`` find brackets and strings and check nothing else: an object begins at a ``{``
followed, after spaces, by ``"`` or ``}`` (so ``{braces}`` in prose begin none) and ends where its brackets close.
Brackets in strings do not count. A closing bracket of the wrong kind gives the object up, and the search goes on
behind it. Code fences and prose stay outside; nothing is added, removed or repaired. Whether the piece is JSON,
``parse`` says.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from enum import Enum
from typing import NoReturn, cast

MAX_DEPTH = 100

_SPACE = " \t\r\n"
_BEGIN = re.compile("{")
_MARK = re.compile(r'["{}\[\]]')
_STRING_MARK = re.compile(r'["\\]')
_PARTNER = {"}": "{", "]": "["}
_SURROGATE = re.compile("[\ud800-\udfff]")


class NotJsonError(ValueError):
    """Why a text is not one JSON value; the message is a part of a sentence."""


class _State(Enum):
    OUTSIDE = 0
    OPENED = 1  # after a "{" that may begin the object
    INSIDE = 2
    STRING = 3
    ESCAPE = 4
    CLOSED = 5


class ObjectScanner:
    """Finds the end of the first top-level object of a text that arrives in pieces, cut anywhere."""

    def __init__(self) -> None:
        self._state = _State.OUTSIDE
        self._open: list[str] = []
        self._num_read = 0  # characters of all pieces so far
        self.start: int | None = None
        """Where the object begins, counted from the first piece; None while there is none."""

    def feed(self, text: str) -> int | None:
        """How many characters *of this piece* there are up to and including the brace that closes the object, or None.

        After the object has closed every further piece gives 0.
        """
        if self._is_closed():
            return 0
        at = 0
        while at < len(text):
            at = self._advance(text, at)
            if self._is_closed():
                return at
        self._num_read += len(text)
        return None

    def _advance(self, text: str, at: int) -> int:
        """Go to the next character that matters, take it, and return the position behind it."""
        match self._state:
            case _State.OUTSIDE:
                found = _BEGIN.search(text, at)
                if found:
                    self._state, self._open, self.start = _State.OPENED, ["{"], self._num_read + found.start()
            case _State.OPENED:
                return self._second(text, at)
            case _State.INSIDE:
                found = _MARK.search(text, at)
                if found:
                    self._bracket(found[0])
            case _State.STRING:
                found = _STRING_MARK.search(text, at)
                if found:
                    self._state = _State.INSIDE if found[0] == '"' else _State.ESCAPE
            case _:
                self._state = _State.STRING
                return at + 1
        return found.end() if found else len(text)

    def _second(self, text: str, at: int) -> int:
        """The first character behind the opening brace that is no space."""
        if text[at] in _SPACE:
            return at + 1
        if text[at] in '"}':
            self._state = _State.INSIDE
        else:
            self._give_up()
        return at  # what it is, the next state sees

    def _bracket(self, mark: str) -> None:
        if mark == '"':
            self._state = _State.STRING
        elif mark in "{[":
            self._open.append(mark)
        elif self._open.pop() != _PARTNER[mark]:
            self._give_up()
        elif not self._open:
            self._state = _State.CLOSED

    def _is_closed(self) -> bool:
        return self._state is _State.CLOSED

    def _give_up(self) -> None:
        self._state, self.start = _State.OUTSIDE, None


def first_object(text: str) -> str | None:
    """The first balanced top-level object, as it stands in the text, or None where none closes."""
    scanner = ObjectScanner()
    end = scanner.feed(text)
    return None if end is None else text[scanner.start : end]


def parse(text: str) -> object:
    """The one JSON value that the text is, spaces around it allowed. Raises ``NotJsonError``.

    Stricter than Python: no NaN and no number beyond a float, no key twice in one object (readers disagree on which
    counts), no half of a surrogate pair, at most 100 levels.
    """
    try:
        value = cast(object, _DECODER.decode(text.strip(_SPACE)))
    except RecursionError:
        raise NotJsonError(f"nested deeper than {MAX_DEPTH} levels") from None
    except json.JSONDecodeError as error:
        raise NotJsonError(
            f"line {error.lineno}, column {error.colno}: {error.msg[:1].lower()}{error.msg[1:]}"
        ) from None
    except NotJsonError:
        raise
    except ValueError:
        raise NotJsonError("a number has too many digits") from None
    _check(value)
    return value


def _check(value: object) -> None:
    """Refuse deep nesting and half characters, level by level and without recursion."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [below for item in level for below in _children(item)]
        if not level:
            return
    for item in level:
        if isinstance(item, dict | list):
            raise NotJsonError(f"nested deeper than {MAX_DEPTH} levels")
        _children(item)


def _children(item: object) -> Iterable[object]:
    if isinstance(item, str):
        _refuse_half_character(item)
    elif isinstance(item, dict):
        fields = cast(dict[str, object], item)
        for name in fields:
            _refuse_half_character(name)
        return fields.values()
    elif isinstance(item, list):
        return cast(list[object], item)
    return ()


def _refuse_half_character(text: str) -> None:
    if found := _SURROGATE.search(text):
        raise NotJsonError(f"\\u{ord(found[0]):04x} is half a character (a lone surrogate)")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise NotJsonError(f"the key {twice[:80]!r} stands twice in one object")
    return fields


def _refuse_constant(name: str) -> NoReturn:
    raise NotJsonError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise NotJsonError(f"the number {text[:40]} is too large")
    return number


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite)
