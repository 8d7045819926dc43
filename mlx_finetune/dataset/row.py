"""What a row is, and the file it stands in."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlx_finetune.errors import Problem

Report = Callable[[Problem], None]


@dataclass(frozen=True, slots=True)
class Row:
    """One raw record. ``source`` is the path as the user wrote it, ``line`` its first line, from 1.

    ``continues``: it is a stretch of a longer text, which goes on in the next row; ``follows``: one behind the first.
    """

    fields: Mapping[str, object]
    source: str
    line: int
    weight: float = 1.0
    continues: bool = False
    follows: bool = False

    @property
    def where(self) -> str:
        """``file:line``, the form every message uses."""
        return f"{self.source}:{self.line}"


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file and how a message names it; ``table`` is the split inside a folder or hub data set of Hugging Face.

    ``num_bytes`` is set for a file of corrections (``corrections``): so much of it counts, as chats may add to it.
    ``is_whole``: a file of plain text is one document.
    """

    path: Path
    source: str
    table: str = ""
    num_bytes: int | None = None
    is_whole: bool = False


#: Ending of a file name (without .gz) -> how it is read.
KINDS: Mapping[str, str] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".md": "text",
    ".parquet": "parquet",
}


def file_kind(path: Path) -> str | None:
    """How ``path`` is read, by its name; None where the ending is not known."""
    name = path.name.lower().removesuffix(".gz")
    return next((kind for ending, kind in KINDS.items() if name.endswith(ending)), None)
