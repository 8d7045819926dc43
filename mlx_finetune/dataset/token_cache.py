"""Tokenised rows kept on the disk between starts, under a key of everything that they were made from.

A file holds the rows of each split, their words (``token_rows``), what became of the other rows, and at its end a
SHA-256 over all of it. A file that is cut, damaged or of another version is removed and made again; none is trusted
for its name. Reading a file once for its hash takes 0.5 s for a million rows of 164 tokens; then it is mapped. The
files together stay under a limit: those used longest ago go first.
"""

import hashlib
import json
import mmap
import os
import struct
from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np

from mlx_finetune import durable
from mlx_finetune.dataset.token_rows import ROW, VALUE, WORD, TokenRows, rows_of
from mlx_finetune.dataset.tokens import Outcome, TokenizedSplit, TokenizeReport
from mlx_finetune.errors import Problem

MAX_CACHE_BYTES = 20_000_000_000
_MAGIC = b"mlxft tokens 3\n"
_TAIL = struct.Struct("<Q32s16s")  # bytes of the description, SHA-256 of all before this and of that number, magic
_ENDING = ".tokens"
_PART_HOURS = 24


@dataclass(frozen=True, slots=True)
class CachedSplits:
    """What a start needs of its data: rows by split, warnings from reading, the hash of the files, and a note on how
    few rows were divided."""

    splits: Mapping[str, TokenizedSplit]
    problems: tuple[Problem, ...]
    content_hash: str
    note: str = ""


def cache_key(parts: Mapping[str, object]) -> str:
    """SHA-256 of plain values: the same for the same values in any order of names."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("ascii")).hexdigest()


def code_hash(folders: Mapping[str, Path]) -> str:
    """SHA-256 over the Python files in ``folders``: rows made by other code are other rows, whatever its version."""
    digest = hashlib.sha256()
    for name, folder in sorted(folders.items()):
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{name} {path.relative_to(folder).as_posix()}\n".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


class TokenCache:
    """The files in one folder, which may not exist yet."""

    def __init__(self, folder: Path, *, max_bytes: int = MAX_CACHE_BYTES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def load(self, key: str) -> CachedSplits | None:
        """What was stored under ``key``, mapped; None where there is nothing whole (a damaged file is removed)."""
        path = self._path(key)
        try:
            with path.open("rb") as file:
                found = _read(file)
        except FileNotFoundError:
            return None
        except OSError:
            found = None
        if found is None:
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):
            os.utime(path)  # used now: the last to be removed
        return found

    def store(self, key: str, made: CachedSplits) -> None:
        """Write ``made`` under ``key`` and remove what is too much. Raises ``OSError`` where that cannot be done."""
        durable.make_folder(self._folder)
        path = self._path(key)
        durable.replace_file(path, _chunks(made))
        self._remove_oldest(path)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}{_ENDING}"

    def _remove_oldest(self, newest: Path) -> None:
        """Keep the files under the limit, ``newest`` in any case; also what a killed process left half written."""
        found = [(path, path.stat()) for path in self._folder.glob(f"*{_ENDING}") if path != newest]
        total = newest.stat().st_size
        for path, stat in sorted(found, key=lambda one: -one[1].st_mtime):
            total += stat.st_size
            if total > self._max_bytes:
                path.unlink(missing_ok=True)
        latest = newest.stat().st_mtime
        for path in self._folder.glob(f".*{_ENDING}.*.part"):
            with suppress(OSError):
                if latest - path.stat().st_mtime > 3600 * _PART_HOURS:
                    path.unlink(missing_ok=True)


def _chunks(made: CachedSplits) -> Generator[bytes]:
    """The bytes of a file: rows of every split, their values, words of every split, description, tail."""
    digest = hashlib.sha256()
    rows = {name: rows_of(split.rows) for name, split in made.splits.items()}
    description = {
        "content_hash": made.content_hash,
        "note": made.note,
        "problems": [asdict(problem) for problem in made.problems],
        "splits": [
            {
                "name": name,
                "num_rows": len(rows[name]),
                "num_words": len(rows[name].words),
                "num_values": rows[name].values.shape[1],
                "sources": rows[name].sources,
                "report": asdict(split.report),
            }
            for name, split in made.splits.items()
        ],
    }
    encoded = json.dumps(description).encode("ascii")
    for chunk in _contents(list(rows.values()), encoded):
        digest.update(chunk)
        yield chunk
    digest.update(_number(len(encoded)))
    yield _TAIL.pack(len(encoded), digest.digest(), _MAGIC)


def _contents(rows: list[TokenRows], description: bytes) -> Iterator[bytes]:
    for one in rows:
        yield one.rows.astype(ROW, copy=False).tobytes()
    for one in rows:
        yield one.values.astype(VALUE, copy=False).tobytes()
    for one in rows:
        for words in one.chunks():
            yield words.astype(WORD, copy=False).tobytes()
    yield description


def _read(file: IO[bytes]) -> CachedSplits | None:
    """The contents of a file; None where it is not whole."""
    size = os.fstat(file.fileno()).st_size
    if size < _TAIL.size:
        return None
    file.seek(size - _TAIL.size)
    num_bytes, expected, magic = _TAIL.unpack(file.read(_TAIL.size))
    if magic.rstrip(b"\0") != _MAGIC or _hash(file, size - _TAIL.size, _number(num_bytes)) != expected:
        return None
    file.seek(size - _TAIL.size - num_bytes)
    description = json.loads(file.read(num_bytes))
    mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    listed = description["splits"]
    num_values = [split["num_rows"] * split["num_values"] for split in listed]
    row_start, value_start = 0, sum(split["num_rows"] for split in listed) * ROW.itemsize
    word_start = value_start + sum(num_values) * VALUE.itemsize
    splits: dict[str, TokenizedSplit] = {}
    for split, count in zip(listed, num_values, strict=True):
        rows = np.frombuffer(mapping, ROW, split["num_rows"], row_start).copy()
        values = np.frombuffer(mapping, VALUE, count, value_start).reshape(len(rows), split["num_values"])
        words = np.frombuffer(mapping, WORD, split["num_words"], word_start)
        row_start += rows.nbytes
        value_start += values.nbytes
        word_start += words.nbytes
        found = TokenRows(words, rows, split["sources"], mapping, values)
        splits[split["name"]] = TokenizedSplit(found if len(found) else (), _report(split["report"]))
    problems = tuple(Problem(**problem) for problem in description["problems"])
    return CachedSplits(splits, problems, description["content_hash"], description["note"])


def _number(value: int) -> bytes:
    return struct.pack("<Q", value)


def _hash(file: IO[bytes], num_bytes: int, end: bytes) -> bytes:
    """SHA-256 over the first ``num_bytes`` of a file and ``end``."""
    file.seek(0)
    digest = hashlib.sha256()
    left = num_bytes
    while left and (chunk := file.read(min(left, 1 << 20))):
        digest.update(chunk)
        left -= len(chunk)
    digest.update(end)
    return digest.digest()


def _report(fields: Mapping[str, object]) -> TokenizeReport:
    """A report as it was before ``asdict`` and JSON."""
    outcomes = cast("Mapping[str, Mapping[str, object]]", fields["outcomes"])
    restored = {
        name: Outcome(
            cast("int", outcome["count"]),
            tuple(Problem(**problem) for problem in cast("list[dict[str, str]]", outcome["rows"])),
        )
        for name, outcome in outcomes.items()
    }
    notes, labels = (tuple(cast("list[str]", fields[name])) for name in ("notes", "labels"))
    plain = {name: value for name, value in fields.items() if name not in ("outcomes", "notes", "labels")}
    return TokenizeReport(notes=notes, labels=labels, outcomes=restored, **cast("dict[str, int]", plain))  # pyright: ignore[reportArgumentType]
