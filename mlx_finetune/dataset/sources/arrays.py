"""A JSON array of objects, or one object around such an array, read piece by piece.

Each element is decoded by itself from a buffer that grows only as far as the element needs (at most 64 MB), so a file
of any size takes bounded memory. An array with a syntax error cannot be read past it: the place is reported once.
"""

import codecs
from collections.abc import Iterator
from typing import BinaryIO, cast

from mlx_finetune.dataset.problems import show, show_names
from mlx_finetune.dataset.row import Report, Row
from mlx_finetune.dataset.sources.decode import DecodeError, decode_value
from mlx_finetune.dataset.sources.opening import BUFFER_BYTES, MAX_LINE_BYTES, FileProblem, refuse_utf16
from mlx_finetune.errors import Problem

_SPACE = " \t\r\n"


class _Text:
    """The undecoded part of a UTF-8 stream, with the line number of its first character."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8-sig")()
        self._bytes_before = 0
        self.buffer = ""
        self.position = 0
        self.line = 1
        self.column = 1
        self.is_at_end = False

    def more(self) -> bool:
        """Read another piece; False at the end of the file. Raises ``FileProblem`` for bytes that are not UTF-8."""
        if self.is_at_end:
            return False
        if len(self.buffer) - self.position > MAX_LINE_BYTES:
            raise FileProblem("one row has more than 64 million characters", "one row for each example", line=self.line)
        piece = self._stream.read(BUFFER_BYTES)
        if self._bytes_before == 0:
            refuse_utf16(piece)
        try:
            text = self._decode.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            line = self.line + self.buffer.count("\n", self.position) + error.object.count(b"\n", 0, error.start)
            line_start = error.object.rfind(b"\n", 0, error.start) + 1
            byte = f"byte {error.start - line_start + 1} of the line is 0x{error.object[error.start]:02x}"
            raise FileProblem(f"{byte}, which is not UTF-8", "save the file as UTF-8", line=line) from None
        self._bytes_before += len(piece)
        self.buffer = self.buffer[self.position :] + text
        self.position = 0
        self.is_at_end = not piece
        return bool(piece)

    def peek(self) -> str:
        """The next character that is not white space, without taking it; empty at the end."""
        while True:
            start = self.position
            while start < len(self.buffer) and self.buffer[start] in _SPACE:
                start += 1
            self.advance(start)
            if start < len(self.buffer):
                return self.buffer[start]
            if not self.more():
                return ""

    def advance(self, position: int) -> None:
        """Take everything before ``position``."""
        self.line, self.column = self.place(position)
        self.position = position

    def place(self, position: int) -> tuple[int, int]:
        """Line and column of a position in the buffer at or behind the present one, both from 1."""
        newline = self.buffer.rfind("\n", self.position, position)
        column = position - newline if newline >= 0 else self.column + position - self.position
        return self.line + self.buffer.count("\n", self.position, position), column

    def value(self) -> object:
        """Take one JSON value. Raises ``DecodeError``."""
        while True:
            try:
                value, end = decode_value(self.buffer, self.position)
            except DecodeError as error:
                offset = (error.position or 0) - self.position
                if error.is_cut and self.more():
                    continue
                error.position = None if error.position is None else self.position + offset
                raise
            if end == len(self.buffer) and not isinstance(value, dict | list) and self.more():
                continue
            self.advance(end)
            return value


def read_array(stream: BinaryIO, source: str, report: Report) -> Iterator[Row]:
    """Rows of an array; elements that are no objects are reported. Raises ``FileProblem`` where reading must end."""
    text = _Text(stream)
    is_wrapped = text.peek() == "{"
    if is_wrapped:
        _enter_object(stream, text)
    text.advance(text.position + 1)
    try:
        yield from _elements(text, source, report)
    except DecodeError as error:
        line, column = text.line, ""
        if error.position is not None:
            line, number = text.place(error.position)
            column = f" (column {number})"
        raise FileProblem(f"{error.message}{column}; the rest of the file was not read", line=line) from None
    if is_wrapped and text.peek() == "}":
        text.advance(text.position + 1)
    if text.peek():
        rest = show(text.buffer[text.position : text.position + 30])
        raise FileProblem(f"something follows the end of the array: {rest}", line=text.line)


def _elements(text: _Text, source: str, report: Report) -> Iterator[Row]:
    if text.peek() == "]":
        text.advance(text.position + 1)
        raise FileProblem("the array is empty", "put at least one row into it")
    while True:
        text.peek()
        line = text.line
        value = text.value()
        if isinstance(value, dict):
            yield Row(cast(dict[str, object], value), source, line)
        else:
            report(Problem(f"{source}:{line}", f"a row must be an object; this is {show(value)}"))
        separator = text.peek()
        if separator == "]":
            text.advance(text.position + 1)
            return
        if separator != ",":
            end = "the file ends inside the array" if not separator else f"a comma is missing before {show(separator)}"
            raise DecodeError(f"not JSON: {end}", position=text.position)
        text.advance(text.position + 1)


def _enter_object(stream: BinaryIO, text: _Text) -> None:
    """Place ``text`` at the array inside an object with that one key. Raises ``FileProblem`` for any other object."""
    while len(text.buffer) <= MAX_LINE_BYTES and text.more():
        pass
    try:
        value, _ = decode_value(text.buffer, text.position)
    except DecodeError as error:
        line = text.line + text.buffer.count("\n", 0, error.position or 0)
        raise FileProblem(
            error.message, "JSONL has one object on each line; an array begins with [", line=line
        ) from None
    fields = cast(dict[str, object], value)
    values = list(fields.values())
    if len(values) != 1 or not isinstance(values[0], list):
        what = show_names(list(fields), limit=5)
        hint = "write its rows as JSONL, one object on each line"
        raise FileProblem(f"the file is one object ({what}), not rows", hint)
    text.advance(text.position + 1)
    text.peek()
    text.value()
    text.peek()
    text.advance(text.position + 1)
    text.peek()
