"""One pass over data files that finds what a user should know before training; nothing is tokenised here.

Memory is bounded: 28 bytes a row (content hash, place, length), twice that while repeats are looked for, 28 more
where rows have labels or preferences, and the problems kept: 5 million rows without these peaked at 0.36 GB. Speed:
34,000 short conversations a second of processor time (``benchmarks/data_check_speed.py``, 2-core x86, 2026).
"""

import collections
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mlx_finetune.dataset.corrections import correction_of
from mlx_finetune.dataset.examples import read_file
from mlx_finetune.dataset.formats import (
    Example,
    FormatCounter,
    Instruction,
    Labelled,
    Messages,
    Preference,
    Text,
    example_of,
)
from mlx_finetune.dataset.inspect import inspect_example
from mlx_finetune.dataset.judged import JudgedScan
from mlx_finetune.dataset.kinds import formats_for, is_trainable, refused_format
from mlx_finetune.dataset.label_check import LabelScan
from mlx_finetune.dataset.labels import check_labels, sorted_labels
from mlx_finetune.dataset.layouts import Columns
from mlx_finetune.dataset.problems import SHOWN_PER_KIND, Findings, RowError
from mlx_finetune.dataset.row import DataFile
from mlx_finetune.dataset.sources.locate import Located
from mlx_finetune.dataset.split import content_of, key_of
from mlx_finetune.dataset.stats import Lengths, summarize_lengths
from mlx_finetune.errors import DataError, Problem

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class FileSummary:
    """One file: its rows that can be used, and the format of most."""

    source: str
    split: str
    format: str
    rows: int


@dataclass(frozen=True, slots=True)
class DataReport:
    """Everything one pass found. ``num_errors`` and ``num_warnings`` count rows and files, also those not listed.

    ``num_duplicates`` are rows equal to an earlier one of the same split, ``num_leaks`` to one of another split.
    ``roles`` counts turns, ``turns`` conversations by their number of turns, ``labels`` training rows by their label;
    all are empty for other formats.
    """

    files: tuple[FileSummary, ...]
    rows: Mapping[str, int]
    errors: tuple[Problem, ...]
    num_errors: int
    warnings: tuple[Problem, ...]
    num_warnings: int
    num_duplicates: int
    num_leaks: int
    lengths: Lengths
    roles: Mapping[str, int]
    turns: Mapping[int, int]
    labels: Mapping[str, int]

    @property
    def num_rows(self) -> int:
        """Rows that can be used, of all splits."""
        return sum(self.rows.values())


class _Scan:
    """What a pass remembers: per row a content hash, its file, line and length; per kind of problem the first few."""

    def __init__(self) -> None:
        self.errors = Findings()
        self.warnings = Findings()
        self.files: list[FileSummary] = []
        self.keys = array("Q")
        self.lengths = array("Q")
        self.lines = array("Q")
        self.file_numbers = array("I")
        self.roles: collections.Counter[str] = collections.Counter()
        self.labels = LabelScan()
        self.judged = JudgedScan(self.warnings)
        self.turns: collections.Counter[int] = collections.Counter()

    def add(self, example: Example, split: str) -> None:
        content = content_of(example)
        self.keys.append(key_of(content))
        self.lines.append(example.line)
        self.file_numbers.append(len(self.files))
        self.lengths.append(_num_characters(example))
        for message, hint in inspect_example(example, content):
            self.warnings(Problem(f"{example.source}:{example.line}", message, hint))
        self.judged.add(example, content, split)
        if isinstance(example, Labelled):
            self.labels.add(example, split)
        if isinstance(example, Messages):
            self.turns[len(example.messages)] += 1
            self.roles.update([str(turn["role"]) for turn in example.messages])

    def place(self, row: int) -> str:
        """File and line of a row."""
        return f"{self.files[self.file_numbers[row]].source}:{self.lines[row]}"


def check_files(
    located: Iterable[Located],
    *,
    columns: Columns | None = None,
    format: str = "auto",
    task: str = "",
) -> DataReport:
    """Read every file once and report. Rows that ``task`` does not learn from are an error; without one none are."""
    scan = _Scan()
    for splits in located:
        for split, files in splits.items():
            for file in files:
                _scan_file(file, split, FormatCounter(columns, format, formats_for(task)), scan, task)
    counts = scan.labels.counts
    if task == "classify" and counts:
        try:
            check_labels(sorted_labels(counts), scan.files[0].source)
        except DataError as error:
            scan.errors(Problem("", error.message, error.hint))
    scan.labels.warn(scan.warnings, scan.files[0].source if scan.files else "")
    scan.judged.finish()
    num_duplicates, num_leaks = _repeats(scan)
    rows: dict[str, int] = {}
    for file in scan.files:
        rows[file.split] = rows.get(file.split, 0) + file.rows
    return DataReport(
        files=tuple(scan.files),
        rows=rows,
        errors=scan.errors.problems(),
        num_errors=scan.errors.count,
        warnings=scan.warnings.problems(),
        num_warnings=scan.warnings.count,
        num_duplicates=num_duplicates,
        num_leaks=num_leaks,
        lengths=summarize_lengths(scan.lengths, "characters"),
        roles=dict(scan.roles.most_common()),
        turns=dict(sorted(scan.turns.items())),
        labels=dict(counts.most_common()),
    )


def _scan_file(file: DataFile, split: str, counter: FormatCounter, scan: _Scan, task: str) -> None:
    before = len(scan.keys)
    for row in read_file(file, scan.errors):
        layout = counter.add(row)
        try:
            if file.num_bytes is not None:
                scan.add(correction_of(row), split)
            elif layout is not None:
                scan.add(example_of(row, layout), split)
        except RowError as error:
            scan.errors(error.problem)
    if file.num_bytes is not None:
        scan.files.append(FileSummary(file.source, split, "corrections", len(scan.keys) - before))
        return
    detected = counter.result()
    for problem in detected.problems:
        scan.errors(problem)
    if task and detected.name and not is_trainable(detected.name, task):
        scan.errors(refused_format(detected, file.source, task))
    if _has_byte_order_mark(file):
        scan.warnings(Problem(f"{file.source}:1", "the file begins with a byte-order mark", "it is left out when read"))
    scan.files.append(FileSummary(file.source, split, detected.name, len(scan.keys) - before))


def _has_byte_order_mark(file: DataFile) -> bool:
    if file.table or not file.path.is_file():
        return False
    with file.path.open("rb") as stream:
        return stream.read(3) == _BYTE_ORDER_MARK


def _num_characters(example: Example) -> int:
    if isinstance(example, Messages):
        return _turns_characters(example.messages)
    if isinstance(example, Instruction):
        return len(example.instruction) + len(example.input) + len(example.output)
    if isinstance(example, Text | Labelled):
        return len(example.text)
    assert isinstance(example, Preference)
    answers = max(_turns_characters(example.chosen or ()), _turns_characters(example.rejected or ()))
    return _turns_characters(example.prompt) + answers


def _turns_characters(turns: Sequence[Mapping[str, object]]) -> int:
    return sum(len(str(turn["content"])) for turn in turns)


def _repeats(scan: _Scan) -> tuple[int, int]:
    """How many rows repeat an earlier row of their own split, and of another; the first few become warnings."""
    keys = np.frombuffer(scan.keys, dtype=np.uint64)
    if len(keys) < 2:
        return 0, 0
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    is_repeat = np.concatenate(([False], ordered[1:] == ordered[:-1]))
    starts = np.maximum.accumulate(np.where(is_repeat, 0, np.arange(len(keys))))
    again, first = order[is_repeat], order[starts[is_repeat]]
    names = sorted({file.split for file in scan.files})
    splits = np.asarray([names.index(file.split) for file in scan.files])
    numbers = np.frombuffer(scan.file_numbers, dtype=np.uint32)
    leaks = splits[numbers[again]] != splits[numbers[first]]
    for is_leak in (True, False):
        chosen = np.flatnonzero(leaks == is_leak)
        chosen = chosen[np.argsort(again[chosen], kind="stable")]
        shown = [
            _repeat_problem(scan, int(again[index]), int(first[index]), is_leak=is_leak)
            for index in chosen[:SHOWN_PER_KIND]
        ]
        scan.warnings.add_counted(shown, len(chosen))
    return int((~leaks).sum()), int(leaks.sum())


def _repeat_problem(scan: _Scan, again: int, first: int, *, is_leak: bool) -> Problem:
    if is_leak:
        split, earlier = (scan.files[scan.file_numbers[row]].split for row in (again, first))
        message = f'the {split} row stands in {earlier} too, at "{scan.place(first)}"'
        return Problem(scan.place(again), message, "a loss on rows that were trained on says little")
    hint = "the row is seen more often than others; all copies go to one side of a split"
    return Problem(scan.place(again), f'the row repeats "{scan.place(first)}"', hint)
