"""Parquet files, ``load_from_disk`` folders and data sets of the Hugging Face hub, through the library ``datasets``.

The library is an extra and is imported only here, when such data is named. Rows keep their place as ``file:row``,
counted from 1. Splits of a folder or hub data set are kept; ``validation`` and its other names mean ``valid``.
"""

import functools
import importlib
import logging
import os
import shlex
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, cast

from mlx_finetune.dataset.row import DataFile, Report, Row
from mlx_finetune.dataset.sources.opening import FileProblem, refuse_special
from mlx_finetune.errors import DataError, Problem

#: Into the environment that runs: the launcher's has no pip on PATH, and the package may not come from an index.
INSTALL_HINT = f"{shlex.quote(sys.executable)} -m pip install 'datasets>=4' 'pyarrow>=18'"
BATCH_ROWS = 1000

SPLIT_NAMES: Mapping[str, str] = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "eval": "valid",
    "test": "test",
}


class _Table(Protocol):
    """What is used of ``datasets.Dataset``."""

    num_rows: int
    cache_files: Sequence[Mapping[str, str]]

    def __getitem__(self, rows: slice, /) -> Mapping[str, Sequence[object]]: ...


class _Library(Protocol):
    """What is used of the module ``datasets``."""

    def load_from_disk(self, path: str, /) -> object: ...
    def load_dataset(self, path: str, /) -> object: ...


class _Batch(Protocol):
    def to_pylist(self) -> list[dict[str, object]]: ...


class _Parquet(Protocol):
    def iter_batches(self, batch_size: int) -> Iterable[_Batch]: ...


def _library(what: str) -> _Library:
    try:
        return cast(_Library, cast(object, importlib.import_module("datasets")))
    except ImportError:
        raise DataError(f"{what} needs the library `datasets`, which is not installed", INSTALL_HINT) from None


def read_parquet(path: Path, source: str) -> Iterator[Row]:
    """Rows of a Parquet file, in order, through the Arrow that comes with ``datasets``. Raises ``FileProblem``."""
    refuse_special(path)
    try:
        module = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise FileProblem("Parquet needs the library `datasets`, which is not installed", INSTALL_HINT) from None
    number = 0
    try:
        with path.open("rb") as stream:
            file = cast(_Parquet, module.ParquetFile(stream))
            for batch in file.iter_batches(BATCH_ROWS):
                for fields in batch.to_pylist():
                    number += 1
                    yield Row(fields, source, number)
    except (ValueError, TypeError, KeyError, NotImplementedError, OSError) as error:  # the bases of Arrow's errors
        raise FileProblem(f"is not a Parquet file that can be read: {_first_line(error)}", line=number) from None
    if number == 0:
        raise FileProblem("the file has no rows", "put at least one row into it")


def locate_saved(folder: Path, text: str) -> Mapping[str, Sequence[DataFile]]:
    """The splits of a folder written by ``save_to_disk``; one without splits is ``train``. Raises ``DataError``."""
    tables = _load_saved(folder, text)
    return _splits({name: DataFile(folder, text, name) for name in tables}, text)


def locate_hub(name: str) -> Mapping[str, Sequence[DataFile]]:
    """The splits of a hub data set, from the library's cache or the hub. Raises ``DataError``."""
    tables = _load_hub(name)
    return _splits({split: DataFile(Path(name), name, split) for split in tables}, name)


def _splits(files: Mapping[str, DataFile], text: str) -> Mapping[str, Sequence[DataFile]]:
    found: dict[str, list[DataFile]] = {}
    for name, file in files.items():
        split = SPLIT_NAMES.get(name)
        if split in found:
            raise DataError(f"{text}: the splits {', '.join(files)} name {split} twice", "rename or remove one")
        if split is not None:
            found[split] = [file]
    if "train" not in found:
        raise DataError(
            f"{text}: there is no train split; there is {', '.join(files)}", "name the splits train, valid, test"
        )
    return {split: found[split] for split in ("train", "valid", "test") if split in found}


def read_table(file: DataFile, report: Report) -> Iterator[Row]:
    """Rows of one split found by ``locate_saved`` or ``locate_hub``; ``line`` is the row, from 1."""
    where = f"{file.source}/{file.table}"
    tables = _load_saved(file.path, file.source) if file.path.is_dir() else _load_hub(file.source)
    table = tables[file.table]
    if table.num_rows == 0:
        report(Problem(where, "the split has no rows"))
    for start in range(0, table.num_rows, BATCH_ROWS):
        columns = table[slice(start, start + BATCH_ROWS)]
        for offset, values in enumerate(zip(*columns.values(), strict=True), 1):
            yield Row(dict(zip(columns, values, strict=True)), where, start + offset)


def table_files(file: DataFile) -> Sequence[Path]:
    """The Arrow files behind a located split, for a content hash."""
    tables = _load_saved(file.path, file.source) if file.path.is_dir() else _load_hub(file.source)
    return [Path(entry["filename"]) for entry in tables[file.table].cache_files]


def _load_saved(folder: Path, text: str) -> Mapping[str, _Table]:
    library = _library(f"{text}, a folder made by save_to_disk,")
    try:
        return _tables(library.load_from_disk(str(folder)))
    except Exception as error:  # the library's errors have no common base but Exception
        raise DataError(f"{text}: the library `datasets` cannot read the folder: {_first_line(error)}") from None


@functools.lru_cache(maxsize=8)
def _load_hub(name: str) -> Mapping[str, _Table]:
    library = _library(f"{name} is no file or folder here; to look for it on the hub mlxft")
    try:
        with _without_retries_told():
            return _tables(library.load_dataset(name))
    except Exception as error:  # the library's errors have no common base but Exception
        offline = any(os.environ.get(key) for key in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"))
        hint = "offline mode is on (HF_HUB_OFFLINE)" if offline else "is the path right? a hub id is owner/name"
        raise DataError(f"{name} is no file or folder here, and the hub says: {_first_line(error)}", hint) from None


@contextmanager
def _without_retries_told() -> Generator[None]:
    """Each retry of a request is a warning of the library with a whole address; the error at the end says it once."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _tables(loaded: object) -> Mapping[str, _Table]:
    """Split name -> table; a single table is ``train``."""
    if isinstance(loaded, dict):
        return cast(dict[str, _Table], loaded)
    return {"train": cast(_Table, loaded)}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
