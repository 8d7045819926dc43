"""Many tokenised rows in two flat arrays: one 32-bit word a token, 32 bytes a row; a row is made when it is asked for.

A word is the token's id, and its top bit says that the token is a target. A million rows of 164 tokens are 690 MB,
which lie in a file and are mapped: of the pages that reading brings into the process, old ones are given back. As
objects with two arrays each they took 1.4 GB.
"""

import hashlib
import mmap
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from typing import IO, overload

import numpy as np
from numpy.typing import NDArray

from mlx_finetune.dataset.tokens import Tokens

WORD = np.dtype("<u4")
VALUE = np.dtype("<f8")
ROW = np.dtype([("end", "<i8"), ("line", "<i8"), ("source", "<i8"), ("weight", "<f8")])  # end: in words
MEMORY_WORDS = 16_000_000  # more are put into a temporary file while they are made

_TARGET = np.uint32(1 << 31)
_ID = np.uint32(_TARGET - 1)
_CHUNK_WORDS = 1 << 18
_ROWS_BEFORE_RELEASE = 4096  # each may touch a few pages of 4 to 64 kB


class TokenRows(Sequence[Tokens]):
    """Rows over flat arrays, in memory or in a mapped file; taking a row copies it."""

    def __init__(
        self,
        words: NDArray[np.uint32],
        rows: NDArray[np.void],
        sources: Sequence[str],
        mapping: mmap.mmap | None = None,
        values: NDArray[np.float64] | None = None,
    ) -> None:
        """``rows`` has the dtype ``ROW``; ``mapping`` is what ``words`` lie in where they lie in a file; ``values``
        (N, K) are those of every row, none without them."""
        self.words = words
        self.rows = rows
        self.sources = tuple(sources)
        self.values: NDArray[np.float64] = np.zeros((len(rows), 0)) if values is None else values
        self.lengths: NDArray[np.int64] = np.diff(rows["end"], prepend=0)
        self.weights: NDArray[np.float64] = np.ascontiguousarray(rows["weight"])
        self._ends: NDArray[np.int64] = np.ascontiguousarray(rows["end"])
        self._mapping = mapping
        self._num_taken = 0

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Tokens: ...
    @overload
    def __getitem__(self, index: slice) -> "Sequence[Tokens]": ...
    def __getitem__(self, index: int | slice) -> "Tokens | Sequence[Tokens]":
        """One row, or a list of rows for a slice."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        row = self.rows[index]
        end = int(row["end"])
        words = self.words[end - int(self.lengths[index]) : end]
        ids, loss_mask = (words & _ID).view(np.int32), words > _ID
        self._num_taken += 1
        if self._num_taken >= _ROWS_BEFORE_RELEASE:
            self._release()
        values = tuple(self.values[index].tolist())
        return Tokens(ids, loss_mask, self.sources[int(row["source"])], int(row["line"]), float(row["weight"]), values)

    def with_values(self, values: NDArray[np.float64]) -> "TokenRows":
        """The same rows with other ``values`` (N, K)."""
        return TokenRows(self.words, self.rows, self.sources, self._mapping, values)

    def where(self, index: int) -> str:
        """``file:line`` of one row."""
        row = self.rows[index]
        return f"{self.sources[int(row['source'])]}:{int(row['line'])}"

    def count_sources(self) -> dict[str, int]:
        """Rows by the file that they come from; files without a row are left out."""
        counts = np.bincount(self.rows["source"], minlength=len(self.sources))
        return {source: int(count) for source, count in zip(self.sources, counts, strict=True) if count}

    def row_with_largest_id(self) -> tuple[int, int]:
        """The first row that holds the largest id, and that id; ``(-1, -1)`` where there is none."""
        found, largest = -1, -1
        start = 0
        for words in self.chunks():
            ids = words & _ID
            if int(ids.max()) > largest:
                found, largest = start + int(ids.argmax()), int(ids.max())
            start += len(words)
        return (int(np.searchsorted(self._ends, found, side="right")) if found >= 0 else -1), largest

    def most_targets(self) -> int:
        """Targets of the row that has most; 0 without rows."""
        return int(self.num_targets().max(initial=0))

    def num_targets(self) -> NDArray[np.int64]:
        """Targets of each row, (N,)."""
        counts = np.zeros(len(self), np.int64)
        start = 0
        for words in self.chunks():
            first, last = np.searchsorted(self._ends, (start, start + len(words) - 1), side="right")
            begins = np.concatenate([[0], self._ends[first:last] - start])
            counts[first : last + 1] += np.add.reduceat(words > _ID, begins, dtype=np.int64)
            start += len(words)
        return counts

    def chunks(self) -> Iterator[NDArray[np.uint32]]:
        """All words in order, a piece at a time."""
        for start in range(0, len(self.words), _CHUNK_WORDS):
            yield self.words[start : start + _CHUNK_WORDS]
            self._release()

    def content_hash(self) -> str:
        """SHA-256 over lengths, values, tokens and masks."""
        digest = hashlib.sha256(np.ascontiguousarray(self.lengths).tobytes())
        digest.update(np.ascontiguousarray(self.values).tobytes())
        for words in self.chunks():
            digest.update(np.ascontiguousarray(words).tobytes())
        return digest.hexdigest()

    def _release(self) -> None:
        """Give back the pages that were read; they come again from the file when they are needed."""
        self._num_taken = 0
        if self._mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._mapping.madvise(mmap.MADV_DONTNEED)


class RowsBuilder:
    """Collects rows as they are made; beyond ``MEMORY_WORDS`` tokens they go into a temporary file without a name."""

    def __init__(self) -> None:
        self._ends, self._lines, self._numbers, self._weights = array("q"), array("q"), array("q"), array("d")
        self._sources: dict[str, int] = {}
        self._values: array[float] = array("d")
        self._pieces: list[NDArray[np.uint32]] = []
        self._num_in_memory = 0
        self._file: IO[bytes] | None = None
        self._num_words = 0

    def add(self, rows: Sequence[Tokens]) -> None:
        """Take ``rows``. Raises ``OSError`` where the temporary file cannot be written."""
        if not rows:
            return
        for row in rows:
            self._num_words += len(row.ids)
            self._ends.append(self._num_words)
            self._lines.append(row.line)
            self._numbers.append(self._sources.setdefault(row.source, len(self._sources)))
            self._weights.append(row.weight)
            self._values.extend(row.values)
        ids = np.concatenate([row.ids for row in rows]).view(np.uint32)
        targets = np.concatenate([row.loss_mask for row in rows]).astype(np.uint32) << np.uint32(31)
        self._pieces.append(ids | targets)
        self._num_in_memory += len(ids)
        if self._num_in_memory > MEMORY_WORDS:
            self._spill()

    def finish(self) -> TokenRows:
        """Everything added, in order."""
        rows = np.zeros(len(self._ends), ROW)
        for name, values in zip(ROW.names or (), (self._ends, self._lines, self._numbers, self._weights), strict=True):
            rows[name] = values
        values = np.array(self._values, np.float64).reshape(len(rows), -1 if len(rows) else 0)
        if self._file is None:
            words = np.concatenate(self._pieces) if self._pieces else np.empty(0, WORD)
            return TokenRows(words, rows, tuple(self._sources), values=values)
        self._spill()
        mapping = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        self._file.close()
        return TokenRows(np.frombuffer(mapping, WORD), rows, tuple(self._sources), mapping, values)

    def _spill(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by finish, or with this object
        for piece in self._pieces:
            self._file.write(piece.data)
        self._file.flush()
        self._pieces.clear()
        self._num_in_memory = 0


def rows_of(rows: Sequence[Tokens]) -> TokenRows:
    """``rows`` over flat arrays; the same object where they are that already."""
    if isinstance(rows, TokenRows):
        return rows
    builder = RowsBuilder()
    builder.add(rows)
    return builder.finish()
