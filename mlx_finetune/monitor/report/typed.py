"""JSON files of a run folder as dataclasses; what has another shape counts as not there; what is more is left out."""

import json
from pathlib import Path
from typing import Protocol, TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")


class Kept(Protocol):
    """What a command keeps of a measurement: ``measured`` is when, in ISO format."""

    @property
    def measured(self) -> str: ...


KeptT = TypeVar("KeptT", bound=Kept)


def read_json(path: Path, kind: type[T]) -> T | None:
    """The value in a file; None where it is missing, damaged or of another shape. Halves of characters become "?"."""
    try:
        text = json.dumps(json.loads(path.read_bytes()), ensure_ascii=False)
        return TypeAdapter(kind).validate_json(text.encode("utf-8", "replace"))
    except (OSError, ValueError, RecursionError):
        return None


def read_kept(folder: Path, kind: type[KeptT]) -> tuple[list[KeptT], list[str]]:
    """Every NAME.json in ``folder``, the newest first, and the names of those that cannot be read."""
    read = {path.name: read_json(path, kind) for path in sorted(folder.glob("*.json"))}
    found = sorted((one for one in read.values() if one is not None), key=lambda one: one.measured, reverse=True)
    return found, [name for name, one in read.items() if one is None]
