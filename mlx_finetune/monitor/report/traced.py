"""What ``mlxft trace`` keeps, as the report shows it; a file that cannot be read leaves its part out."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from mlx_finetune.monitor.report.typed import read_json

_MOST_BYTES = 50_000_000
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Point:
    """A category at one step; see ``app.trace.learned``."""

    step: int
    loss: float
    token_rank: float
    num_right: int | None = None
    low: float | None = None
    high: float | None = None
    rank: float | None = None
    margin: float | None = None
    margin_low: float | None = None
    margin_high: float | None = None


@dataclass(frozen=True, slots=True)
class Category:
    """Its course and what it comes to."""

    name: str
    num_probes: int
    chance: float
    course: tuple[Point, ...]
    outcome: str
    sentence: str
    step: int | None = None
    before: int | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """A checkpoint, or step 0 of a run that kept none of it."""

    step: int
    is_checkpoint: bool
    reload_difference: float | None = None
    is_reload_right: bool | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """A free answer at one step."""

    step: int
    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Asked:
    """Where the probes are from."""

    split: str
    source: str
    count: int


@dataclass(frozen=True, slots=True)
class Summary:
    """trace.json."""

    kind: str
    probes: Asked
    categories: tuple[Category, ...]
    steps: tuple[Step, ...]
    samples: tuple[Sample, ...]
    left_out: tuple[str, ...]
    note: str


@dataclass(frozen=True, slots=True)
class Layer:
    """A line of layers.csv."""

    step: int
    layer: int
    base_cka: float | None
    previous_cka: float | None
    lens_kl: float | None
    base_kl: float | None


@dataclass(frozen=True, slots=True)
class Matrix:
    """A line of matrices.csv."""

    step: int
    path: str
    name: str
    norm: float
    relative_norm: float | None
    effective_rank: float | None
    stable_rank: float | None
    previous_cosine: float | None
    previous_overlap: float | None


@dataclass(frozen=True, slots=True)
class Trace:
    """The newest trace of a run."""

    summary: Summary
    layers: tuple[Layer, ...]
    matrices: tuple[Matrix, ...]


_LAYERS, _MATRICES = TypeAdapter(tuple[Layer, ...]), TypeAdapter(tuple[Matrix, ...])


def read_trace(folder: Path) -> Trace | None:
    """What lies in RUN/trace/; None where there is no trace.json that can be read."""
    summary = read_json(folder / "trace.json", Summary)
    if summary is None:
        return None
    return Trace(summary, _read(folder / "layers.csv", _LAYERS), _read(folder / "matrices.csv", _MATRICES))


def _read(path: Path, kind: TypeAdapter[tuple[T, ...]]) -> tuple[T, ...]:
    """The lines of a CSV file; an empty cell is None. Nothing where the file is missing or damaged."""
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES).decode("utf-8", "replace")
        rows = [{key: value or None for key, value in row.items()} for row in csv.DictReader(io.StringIO(text))]
        return kind.validate_python(rows)
    except (OSError, csv.Error, ValidationError, AttributeError):
        return ()
