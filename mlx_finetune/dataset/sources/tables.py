"""CSV and TSV, with or without a header line.

CSV follows RFC 4180, with commas or, where the first line has none, semicolons: quoted fields may hold newlines. A TSV
record is always one line, because quotes in TSV are mostly text; a field quoted correctly from end to end is unquoted
all the same. The first line is a header when it names a column that is known (``layouts``), or when its cells are
short, unlike and do not come back below.
Without a header the columns are column1, column2 and so on; two columns whose second has few values are text, label.
"""

import csv
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from mlx_finetune.dataset.layouts import KNOWN_COLUMNS
from mlx_finetune.dataset.row import Report, Row
from mlx_finetune.dataset.sources.decode import DecodeError, decode_utf8
from mlx_finetune.dataset.sources.opening import MAX_LINE_BYTES, FileProblem, read_lines
from mlx_finetune.errors import Problem

LOOK_AHEAD = 200

_NAME = re.compile(r"[A-Za-z_][\w .()/-]{0,39}")
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')

Record = tuple[int, Sequence[str]]


def read_csv(stream: BinaryIO, source: str, report: Report) -> Iterator[Row]:
    """Rows of a CSV file; ``line`` is the first line of a record."""
    return _rows(_csv_records(stream, source, report), source, report)


def read_tsv(stream: BinaryIO, source: str, report: Report) -> Iterator[Row]:
    """Rows of a TSV file."""
    return _rows(_tsv_records(stream, source, report), source, report)


def _decoded(stream: BinaryIO, source: str, report: Report) -> Iterator[tuple[int, str]]:
    for number, line in read_lines(stream, source, report):
        try:
            yield number, decode_utf8(line)
        except DecodeError as error:
            report(Problem(f"{source}:{number}", error.message, "save the file as UTF-8"))


def _csv_records(stream: BinaryIO, source: str, report: Report) -> Iterator[Record]:
    lines = _decoded(stream, source, report)
    head = next(lines, None)
    if head is None:
        return
    current = 0

    def feed() -> Iterator[str]:
        nonlocal current
        for number, line in itertools.chain([head], lines):
            current = number
            yield line

    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(feed(), strict=True, delimiter=_delimiter(head[1]))
    while True:
        first = current + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                report(
                    Problem(f"{source}:{first}", "a quote opened in this record is never closed", 'write " as "" in it')
                )
                return
            report(Problem(f"{source}:{first}", f"not CSV: {error}", 'a quote inside a quoted field is written ""'))
            continue
        if any(cell.strip() for cell in record):
            yield first, record


def _delimiter(line: str) -> str:
    """Comma; semicolon or tab where the first line has one of them and no comma, as many spreadsheets write."""
    return next((mark for mark in ",;\t" if mark in line), ",")


def _tsv_records(stream: BinaryIO, source: str, report: Report) -> Iterator[Record]:
    for number, line in _decoded(stream, source, report):
        content = line.rstrip("\r\n")
        if content.strip():
            yield number, [_unquote(field) for field in content.split("\t")]


def _unquote(field: str) -> str:
    match = _QUOTED.fullmatch(field) if field.startswith('"') else None
    return match.group(1).replace('""', '"') if match else field


def _rows(records: Iterator[Record], source: str, report: Report) -> Iterator[Row]:
    head = list(itertools.islice(records, LOOK_AHEAD))
    if not head:
        return
    names = _header(head)
    if names is None:
        names = _column_names(head)
    else:
        header = head.pop(0)
        if len(set(names)) != len(names):
            raise FileProblem("two columns of the header have one name", "give each column its own", line=header[0])
    width = len(names)
    for number, record in itertools.chain(head, records):
        if len(record) == width:
            yield Row(dict(zip(names, record, strict=True)), source, number)
        else:
            message = f"the record has {len(record)} fields, the file has {width} columns"
            report(Problem(f"{source}:{number}", message, "quote a field that holds the separator"))


def _header(records: Sequence[Record]) -> Sequence[str] | None:
    """Names from the first record, or None where it is data."""
    first = [cell.strip() for cell in records[0][1]]
    if any(cell.lower() in KNOWN_COLUMNS for cell in first):
        return [cell.lower() if cell.lower() in KNOWN_COLUMNS else cell for cell in first]
    if not all(_NAME.fullmatch(cell) for cell in first) or len(set(first)) != len(first):
        return None
    comes_back = any(cell in record[:width] for width in (len(first),) for _, record in records[1:] for cell in first)
    return None if comes_back else first


def _column_names(records: Sequence[Record]) -> Sequence[str]:
    width = max((len(record) for _, record in records), key=[len(record) for _, record in records].count)
    if width == 2:
        labels = [record[1] for _, record in records if len(record) == 2]
        if len(set(labels)) <= max(2, len(labels) // 5) and max(map(len, labels)) <= 40:
            return ("text", "label")
    return tuple(f"column{number}" for number in range(1, width + 1))
