"""Which line of a TOML text a key stands on; ``tomllib`` keeps no positions.

One pass over tokens, for text that ``tomllib`` has accepted (or has refused for a repeated key). It knows table
headers, arrays of tables, dotted and quoted keys, inline tables and the elements of arrays; it checks nothing and never
raises. Milliseconds for a recipe, at most a few seconds for a hostile text of 1 MB; only done when there is an error.
"""

import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

Path = tuple[str | int, ...]

#: Paths are cut to this many parts: no recipe has more, and hostile nesting would cost quadratic memory.
_DEEPEST = 32

# A string that is never closed ends with the line (or the text): every character is read once, whatever the input.
_TOKEN = re.compile(
    r'(?P<string>"""(?:\\.|[^\\])*?(?:"{3,5}|\Z)|\'\'\'.*?(?:\'{3,5}|\Z)'
    r'|"(?:\\.|[^"\\\n])*+(?:"|(?=\n)|\Z|\\)|\'[^\'\n]*+\'?)'
    r"|(?P<comment>\#[^\n]*)|(?P<newline>\n)|(?P<space>[ \t\r]+)|(?P<mark>[\[\]{}=,.])"
    r"|(?P<word>[^\s\[\]{}=,.#\"']+|.)",
    re.DOTALL,
)


class _Token(NamedTuple):
    kind: str
    text: str
    line: int
    end: int


@dataclass(slots=True)
class KeyLines:
    """Lines (from 1) of everything a TOML text defines."""

    #: First line of a path, prefixes of dotted keys and headers included.
    first: dict[Path, int] = field(default_factory=lambda: dict[Path, int]())
    #: Keys and headers in file order, with their lines; prefixes are not in it.
    written: list[tuple[Path, int]] = field(default_factory=lambda: list[tuple[Path, int]]())

    def line_of(self, path: Sequence[str | int]) -> int | None:
        """Line of ``path`` or of the nearest thing that contains it; None where nothing does."""
        for length in range(len(path), 0, -1):
            line = self.first.get(tuple(path[:length]))
            if line is not None:
                return line
        return None

    def repeated(self) -> tuple[Path, int, int] | None:
        """The first path that is written twice, with both lines."""
        seen: dict[Path, int] = {}
        for path, line in self.written:
            if path in seen:
                return path, seen[path], line
            seen[path] = line
        return None

    def add(self, path: Path, line: int, *, implicit: int = 0) -> None:
        """``path`` is written on ``line``; its last ``implicit`` prefixes begin there too if they are new."""
        self.written.append((path, line))
        for length in range(max(1, len(path) - implicit), len(path) + 1):
            self.first.setdefault(path[:length], line)


def locate_keys(text: str) -> KeyLines:
    """Lines of every table, key and array element in ``text``."""
    lines = KeyLines()
    tokens = _tokens(text)
    arrays: dict[Path, int] = {}
    table: Path = ()
    statement: list[_Token] = []
    for token in tokens:
        if token.kind == "newline":
            statement = []
        elif token.kind == "mark" and token.text == "=":
            path = (table + _names(statement))[:_DEEPEST]
            lines.add(path, token.line, implicit=len(statement))
            _scan_value(tokens, path, lines)
            statement = []
        elif token.kind == "mark" and token.text == "]" and statement and statement[0].text == "[":
            # [[x]] closes twice; the first bracket is enough, the second finds no statement.
            table = _open_table(statement, arrays, lines)
            statement = []
        else:
            statement.append(token)
    return lines


def _open_table(header: list[_Token], arrays: dict[Path, int], lines: KeyLines) -> Path:
    is_array = len(header) > 1 and header[1].text == "[" and header[1].end == header[0].end + 1
    names = _names(header[2 if is_array else 1 :])
    path: Path = ()
    for position, name in enumerate(names):
        path = (*path, name)
        last = position == len(names) - 1
        if path in arrays and not last:
            path = (*path, arrays[path])
    if is_array:
        arrays[path] = arrays.get(path, -1) + 1
        lines.first.setdefault(path, header[0].line)
        path = (*path, arrays[path])
    path = path[:_DEEPEST]
    lines.add(path, header[0].line, implicit=len(names))
    return path


def _scan_value(tokens: Iterator[_Token], path: Path, lines: KeyLines) -> None:
    """Read the value of ``path`` to its end, noting the lines of what is inside arrays and inline tables."""
    stack: list[_Frame] = []
    for token in tokens:
        frame = stack[-1] if stack else None
        if frame is not None and frame.index is not None and token.text not in {",", "]"} and token.kind != "newline":
            lines.first.setdefault((*frame.path, frame.index)[:_DEEPEST], token.line)
        if token.kind == "newline" and frame is None:
            return
        if token.kind != "mark" and frame is not None and frame.in_key:
            frame.key.append(token)
        elif token.kind == "mark":
            _scan_mark(token, path, stack, lines)


@dataclass(slots=True)
class _Frame:
    """An open array (``index`` is the element's number) or inline table (``key`` is being read while ``in_key``)."""

    path: Path
    index: int | None
    in_key: bool
    key: list[_Token] = field(default_factory=lambda: list[_Token]())


def _scan_mark(token: _Token, path: Path, stack: list[_Frame], lines: KeyLines) -> None:
    frame = stack[-1] if stack else None
    if token.text in "[{":
        inner = path if frame is None else (*frame.path, frame.index) if frame.index is not None else _inner(frame)
        stack.append(_Frame(inner[:_DEEPEST], 0 if token.text == "[" else None, in_key=token.text == "{"))
    elif frame is None:
        return
    elif token.text in "]}":
        stack.pop()
    elif token.text == "," and frame.index is not None:
        frame.index += 1
    elif token.text == ",":
        frame.in_key, frame.key = True, []
    elif token.text == "=" and frame.in_key:
        frame.in_key = False
        lines.add(_inner(frame), token.line, implicit=len(frame.key))


def _inner(frame: _Frame) -> Path:
    return (frame.path + _names(frame.key))[:_DEEPEST]


def _names(tokens: Sequence[_Token]) -> tuple[str, ...]:
    names = [token for token in tokens if token.kind in {"word", "string"}]
    return tuple(_unquote(name) for name in names[:_DEEPEST])


def _unquote(token: _Token) -> str:
    if token.kind == "word":
        return token.text
    try:
        return str(tomllib.loads(f"name = {token.text}")["name"])
    except tomllib.TOMLDecodeError:
        return token.text


def _tokens(text: str) -> Iterator[_Token]:
    """Tokens without spaces and comments; a multi-line string stands on the line where it begins."""
    line = 1
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or "word"
        if kind not in {"space", "comment"}:
            yield _Token(kind, match.group(), line, match.end())
        line += match.group().count("\n")
