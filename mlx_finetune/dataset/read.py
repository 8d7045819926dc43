"""Files to rows, streaming, keeping file and line: JSONL, JSON arrays, CSV, TSV, plain text, each also as .gz.

A byte-order mark, CRLF, blank lines and a missing last newline are accepted. Everything else that is wrong goes to
``report`` and reading goes on with the next row, so that one pass finds every problem. Memory is one row (at most
64 MB) plus buffers. Parquet and ``load_from_disk`` folders are read in ``columnar``.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mlx_finetune.dataset.row import KINDS, Report, Row, file_kind
from mlx_finetune.dataset.sources.arrays import read_array
from mlx_finetune.dataset.sources.columnar import read_parquet
from mlx_finetune.dataset.sources.decode import DecodeError, decode_object, decode_utf8
from mlx_finetune.dataset.sources.opening import FileProblem, open_bytes, read_lines
from mlx_finetune.dataset.sources.plain import read_plain
from mlx_finetune.dataset.sources.tables import read_csv, read_tsv
from mlx_finetune.errors import Problem

__all__ = ["Report", "Row", "read_lines_of", "read_rows"]


def read_rows(path: Path, *, source: str | None = None, report: Report, is_whole: bool = False) -> Iterator[Row]:
    """Rows of one file, in order; every problem goes to ``report`` with ``file:line``. Never raises for bad data.

    ``is_whole``: a file of plain text is one document (``sources.plain``).
    """
    name = str(path) if source is None else source
    try:
        yield from _read(path, name, report, is_whole)
    except FileProblem as problem:
        where = f"{name}:{problem.line}" if problem.line else name
        report(Problem(where, problem.message, problem.hint))


def read_lines_of(stream: BinaryIO, source: str, report: Report) -> Iterator[Row]:
    """Rows of JSON Lines that are open already, as ``read_rows`` gives them."""
    try:
        yield from _read_jsonl(read_lines(stream, source, report), source, report)
    except FileProblem as problem:
        report(Problem(f"{source}:{problem.line}", problem.message, problem.hint))


def _read(path: Path, source: str, report: Report, is_whole: bool) -> Iterator[Row]:
    kind = file_kind(path)
    if kind == "parquet":
        yield from read_parquet(path, source)
        return
    with open_bytes(path) as stream:
        if kind is None:
            endings = ", ".join(KINDS)
            raise FileProblem(f"the ending {path.suffix!r} is not one that is read", f"one of {endings}, each also .gz")
        problems: list[Problem] = []
        is_empty = True

        def note(problem: Problem) -> None:
            problems.append(problem)
            report(problem)

        rows = read_plain(stream, source, note, is_whole) if kind == "text" else _rows_of(kind, stream, source, note)
        for row in rows:
            is_empty = False
            yield row
        if is_empty and not problems:
            raise FileProblem("the file is empty", "put at least one row into it")


def _rows_of(kind: str, stream: BinaryIO, source: str, report: Report) -> Iterator[Row]:
    if kind in ("csv", "tsv"):
        return (read_csv if kind == "csv" else read_tsv)(stream, source, report)
    return _read_json(stream, source, report)


def _read_json(stream: BinaryIO, source: str, report: Report) -> Iterator[Row]:
    """JSONL, an array of objects, or one object that holds such an array: told apart by the first two lines."""
    lines = read_lines(stream, source, report)
    first, second = _next_filled(lines), _next_filled(lines)
    if first is None:
        return
    start = first[1].lstrip()[:1]
    is_object = _is_open_object(first[1], second) if second else first[0] == 1 and _wraps_rows(first[1])
    if start == b"[" or is_object:
        stream.seek(0)
        yield from read_array(stream, source, report)
    else:
        yield from _read_jsonl(itertools.chain([first], [second] if second else [], lines), source, report)


def _next_filled(lines: Iterator[tuple[int, bytes]]) -> tuple[int, bytes] | None:
    return next((line for line in lines if line[1].strip()), None)


def _is_open_object(first: bytes, second: tuple[int, bytes]) -> bool:
    """True where an object begins on the first line and goes on in the second."""
    head, tail = first.strip(), second[1].lstrip()[:1]
    if head == b"{":
        return tail == b'"'
    return head[:1] == b"{" and head[-1:] in (b"[", b"{", b",") and tail != b"{"


def _wraps_rows(line: bytes) -> bool:
    """True for a whole file that is one object around a list of rows, or around other objects."""
    try:
        fields = decode_object(line.decode("utf-8"))
    except (DecodeError, UnicodeDecodeError):
        return False
    values = list(fields.values())
    return bool(values) and (
        (
            len(values) == 1
            and isinstance(values[0], list)
            and "messages" not in fields
            and "conversations" not in fields
        )
        or all(isinstance(value, dict) for value in values)
    )


def _read_jsonl(lines: Iterator[tuple[int, bytes]], source: str, report: Report) -> Iterator[Row]:
    for number, line in lines:
        if line.isspace() or not line:
            continue
        try:
            yield Row(decode_object(decode_utf8(line.rstrip(b"\r\n"))), source, number)
        except DecodeError as error:
            column = "" if error.position is None else f" (column {error.position + 1})"
            report(Problem(f"{source}:{number}", error.message + column, "one JSON object on each line"))
