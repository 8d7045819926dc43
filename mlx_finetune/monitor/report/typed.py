"""JSON files of a run folder as dataclasses; what has another shape counts as not there; what is more is left out."""

import json
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")


def read_json(path: Path, kind: type[T]) -> T | None:
    """The value in a file; None where it is missing, damaged or of another shape. Halves of characters become "?"."""
    try:
        text = json.dumps(json.loads(path.read_bytes()), ensure_ascii=False)
        return TypeAdapter(kind).validate_json(text.encode("utf-8", "replace"))
    except (OSError, ValueError, RecursionError):
        return None
