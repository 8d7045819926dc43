"""One run that somebody watches: its journal followed, its curves kept short, whether it is at work.

A journal of any length is read in slices, so that keys are heard meanwhile; a curve keeps its extremes in at most
``2 * MOST_POINTS`` points. A folder that goes away leaves what was seen; one that comes back is read from its start.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json as decode

from mlx_finetune.events import Record, Restarted, StepDone
from mlx_finetune.journal import EventFollower
from mlx_finetune.monitor.braille import Points
from mlx_finetune.monitor.series import thin_extremes
from mlx_finetune.monitor.summary import Summary
from mlx_finetune.rundir import EVENTS, RunDir, checkpoint_step, running_process

MOST_POINTS = 800
LOOK_SECONDS = 1.0  # between two looks at the locks of the run

#: Events without a line of their own in the list of what happened.
_NOT_TOLD = frozenset({"step", "resources", "phase", "sample"})


@dataclass(slots=True)
class Series:
    """A curve that grows. What is not a number is left out."""

    xs: list[float] = field(default_factory=list[float])
    ys: list[float] = field(default_factory=list[float])

    def extend(self, xs: Sequence[float], ys: Sequence[float | None]) -> None:
        """More points, at the right end."""
        pairs = [(x, y) for x, y in zip(xs, ys, strict=True) if y is not None and y == y]
        self.xs += [x for x, _ in pairs]
        self.ys += [y for _, y in pairs]
        if len(self.xs) > 2 * MOST_POINTS:
            self.xs, self.ys = thin_extremes(self.xs, self.ys, MOST_POINTS)

    def points(self, most: int, since: float = 0.0) -> Points:
        """At most about ``most`` of the points from x ``since`` on, extremes included."""
        start = next((place for place, x in enumerate(self.xs) if x >= since), len(self.xs)) if since else 0
        xs, ys = thin_extremes(self.xs[start:], self.ys[start:], max(4, most))
        return list(zip(xs, ys, strict=True))


#: Before the name of what an objective measures beside its loss.
METRIC = "metric:"

#: List of a summary -> the curves that are fed from it.
_READERS: Mapping[str, Mapping[str, Callable[[Any], float | None]]] = {
    "leading": {"lead": lambda point: point.loss, "smooth": lambda point: point.smooth},
    "steps": {
        "learning_rate": lambda step: step.learning_rate,
        "grad_norm": lambda step: step.grad_norm,
        "speed": lambda step: step.targets_per_second,
        "memory": lambda step: step.active_memory_bytes,
    },
    "resources": {
        "gpu": lambda one: one.gpu_percent,
        "cpu": lambda one: one.cpu_percent,
        "watts": lambda one: one.watts,
        "temperature": lambda one: one.temperature_celsius,
        "machine_memory": lambda one: one.memory_used_bytes,
    },
}


class Curves:
    """Every curve of a run by its name in ``_READERS``, x in steps; memory in bytes, shares of 100."""

    def __init__(self) -> None:
        self._series = {name: Series() for readers in _READERS.values() for name in readers}
        self._given: dict[str, tuple[int, object]] = dict.fromkeys(_READERS, (0, None))

    def __getitem__(self, name: str) -> Series:
        return self._series[name]

    def has(self, name: str) -> bool:
        """Whether there is such a curve: those of metrics come with the first step that has them."""
        return name in self._series

    def update(self, summary: Summary) -> None:
        """Take in what the summary has that these have not. A list that was cut back, as when a run is resumed, is
        taken in anew."""
        lists: Mapping[str, Sequence[Any]] = {
            "leading": summary.leading,
            "steps": summary.steps,
            "resources": summary.resources,
        }
        for source, items in lists.items():
            count, last = self._given[source]
            is_cut = len(items) < count or (count > 0 and items[count - 1] is not last)
            new = items if is_cut else items[count:]
            self._given[source] = len(items), items[-1] if items else None
            steps = [item.step for item in new]
            for name, read in _READERS[source].items():
                if is_cut:
                    self._series[name] = Series()
                self._series[name].extend(steps, [read(item) for item in new])
            if source == "steps":
                self._extend_metrics(summary.steps[len(summary.steps) - len(new) :], is_cut=is_cut)

    def _extend_metrics(self, new: Sequence[StepDone], *, is_cut: bool) -> None:
        """Curves of what the objective measures, which have their names from the journal."""
        for name in dict.fromkeys(name for one in new for name in one.metrics):
            key = f"{METRIC}{name}"
            if is_cut or key not in self._series:
                self._series[key] = Series()
            self._series[key].extend([one.step for one in new], [one.metrics.get(name) for one in new])


class Watched:
    """A run, as far as it was read. ``is_loading`` until what was there at first is read."""

    def __init__(self, run: RunDir, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.run = run
        self._clock = clock
        self._begin()
        self.pid = running_process(run)

    def _begin(self) -> None:
        self.summary, self.curves = Summary(), Curves()
        self.records: list[Record] = []  # what is worth a line: everything but steps, resources and phases
        self._follower = EventFollower(self.run.file(EVENTS), decode=decode)
        self._unread: Iterator[Record] | None = None
        self.checkpoints: Sequence[int] = []  # steps of those that are in the folder
        self.num_read = 0
        self.is_loading = True
        self.is_gone = False
        self.was_idle = False  # seen without a process since this was opened
        self._next_look = 0.0

    @property
    def is_at_work(self) -> bool:
        """True while a process trains in the folder or is about to."""
        return self.pid is not None

    def advance(self, seconds: float) -> bool:
        """Read what is new, for about ``seconds``; True where something was, or where the process came or went."""
        changed = self._look()
        if self._unread is None:
            self._unread = self._follower.poll()
        deadline = self._clock() + seconds
        for record in self._unread:
            self._add(record)
            changed = True
            if self._clock() > deadline:
                self.curves.update(self.summary)
                return True
        self._unread = None
        changed, self.is_loading = changed or self.is_loading, False
        self.curves.update(self.summary)
        return changed

    def _look(self) -> bool:
        now = self._clock()
        if now < self._next_look:
            return False
        self._next_look = now + LOOK_SECONDS
        before = self.pid, self.is_gone, self.checkpoints
        is_there = self.run.path.is_dir()
        if is_there and self.is_gone:
            self._begin()
            self._next_look = now + LOOK_SECONDS
        self.is_gone = not is_there
        self.pid = running_process(self.run) if is_there else None
        self.was_idle = self.was_idle or self.pid is None
        self.checkpoints = [checkpoint_step(path) for path in self.run.checkpoints()] if is_there else []
        return (self.pid, self.is_gone, self.checkpoints) != before

    def _add(self, record: Record) -> None:
        self.num_read += 1
        self.summary.add(record)
        event = record.event
        is_repeated = isinstance(event, Restarted) and any(one.event == event for one in self.records)
        if event.kind not in _NOT_TOLD and not is_repeated:
            self.records.append(record)
