"""One run as the page sees it: its journal followed, its curves as columns, and positions in them that a page can name.

A position counts the steps and the looks at the machine that were told so far. It stays good while the journal only
grows, whoever reads it; a run that is resumed, and cuts its journal back, is another generation (a check sum of all its
starts), and the page asks for everything again.
Costs about 10 microseconds a line at first, memory of about 600 bytes a step.
"""

import bisect
import contextlib
import threading
import zlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

import pydantic_core

from mlx_finetune.errors import RunError
from mlx_finetune.events import Resources, RunStarted, StepDone
from mlx_finetune.journal import EventFollower
from mlx_finetune.monitor.objective_metrics import metric_points
from mlx_finetune.monitor.series import thin_extremes
from mlx_finetune.monitor.summary import Summary
from mlx_finetune.rundir import EVENTS, RunDir

#: What is drawn over the steps -> the field of ``StepDone``; what is smoothed, the loss or what leads, is ours.
STEP_FIELDS = (
    "loss",
    "learning_rate",
    "grad_norm",
    "targets_per_second",
    "active_memory_bytes",
    "peak_memory_bytes",
)
#: What the machine did, by the field of ``Resources``.
MACHINE_FIELDS = (
    "cpu_percent",
    "gpu_percent",
    "process_bytes",
    "memory_used_bytes",
    "swap_bytes",
    "watts",
    "temperature_celsius",
    "disk_free_bytes",
)
Column = list[float | None]
#: Before the names of what an objective measures beside its loss: in steps, and on the validation set.
METRIC, VALID_METRIC = "metric:", "valid:"


@dataclass(frozen=True, slots=True)
class Position:
    """How much of a run was told. ``generation`` changes when what was told is true no more."""

    generation: str
    num_steps: int
    num_looks: int

    @property
    def text(self) -> str:
        """The id of a server-sent event."""
        return f"{self.generation}-{self.num_steps}-{self.num_looks}"


def parse_position(text: str) -> Position | None:
    """The position of an event id, None for what is none."""
    generation, _, counts = text.partition("-")
    steps, _, looks = counts.partition("-")
    if not (generation and steps.isdecimal() and looks.isdecimal() and len(text) < 80):
        return None
    return Position(generation, int(steps), int(looks))


class Course:
    """A run, read as far as its journal goes. Not for two threads at once: see ``fresh``."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self.lock = threading.Lock()
        self.ready: tuple[object, bytes] | None = None  # all curves as they are sent, and what they were made of
        self.summary = Summary()
        self._begin()

    @contextlib.contextmanager
    def fresh(self) -> "Generator[Course]":
        """Inside, the run is as its journal says now, and nobody else's. Raises ``RunError`` where that is nonsense."""
        with self.lock:
            try:
                self.refresh()
                yield self
            except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
                journal = self.run.file(EVENTS)
                raise RunError(f"{journal} holds what no training wrote ({type(error).__name__})") from error

    def _begin(self) -> None:
        self.summary = Summary()
        self.num_records = 0
        self._follower = EventFollower(self.run.file(EVENTS), decode=pydantic_core.from_json)
        self._last_index = -1
        self._starts = 0
        self._forget_columns()

    def _forget_columns(self) -> None:
        self._smooth: Column = []
        self._steps: dict[str, Column] = {name: [] for name in ("step", *STEP_FIELDS)}
        self._looks: dict[str, Column] = {name: [] for name in ("step", *MACHINE_FIELDS)}

    def refresh(self) -> None:
        """Take in what was added to the journal, all of it again where it was cut back."""
        for record in self._follower.poll():
            if record.index <= self._last_index:
                self._begin()
                self.refresh()
                return
            self._last_index = record.index
            self.num_records += 1
            self.summary.add(record)
            if isinstance(record.event, StepDone):
                last = self.summary.leading[-1] if self.summary.leading else None
                self._smooth.append(last.smooth if last is not None and last.step == record.event.step else None)
            elif isinstance(record.event, RunStarted):
                self._starts = zlib.crc32(f"{record.time} {record.event.first_step}".encode(), self._starts)
                smooth = {point.step: point.smooth for point in self.summary.leading}
                self._forget_columns()
                self._smooth += [smooth.get(one.step) for one in self.summary.steps]

    @property
    def position(self) -> Position:
        """Everything that is known now."""
        return Position(f"{self._starts:08x}", len(self.summary.steps), len(self.summary.resources))

    def holds(self, position: Position) -> bool:
        """True where what was told up to ``position`` is a beginning of what is known now."""
        now = self.position
        return (
            position.generation == now.generation
            and position.num_steps <= now.num_steps
            and position.num_looks <= now.num_looks
        )

    def since(self, position: Position) -> tuple[Mapping[str, Column], Mapping[str, Column]]:
        """Columns of the steps and of the machine after ``position``, each with its own ``step``."""
        self._fill_columns()
        steps, looks = position.num_steps, position.num_looks
        return (
            {name: column[steps:] for name, column in self._steps.items()},
            {name: column[looks:] for name, column in self._looks.items()},
        )

    def _fill_columns(self) -> None:
        """Add to the columns what was taken in since the last time."""
        summary, known = self.summary, self._steps
        new = summary.steps[len(known["step"]) :]
        _extend_metrics(known, new)
        _extend(known, summary.steps)
        _extend(self._looks, summary.resources)
        known["smooth"] = self._smooth

    def curves(
        self, *, first: float | None = None, last: float | None = None, most: int
    ) -> dict[str, tuple[list[float], list[float]]]:
        """Name -> (steps, values) of every curve from step ``first`` to ``last``, at most ``most`` points of each.

        Extremes are kept; a curve of which nothing is known is left out.
        """
        self._fill_columns()
        found: dict[str, tuple[list[float], list[float]]] = {}
        for columns in (self._steps, self._looks):
            chosen = _range(columns["step"], first, last)
            xs = _known(columns["step"])[chosen]
            for name, values in columns.items():
                if name == "step":
                    continue
                thinned = thin_extremes(xs, _known(values)[chosen], most)
                if thinned[0]:
                    found[name] = (thinned[0], [_short(y) for y in thinned[1]])
        for name in {name for one in self.summary.evaluations for name in one.metrics}:
            points = metric_points(self.summary.evaluations, name)
            found[f"{VALID_METRIC}{name}"] = ([x for x, _ in points], [_short(y) for _, y in points])
        return found


def _extend(columns: dict[str, Column], rows: Sequence[StepDone] | Sequence[Resources]) -> None:
    new = rows[len(columns["step"]) :]
    for name, column in columns.items():
        if name != "smooth" and not name.startswith(METRIC):
            column += [getattr(row, name) for row in new]


def _extend_metrics(columns: dict[str, Column], new: Sequence[StepDone]) -> None:
    """Columns of the metrics of ``new`` steps; one that is met for the first time has nothing before."""
    for name in dict.fromkeys(name for one in new for name in one.metrics):
        columns.setdefault(f"{METRIC}{name}", [None] * len(columns["step"]))
    for name, column in columns.items():
        if name.startswith(METRIC):
            column += [one.metrics.get(name.removeprefix(METRIC)) for one in new]


def _range(xs: Column, first: float | None, last: float | None) -> slice:
    """The part from ``first`` to ``last`` with one point more at either end, so that a line goes on past the edge."""
    steps = _known(xs)
    begin = 0 if first is None else max(0, bisect.bisect_left(steps, first) - 1)
    end = len(steps) if last is None else min(len(steps), bisect.bisect_right(steps, last) + 1)
    return slice(begin, end)


def _known(column: Column) -> list[float]:
    """The same list; ``thin_extremes`` leaves out what is None by itself."""
    return column  # pyright: ignore[reportReturnType]


def _short(value: float) -> float:
    """Six digits: a quarter of the bytes, and more than a screen can show."""
    return float(f"{value:.6g}")


def curves_json(course: Course, first: float | None, last: float | None, most: int) -> dict[str, object]:
    """What a page draws, with the position it stands for."""
    started = course.summary.started
    return {
        "id": course.position.text,
        "curves": course.curves(first=first, last=last, most=most),
        "evaluations": [[one.step, one.loss] for one in course.summary.evaluations],
        "lead": course.summary.lead,
        "units": course.summary.learned.units,
        "memory_limit_bytes": started.memory_limit_bytes if started else None,
    }
