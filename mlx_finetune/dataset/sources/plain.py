"""Plain text to rows of one document each.

Lines of ``<|endoftext|>`` alone stand between documents where a file has some. Without them, with a blank line
somewhere in the file, blank lines stand between documents and the lines of one belong together; without one, every line
is a document; or the file is one (``documents = "file"``). Two forms that only look like text are told apart: bAbI
stories (numbered lines, questions with tabs) become rows with story, question and answer; token-and-tag lists for named
entities are refused.

A document that is read whole comes in stretches of about 4 kB, so that some of them can be kept for validation; each
but the last says that the text goes on. Together they are the document, character for character.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import BinaryIO

from mlx_finetune.dataset.row import Report, Row
from mlx_finetune.dataset.sources.decode import DecodeError, decode_utf8
from mlx_finetune.dataset.sources.opening import MAX_LINE_BYTES, FileProblem, read_lines
from mlx_finetune.errors import Problem
from mlx_finetune.units import format_bytes

_TAGGED = re.compile(r"\S+[\t ](?:O|[BIESLU]-\S+)")
_NUMBERED = re.compile(r"(\d+) (.+)")

Line = tuple[int, str]

#: A line of its own between two documents.
SEPARATOR = "<|endoftext|>"
#: From this length on a stretch ends at the next blank line, from twice as much on at the next line.
STRETCH = 4_096


def read_plain(stream: BinaryIO, source: str, report: Report, is_whole: bool = False) -> Iterator[Row]:
    """Rows ``{"text": ...}``, or those of a bAbI file; ``is_whole`` takes the file for one document.

    Raises ``FileProblem`` for token-and-tag lists.
    """
    head = [line for _, line in islice(_lines(stream, source, _ignore), 200) if line.strip()]
    stream.seek(0)
    if head and all(_TAGGED.fullmatch(line) for line in head):
        raise FileProblem(
            "the lines are tokens with tags for named entities, not text",
            "write each sentence and its entities as a row with prompt and completion",
            line=1,
        )
    if head and all(_NUMBERED.fullmatch(line) for line in head) and any("\t" in line for line in head):
        return _stories(_lines(stream, source, report), source, report)
    has_blank, has_separator = _what_divides(line for _, line in read_lines(stream, source, _ignore))
    stream.seek(0)
    lines = _lines(stream, source, report)
    if is_whole or has_separator:
        return _stretches(lines, source)
    return _paragraphs(lines, source, report) if has_blank else _each_line(lines, source)


def _what_divides(lines: Iterator[bytes]) -> tuple[bool, bool]:
    """Whether a blank line has text before and after it; and whether there is a separator."""
    separator = SEPARATOR.encode()
    has_text = has_blank = is_between = False
    for line in lines:
        bare = line.strip()
        if bare == separator:
            return is_between, True
        if not bare:
            has_blank = has_text
        elif has_blank:
            is_between = True
        else:
            has_text = True
    return is_between, False


def _stretches(lines: Iterator[Line], source: str) -> Iterator[Row]:
    """Documents between separators, each in stretches that end at blank lines where they can."""
    first, parts, length = 0, list[str](), 0
    held: Row | None = None  # not known yet whether its document goes on
    for number, line in lines:
        if line.strip() == SEPARATOR:
            row = _stretch(first, parts, source, follows=held is not None)
            yield from _closed(held, row)
            held, first, parts, length = None, 0, [], 0
            continue
        if not parts and held is None and not line.strip():
            continue  # blank lines before a document
        first = first or number
        parts.append(line)
        length += len(line) + 1
        if length >= 2 * STRETCH or (length >= STRETCH and not line.strip()):
            row = _stretch(first, parts, source, follows=held is not None)
            if held is not None:
                yield replace(held, continues=True)
            held = row
            first, parts, length = 0, [], 0
    yield from _closed(held, _stretch(first, parts, source, follows=held is not None))


def _stretch(first: int, lines: list[str], source: str, *, follows: bool) -> Row | None:
    """The lines as they stand in the file; nothing where they are blank."""
    text = "".join(f"{line}\n" for line in lines)
    return Row({"text": text}, source, first, follows=follows) if text.strip() else None


def _closed(held: Row | None, last: Row | None) -> Iterator[Row]:
    """The last two stretches of a document."""
    if held is not None:
        yield replace(held, continues=last is not None)
    if last is not None:
        yield last


def _ignore(problem: Problem) -> None:
    """The first look at a file reports nothing; the second one does."""


def _lines(stream: BinaryIO, source: str, report: Report) -> Iterator[Line]:
    for number, line in read_lines(stream, source, report):
        try:
            yield number, decode_utf8(line).rstrip("\r\n")
        except DecodeError as error:
            report(Problem(f"{source}:{number}", error.message, "save the file as UTF-8"))


def _each_line(lines: Iterator[Line], source: str) -> Iterator[Row]:
    for number, line in lines:
        if line.strip():
            yield Row({"text": line}, source, number)


def _paragraphs(lines: Iterator[Line], source: str, report: Report) -> Iterator[Row]:
    first, parts, length = 0, list[str](), 0
    for number, line in lines:
        if line.strip():
            first = first or number
            length += len(line) + 1
            if length <= MAX_LINE_BYTES:
                parts.append(line)
            continue
        yield from _paragraph(first, parts, length, source, report)
        first, parts, length = 0, [], 0
    yield from _paragraph(first, parts, length, source, report)


def _paragraph(first: int, parts: list[str], length: int, source: str, report: Report) -> Iterator[Row]:
    if length > MAX_LINE_BYTES:
        message = f"the document has {format_bytes(length)}; the limit is {format_bytes(MAX_LINE_BYTES)}"
        report(Problem(f"{source}:{first}", message, "put blank lines between documents"))
    elif parts:
        yield Row({"text": "\n".join(parts)}, source, first)


def _stories(lines: Iterator[Line], source: str, report: Report) -> Iterator[Row]:
    """bAbI: the line number starts again at 1 with each story; a question has its answer behind a tab."""
    story: list[str] = []
    for number, line in lines:
        match = _NUMBERED.fullmatch(line)
        if match is None:
            if line.strip():
                report(Problem(f"{source}:{number}", "a line of a bAbI file begins with its number"))
            continue
        if match.group(1) == "1":
            story = []
        question, *answer = match.group(2).split("\t")
        if answer:
            fields = {"story": list(story), "question": question.strip(), "answer": answer[0].strip()}
            yield Row(fields, source, number)
        else:
            story.append(question.strip())
