"""Writes train, valid and test files from one file: lines of JSONL byte for byte, rows of other files as JSONL.

Two passes: the first decides every row's side by its content (``split``), the second writes. Nothing is overwritten;
the files get their names only when all of them are whole.
"""

import json
import os
import sys
from array import array
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from mlx_finetune.dataset.examples import read_file
from mlx_finetune.dataset.formats import FormatCounter, example_of
from mlx_finetune.dataset.problems import Findings, RowError
from mlx_finetune.dataset.row import DataFile, file_kind
from mlx_finetune.dataset.sources.opening import open_bytes, read_lines
from mlx_finetune.dataset.split import TEST, TRAIN, VALID, choose_sides, content_key, group_of
from mlx_finetune.durable import sync_folder
from mlx_finetune.errors import DataError, Problem

SIDES: Mapping[int, str] = {TRAIN: "train.jsonl", VALID: "valid.jsonl", TEST: "test.jsonl"}


def divide_file(
    file: DataFile, out: Path, *, val_split: float, test_split: float, seed: int | None = None
) -> Mapping[str, int]:
    """Write the sides of ``file`` into the folder ``out``; returns rows by file name (sides with rows only).

    Without ``seed`` the sides are those a training would choose. Raises ``DataError`` for malformed rows (all of them)
    and for files that exist already.
    """
    for name in SIDES.values():
        if (out / name).exists():
            raise DataError(f"{out / name} exists already", "name another folder with --out, or remove it")
    salt = "" if seed is None else str(seed)
    keys, lines, groups = _keys(file, salt)
    sides = choose_sides(keys, val_split, test_split, groups)
    try:
        out.mkdir(parents=True, exist_ok=True)
        return _write(file, out, dict(zip(lines if _is_jsonl(file) else range(len(sides)), sides, strict=True)))
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror}") from None


def _keys(file: DataFile, salt: str) -> tuple["array[int]", "array[int]", list[str]]:
    """Content key, line and group of every row. Raises ``DataError``."""
    findings = Findings()
    counter = FormatCounter()
    keys, lines = array("Q"), array("Q")
    groups: list[str] = []
    for row in read_file(file, findings):
        layout = counter.add(row)
        if layout is None:
            continue
        try:
            example = example_of(row, layout)
            keys.append(content_key(example, salt=salt))
            lines.append(row.line)
            groups.append(sys.intern(group_of(example)))
        except RowError as error:
            findings(error.problem)
    for problem in counter.result().problems:
        findings(problem)
    if findings.count:
        few = "one problem" if findings.count == 1 else f"{findings.count} problems"
        raise DataError(f"{file.source}: {few} in the data", "mend them, then split", findings.problems())
    return keys, lines, groups


def _write(file: DataFile, out: Path, side_of: Mapping[int, int]) -> Mapping[str, int]:
    parts = {side: out / f".{name}.{os.getpid()}.part" for side, name in SIDES.items()}
    counts = dict.fromkeys(SIDES, 0)
    try:
        with ExitStack() as stack:
            streams = {side: stack.enter_context(part.open("xb")) for side, part in parts.items()}
            for line, content in _contents(file):
                side = side_of.get(line)
                if side is not None:
                    streams[side].write(content if content.endswith(b"\n") else content + b"\n")
                    counts[side] += 1
            for stream in streams.values():
                stream.flush()
                os.fsync(stream.fileno())
        for side, part in parts.items():
            if counts[side]:
                part.rename(out / SIDES[side])
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
    sync_folder(out)
    return {SIDES[side]: count for side, count in counts.items() if count}


def _is_jsonl(file: DataFile) -> bool:
    return file_kind(file.path) == "jsonl" and not file.table


def _contents(file: DataFile) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers, or rows as JSON with their index: two rows of other files may stand on one line."""
    if _is_jsonl(file):
        with open_bytes(file.path) as stream:
            yield from read_lines(stream, file.source, _ignore)
        return
    for index, row in enumerate(read_file(file, _ignore)):
        yield index, json.dumps(dict(row.fields), ensure_ascii=False, default=str).encode("utf-8")


def _ignore(problem: Problem) -> None:
    """The first pass has reported every problem."""
