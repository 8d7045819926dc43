"""Hidden states of rows, kept in memory or in a file, and put together for a batch. No mlx.

What leaves frozen blocks is the same in every epoch, so each row has it once: one vector for every token but the last,
which predicts nothing. A row's states may stand anywhere in a pack, because positions are relative there. The file has
no name, so nothing is left of it however the process ends; it is read with ``pread`` and never mapped, so the process
does not grow. Types that numpy lacks (bfloat16) travel as their bits.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mlx_finetune import durable

States = NDArray[np.generic]


class Placed(Protocol):
    """Of a ``Batch``: which rows stand where."""

    @property
    def tokens(self) -> NDArray[np.int32]:
        """(B, T + 1)."""
        ...

    @property
    def segment_ids(self) -> NDArray[np.int32]:
        """(B, T + 1): the rows of a sequence are 1, 2, ..., padding is 0."""
        ...

    @property
    def rows(self) -> tuple[int, ...]:
        """Row numbers, sequence by sequence."""
        ...


class Store(Protocol):
    """A flat array (positions, width)."""

    def write(self, start: int, states: States) -> None:
        """Put ``states`` (N, width) at positions ``start`` and following. Raises ``OSError`` where there is no room."""
        ...

    def read(self, start: int, stop: int) -> States:
        """The states of positions [start, stop)."""
        ...

    def close(self) -> None:
        """Give back memory or disk."""
        ...


class MemoryStore:
    """States in memory."""

    def __init__(self, num_positions: int, width: int, dtype: DTypeLike) -> None:
        self._states: States = np.empty((num_positions, width), dtype)

    def write(self, start: int, states: States) -> None:
        """See ``Store``."""
        self._states[start : start + len(states)] = states

    def read(self, start: int, stop: int) -> States:
        """See ``Store``."""
        return self._states[start:stop]

    def close(self) -> None:
        """See ``Store``."""
        self._states = self._states[:0].copy()


class FileStore:
    """States in a file without a name on the volume of ``folder``."""

    def __init__(self, folder: Path, width: int, dtype: DTypeLike) -> None:
        self._folder = folder
        self._dtype = np.dtype(dtype)
        self._width = width
        with durable.naming(folder):
            # where a system must name it for an instant, a start sweeps away what a kill leaves in that instant
            self._file = tempfile.TemporaryFile(dir=folder, prefix=".states.", suffix=".part", buffering=0)  # noqa: SIM115

    def write(self, start: int, states: States) -> None:
        """See ``Store``."""
        octets = memoryview(states.astype(self._dtype, order="C", copy=False).tobytes())
        at, done = start * self._width * self._dtype.itemsize, 0
        with durable.naming(self._folder):
            while done < len(octets):
                done += os.pwrite(self._file.fileno(), octets[done:], at + done)

    def read(self, start: int, stop: int) -> States:
        """See ``Store``."""
        size = self._width * self._dtype.itemsize
        wanted, pieces = (stop - start) * size, list[bytes]()
        while wanted:
            piece = os.pread(self._file.fileno(), wanted, stop * size - wanted)
            assert piece, "states that were never written"
            pieces.append(piece)
            wanted -= len(piece)
        return np.frombuffer(b"".join(pieces), self._dtype).reshape(-1, self._width)

    def close(self) -> None:
        """See ``Store``."""
        self._file.close()


class RowStates:
    """The states of every row of one set, in ``store``."""

    def __init__(self, lengths: NDArray[np.integer], store: Store) -> None:
        """``lengths`` are the tokens of each row."""
        self._ends = np.cumsum(num_states(lengths))
        self._lengths = lengths
        self._store = store

    def put(self, row: int, states: States) -> None:
        """Keep the states (T, width) of ``row``, whose own are the first; those behind them are padding's."""
        start, end = self._range(row)
        self._store.write(start, states[: end - start])

    def of(self, batch: Placed) -> States:
        """The states (B, T, width) of a batch of these rows; zeros at padding and at the last token of a row."""
        rows, found = iter(batch.rows), None
        num_sequences, num_tokens = batch.tokens.shape
        for sequence in range(num_sequences):
            at = 0
            for _ in range(int(batch.segment_ids[sequence].max(initial=0))):
                row = next(rows)
                states = self._store.read(*self._range(row))
                if found is None:
                    found = np.zeros((num_sequences, num_tokens - 1, states.shape[-1]), states.dtype)
                found[sequence, at : at + len(states)] = states
                at += int(self._lengths[row])
        assert found is not None, "a batch without a row"
        return found

    def _range(self, row: int) -> tuple[int, int]:
        end = int(self._ends[row])
        return end - max(0, int(self._lengths[row]) - 1), end


def num_states(lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """Positions of each row that have a state: all of its tokens but the last."""
    return np.maximum(lengths.astype(np.int64) - 1, 0)


def groups_by_length(lengths: NDArray[np.integer], max_positions: int) -> Iterator[list[int]]:
    """Row numbers, shortest first, in groups of at most ``max_positions`` when padded to the longest; at least one row.

    They depend on nothing but the arguments, so that the same rows are computed together on every start.
    """
    group: list[int] = []
    for row in np.argsort(lengths, kind="stable").tolist():
        if group and (len(group) + 1) * max(1, int(lengths[row]) - 1) > max_positions:
            yield group
            group = []
        group.append(row)
    if group:
        yield group
