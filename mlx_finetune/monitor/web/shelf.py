"""The runs of one folder: found by name, read once, kept open while somebody looks at them.

Only folders directly under the chosen one that a run was started in can be reached, and no link that leads out of it.
"""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mlx_finetune.errors import RunError
from mlx_finetune.monitor.run_report import RunFacts, facts_json
from mlx_finetune.monitor.web.course import Course, curves_json
from mlx_finetune.monitor.web.hands import Hands
from mlx_finetune.monitor.web.plain_json import encode
from mlx_finetune.monitor.web.status import state_of
from mlx_finetune.rundir import EVENTS, RunDir, list_runs, running_process

#: Runs that are kept read; a run of 100,000 steps takes 60 MB.
MAX_OPEN = 6
#: Points of a curve as a page first sees it; more than a screen has columns.
POINTS = 1500
#: Runs whose curves are kept ready; 250 kB each.
MAX_READY = 40
#: 40 bytes of a journal cost a microsecond of the processor.
MAX_AHEAD_BYTES = 200 * 10**6

Stamp = tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Listed:
    """What was read of a run: its row of the table, and its curves ready to be sent (empty: not kept)."""

    stamp: Stamp
    row: Mapping[str, object]
    curves: bytes = b""


class Shelf:
    """Runs by name. Safe for several threads."""

    def __init__(self, folder: Path, hands: Hands) -> None:
        self.folder = folder
        self._hands = hands
        self._open: OrderedDict[str, Course] = OrderedDict()
        self._reading: dict[str, Course] = {}
        self._listed: dict[str, _Listed] = {}
        self._lock = threading.Lock()

    def find(self, name: str) -> RunDir | None:
        """The run of that name, None where there is none that may be shown."""
        if not name or name in (".", "..") or "/" in name or "\0" in name:
            return None
        run = RunDir(self.folder / name)
        try:
            is_inside = run.path.resolve().parent == self.folder.resolve()
            return run if is_inside and run.is_run() else None
        except OSError:  # a name that is too long
            return None

    def read_ahead(self, name: str) -> None:
        """Read the run ``name`` and then the latest others, so that they are there when somebody asks.

        At most ``MAX_AHEAD_BYTES`` of their journals: a training may want the processor more.
        """
        run = self.find(name)
        with contextlib.suppress(RunError):
            if run is not None:
                self.curves(run)
        stamps = {other: _stamp(RunDir(self.folder / other)) for other in self.names()}
        num_bytes = 0
        for other, (size, _) in sorted(stamps.items(), key=lambda item: item[1][1], reverse=True):
            num_bytes += size
            if num_bytes > MAX_AHEAD_BYTES:
                break
            self._row(RunDir(self.folder / other))

    def course(self, run: RunDir) -> Course:
        """The run, kept open; not yet refreshed."""
        with self._lock:
            name = run.path.name
            course = self._open.pop(name, None) or self._reading.get(name) or Course(run)
            self._open[name] = course
            while len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)
            return course

    def names(self) -> list[str]:
        """All runs, by name. Nothing of them is read."""
        return [run.path.name for run in list_runs(self.folder) if self.find(run.path.name)]

    def curves(self, run: RunDir) -> bytes:
        """All curves of a run as JSON; those that are ready where its journal is still the same."""
        name = run.path.name
        known = self._listed.get(name)
        if known is not None and known.curves and known.stamp == _stamp(run) and name not in self._open:
            return known.curves
        with self.course(run).fresh() as course:
            key = (course.position, course.num_records)
            if course.ready is None or course.ready[0] != key:
                course.ready = (key, encode(curves_json(course, None, None, POINTS)))
            return course.ready[1]

    def rows(self) -> list[Mapping[str, object]]:
        """All runs for a table. A journal is read again only when it has changed."""
        return [self._row(RunDir(self.folder / name)) for name in self.names()]

    def _row(self, run: RunDir) -> Mapping[str, object]:
        name, stamp = run.path.name, _stamp(run)
        is_running = running_process(run) is not None
        known = self._listed.get(name)
        if known is None or known.stamp != stamp:
            known = self._read(run, stamp, is_running=is_running)
            self._listed.pop(name, None)
            self._listed[name] = known
            for other in list(self._listed)[:-MAX_READY]:
                self._listed[other] = replace(self._listed[other], curves=b"")
        state = known.row["_running" if is_running else "_idle"]
        return {"state": state, **{key: value for key, value in known.row.items() if key[0] != "_"}}

    def _read(self, run: RunDir, stamp: Stamp, *, is_running: bool) -> _Listed:
        """What the table shows. A run at work is kept open, for it will be read again; others are let go of."""
        name = run.path.name
        if is_running:
            course = self.course(run)
        else:
            with self._lock:  # whoever asks for it meanwhile waits for this reading
                course = self._open.get(name) or self._reading.setdefault(name, Course(run))
        try:
            with course.fresh():
                curves = b"" if is_running else encode(curves_json(course, None, None, POINTS))
                return _Listed(stamp, self._facts(course), curves)
        except RunError:
            return _Listed(stamp, {"name": name, "_running": "unreadable", "_idle": "unreadable"})
        finally:
            self._reading.pop(name, None)

    def _facts(self, course: Course) -> dict[str, object]:
        run, summary = course.run, course.summary
        facts = RunFacts(run.path.name, "", self._hands.num_bytes(run), False, (), summary)
        fields = {key: value for key, value in facts_json(facts).items() if key not in ("status", "path")}
        return {
            **fields,
            "task": summary.started.task if summary.started else "",
            "first_time": summary.first_time,
            "seconds": summary.took_seconds,
            "_running": state_of(summary, is_running=True),
            "_idle": state_of(summary, is_running=False),
        }


def _stamp(run: RunDir) -> Stamp:
    try:
        status = run.file(EVENTS).stat()
    except OSError:
        return (0, 0)
    return (status.st_size, status.st_mtime_ns)
