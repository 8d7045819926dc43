"""Which files hold which split: a file, a folder with train, valid and test files, or a ``load_from_disk`` folder.

In a folder the names before the ending count: train; valid, validation, val or dev; test. Parts such as
``train-00000-of-00002`` belong together. Hidden files are not looked at.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlx_finetune.dataset.row import KINDS, DataFile, file_kind
from mlx_finetune.dataset.sources.columnar import SPLIT_NAMES, locate_hub, locate_saved
from mlx_finetune.errors import DataError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SHARD = re.compile(r"[-_.]\d+(?:-of-\d+)?$")


Located = Mapping[str, Sequence[DataFile]]


def locate(text: str, *, base: Path) -> Located:
    """Files of the splits of ``text`` as written in a recipe; a single file is ``train``. Raises ``DataError``.

    ``~`` is understood; a relative path counts from ``base``. What is no path, has the form owner/name and no ending
    of a data file, and whose owner is no folder here, is a hub id.
    """
    if "\0" in text:
        raise DataError("[data] path has a NUL character in it")
    path = Path(text).expanduser()
    path = path if path.is_absolute() else base / path
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as error:
        raise DataError(f"{text}: cannot be opened: {error.strerror}") from None
    if is_folder:
        return _locate_folder(path, text)
    if not exists and _HUB_ID.fullmatch(text) and file_kind(path) is None and not path.parent.is_dir():
        return locate_hub(text)
    return {"train": [DataFile(path, text)]}


def _locate_folder(folder: Path, text: str) -> Located:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return locate_saved(folder, text)
    found: dict[str, list[DataFile]] = {}
    others: list[str] = []
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{text}: the folder cannot be opened: {error.strerror}") from None
    for entry in entries:
        if entry.name.startswith(".") or file_kind(entry) is None or not entry.is_file():
            continue
        split = SPLIT_NAMES.get(_stem(entry.name))
        if split is None:
            others.append(entry.name)
        else:
            found.setdefault(split, []).append(DataFile(entry, f"{text.rstrip('/')}/{entry.name}"))
    for split, files in found.items():
        if len(files) > 1 and not all(_SHARD.search(_without_ending(file.path.name)) for file in files):
            names = " and ".join(file.path.name for file in files)
            raise DataError(f"{text}: more than one {split} file: {names}", "keep one, or name the file in [data]")
    if "train" not in found:
        names = [*(file.path.name for files in found.values() for file in files), *others]
        hint = (
            f'name one of them in the place of the folder: "{text.rstrip("/")}/{names[0]}"'
            if names
            else "add train.jsonl"
        )
        have = f"; it has {', '.join(names[:8])}" if names else ""
        raise DataError(f"{text}: the folder has no train file{have}", hint)
    return {split: found[split] for split in ("train", "valid", "test") if split in found}


def _without_ending(name: str) -> str:
    stem = name.lower().removesuffix(".gz")
    return next((stem.removesuffix(ending) for ending in KINDS if stem.endswith(ending)), stem)


def _stem(name: str) -> str:
    """The split part of a file name: ``train-00000-of-00002.parquet`` -> ``train``."""
    return _SHARD.sub("", _without_ending(name))
