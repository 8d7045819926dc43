"""What a trace keeps: CSV files for other programs, trace.json for the report. Everything lies in RUN/trace/."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlx_finetune import durable
from mlx_finetune.app.trace.journal import StepResult
from mlx_finetune.app.trace.learned import Category
from mlx_finetune.app.trace.probes import Probes
from mlx_finetune.app.updates.geometry import INTRUDER, cosine, intruder_cosines, overlap
from mlx_finetune.app.updates.series import SavedCheckpoint, Series
from mlx_finetune.model.reload_check import TOLERANCE

FORMAT = 1
TOP_DIRECTIONS = 10  # of a trained weight that may be intruders
TOP = 4  # directions that are compared between checkpoints
ALL_PAIRS = 8  # checkpoints up to which each is compared with each; of more, with the one before and the last
DISCLAIMER = "Geometry describes how the weights moved; it does not say which circuit does what, or that there is one."


@dataclass(frozen=True, slots=True)
class Pair:
    """The updates of one matrix at two checkpoints; None where one of them is 0 or has no singular vectors."""

    first: int
    second: int
    path: str
    cosine: float | None
    overlap: float | None


@dataclass(frozen=True, slots=True)
class Direction:
    """One of the top directions of a trained weight, and how like it is to the likest of the base's."""

    step: int
    path: str
    number: int
    cosine: float

    @property
    def is_intruder(self) -> bool:
        """True where no direction of the base is like it."""
        return self.cosine < INTRUDER


@dataclass(frozen=True, slots=True)
class Traced:
    """Everything that was found. ``left_out`` says what was not measured, and why; ``directions`` are of the last
    checkpoint, none where nobody asked for them."""

    series: Series
    probes: Probes
    results: tuple[StepResult, ...]
    categories: tuple[Category, ...]
    pairs: tuple[Pair, ...]
    left_out: tuple[str, ...]
    directions: tuple[Direction, ...] = ()

    @property
    def summary(self) -> dict[str, object]:
        """trace.json, and what --json prints: the answers first."""
        return {
            "format_version": FORMAT,
            "run": self.series.run.path.name,
            "kind": self.series.kind,
            "probes": {"split": self.probes.split, "source": self.probes.source, "count": len(self.probes.probes)},
            "categories": [asdict(category) for category in self.categories],
            "steps": _steps(self),
            "samples": [
                {"step": result.step, "prompt": sample.prompt, "answer": sample.answer}
                for result in self.results
                for sample in result.samples
            ],
            "num_directions": len(self.directions),
            "num_intruders": sum(one.is_intruder for one in self.directions),
            "left_out": list(self.left_out),
            "note": DISCLAIMER,
        }


def compare_checkpoints(series: Series, *, has_svd: bool) -> list[Pair]:
    """Cosine and overlap of the updates between checkpoints, matrix by matrix; a matrix of all at a time in memory."""
    steps = list(series)
    if len(steps) <= ALL_PAIRS:
        chosen = list(combinations(range(len(steps)), 2))
    else:
        last = len(steps) - 1
        chosen = sorted({*pairwise(range(len(steps))), *((place, last) for place in range(last))})
    found: list[Pair] = []
    for path in series.paths:
        updates = [step.update(path, has_svd=has_svd or None) for step in steps]
        for first, second in chosen:
            both = updates[first], updates[second]
            found.append(Pair(steps[first].step, steps[second].step, path, cosine(*both), overlap(*both, TOP)))
    return found


def find_directions(series: Series, base_weight: Callable[[str], NDArray[np.float32]]) -> list[Direction]:
    """The top directions of every matrix at the last checkpoint; two dense SVDs each."""
    last = series[-1]
    return [
        Direction(last.step, path, number, float(value))
        for path in series.paths
        for number, value in enumerate(intruder_cosines(base_weight(path), last.delta(path), TOP_DIRECTIONS), 1)
    ]


def write_tables(folder: Path, traced: Traced) -> list[Path]:
    """Write every file anew, each whole or not at all. Raises ``OSError``."""
    durable.make_folder(folder)
    tables = {
        "checkpoints.csv": _steps(traced),
        "behaviour.csv": _behaviour(traced),
        "probes.csv": _probes(traced),
        "samples.csv": _samples(traced),
        "layers.csv": _layers(traced),
        "matrices.csv": _matrices(traced),
        "singular_values.csv": _values(traced),
        "pairs.csv": [asdict(pair) for pair in traced.pairs],
    }
    (folder / "intruders.csv").unlink(missing_ok=True)  # of another trace
    if traced.directions:
        tables["intruders.csv"] = [asdict(one) | {"is_intruder": one.is_intruder} for one in traced.directions]
    for name, rows in tables.items():
        durable.write_text(folder / name, csv_text(rows))
    durable.write_json(folder / "trace.json", traced.summary)
    return [folder / name for name in (*tables, "trace.json")]


def csv_text(rows: Iterable[Mapping[str, object]]) -> str:
    """The rows with a heading; nothing for None. A text that a spreadsheet would take for a formula gets a quote."""
    listed = list(rows)
    text = io.StringIO()
    if listed:
        writer = csv.DictWriter(text, list(listed[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in listed)
    return text.getvalue()


def _cell(value: object) -> object:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.9g}"
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return value


def _step_fields(result: StepResult, progress: float) -> dict[str, object]:
    difference = result.reload.difference
    return {
        "step": result.step,
        "progress": progress,
        "is_checkpoint": result.is_checkpoint,
        "loss": result.loss,
        "valid_loss": result.valid_loss,
        "saved_loss": result.reload.saved,
        "reloaded_loss": result.reload.found,
        "reload_difference": difference,
        "is_reload_right": None if difference is None else difference <= TOLERANCE,
    }


def _steps(traced: Traced) -> list[dict[str, object]]:
    progress = {one.step: one.progress for one in traced.series}
    return [_step_fields(result, progress.get(result.step, 0.0)) for result in traced.results]


def _behaviour(traced: Traced) -> list[dict[str, object]]:
    return [
        {"category": category.name, "num_probes": category.num_probes, "chance": category.chance, **asdict(point)}
        for category in traced.categories
        for point in category.course
    ]


def _probes(traced: Traced) -> list[dict[str, object]]:
    return [
        {
            "step": result.step,
            "probe": number,
            "where": probe.where,
            "category": probe.category,
            "question": probe.question,
            "answer": probe.answers[0],
            "loss": reply.loss_sum / max(1, reply.num_targets),
            "rank": reply.rank,
            "margin": reply.margin,
            "token_rank": reply.token_rank,
        }
        for result in traced.results
        for number, (probe, reply) in enumerate(zip(traced.probes.probes, result.replies, strict=True))
    ]


def _samples(traced: Traced) -> list[dict[str, object]]:
    return [{"step": result.step, **asdict(sample)} for result in traced.results for sample in result.samples]


def _layers(traced: Traced) -> list[dict[str, object]]:
    return [{"step": result.step, **asdict(layer)} for result in traced.results for layer in result.layers]


def _matrices(traced: Traced) -> list[dict[str, object]]:
    before = _step_before(traced.series)
    pairs = {(pair.first, pair.second, pair.path): pair for pair in traced.pairs}
    rows: list[dict[str, object]] = []
    for result in traced.results:
        for matrix in result.matrices:
            pair = pairs.get((before.get(result.step, -1), result.step, matrix.path))
            rows.append(
                {
                    "step": result.step,
                    "path": matrix.path,
                    "layer": block_number(matrix.path),
                    "name": matrix.path.rpartition(".")[2],
                    "norm": matrix.norm,
                    "relative_norm": matrix.relative,
                    "effective_rank": matrix.effective_rank,
                    "stable_rank": matrix.stable_rank,
                    "previous_cosine": pair.cosine if pair else None,
                    "previous_overlap": pair.overlap if pair else None,
                }
            )
    return rows


def _values(traced: Traced) -> list[dict[str, object]]:
    return [
        {"step": result.step, "path": matrix.path, "number": number, "value": value}
        for result in traced.results
        for matrix in result.matrices
        for number, value in enumerate(matrix.values, 1)
    ]


def _step_before(series: Sequence[SavedCheckpoint]) -> dict[int, int]:
    return {second.step: first.step for first, second in pairwise(series)}


def block_number(path: str) -> int | None:
    """The block a matrix belongs to: the first number in its path."""
    return next((int(part) for part in path.split(".") if part.isdigit()), None)
