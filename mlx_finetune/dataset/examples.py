"""Examples of a large data set: not kept, but read from their files each time somebody walks through them.

A million rows are 2 GB as objects; reading them again costs a tenth of tokenising them. What is kept is one byte a row,
the side it is on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import overload

from mlx_finetune.dataset.corrections import correction_of, read_corrections
from mlx_finetune.dataset.formats import Example, example_of
from mlx_finetune.dataset.layouts import find_layout
from mlx_finetune.dataset.problems import Findings, RowError
from mlx_finetune.dataset.read import read_rows
from mlx_finetune.dataset.row import DataFile, Report, Row
from mlx_finetune.dataset.sources.columnar import read_table, table_files
from mlx_finetune.errors import DataError
from mlx_finetune.recipe.data import DataRecipe

Stamps = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class SplitFile:
    """A file, the split its rows are of, their weight, and what the file was like before it was read first."""

    file: DataFile
    split: str
    weight: float
    stamps: Stamps


class FileExamples(Sequence[Example]):
    """The examples on one side of some files, in order. Raises ``DataError`` where a file has changed meanwhile."""

    def __init__(
        self,
        files: Sequence[SplitFile],
        data: DataRecipe,
        sides: bytes,
        side: int,
    ) -> None:
        """``sides`` has a byte for every row of ``files``: those that are ``side`` are the examples."""
        self._files = files
        self._data = data
        self._sides = sides
        self._side = side
        self._count = sides.count(side)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Example]:
        place = 0
        for one in self._files:
            findings = Findings()
            for row in read_file(one.file, findings):
                if place < len(self._sides) and self._sides[place] == self._side:
                    yield self._example(row, one.file, one.weight)
                place += 1
            if findings.count or stamps_of(one.file) != one.stamps:
                raise _changed(one.file)
        if place != len(self._sides):
            raise _changed(self._files[-1].file)

    def _example(self, row: Row, file: DataFile, weight: float) -> Example:
        try:
            if file.num_bytes is None:
                layout = find_layout(row.fields, self._data.columns, self._data.format)
                if layout is None:
                    raise _changed(file)
                example = example_of(row, layout)
            else:
                example = correction_of(row)
        except RowError as error:
            raise _changed(file) from error
        return replace(example, weight=weight) if weight != 1.0 else example

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        """One example, or a list for a slice; the files are read up to the last of them."""
        chosen = range(self._count)[index]
        if isinstance(chosen, int):
            return next(islice(iter(self), chosen, None))
        wanted = set(chosen)
        last = max(chosen, default=-1)
        found = {place: example for place, example in enumerate(islice(iter(self), last + 1)) if place in wanted}
        return [found[place] for place in chosen]


def read_file(file: DataFile, report: Report) -> Iterator[Row]:
    """Rows of one located file, wherever it comes from."""
    if file.table:
        return read_table(file, report)
    if file.num_bytes is not None:
        return read_corrections(file, report)
    return read_rows(file.path, source=file.source, report=report, is_whole=file.is_whole)


def stamps_of(file: DataFile) -> Stamps:
    """Size, time of the last change and number of every file behind ``file``; empty where one cannot be looked at.

    Of a file of corrections only the number: chats may add to it.
    """
    try:
        if file.num_bytes is not None:
            return ((file.num_bytes, 0, file.path.stat().st_ino),)
        stats = [path.stat() for path in (table_files(file) if file.table else [file.path])]
    except OSError:
        return ()
    return tuple((stat.st_size, stat.st_mtime_ns, stat.st_ino) for stat in stats)


def _changed(file: DataFile) -> DataError:
    return DataError(f"{file.source} was changed while it was read", "start again when nothing writes to it any more")
