"""The runs of one folder: found by name, read once, kept open while somebody looks at them.

Only folders directly under the chosen one that a run was started in can be reached, and no link that leads out of it.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlx_finetune.errors import RunError
from mlx_finetune.monitor.run_report import RunFacts, facts_json
from mlx_finetune.monitor.web.course import Course
from mlx_finetune.monitor.web.hands import Hands
from mlx_finetune.monitor.web.status import state_of
from mlx_finetune.rundir import EVENTS, RunDir, list_runs, running_process

#: Runs that are kept read; a run of 100,000 steps takes 60 MB.
MAX_OPEN = 6

Stamp = tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Listed:
    stamp: Stamp
    row: Mapping[str, object]


class Shelf:
    """Runs by name. Safe for several threads."""

    def __init__(self, folder: Path, hands: Hands) -> None:
        self.folder = folder
        self._hands = hands
        self._open: OrderedDict[str, Course] = OrderedDict()
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

    def course(self, run: RunDir) -> Course:
        """The run, kept open; not yet refreshed."""
        with self._lock:
            course = self._open.pop(run.path.name, None) or Course(run)
            self._open[run.path.name] = course
            while len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)
            return course

    def names(self) -> list[str]:
        """All runs, by name. Nothing of them is read."""
        return [run.path.name for run in list_runs(self.folder) if self.find(run.path.name)]

    def rows(self) -> list[Mapping[str, object]]:
        """All runs for a table. A journal is read again only when it has changed."""
        return [self._row(RunDir(self.folder / name)) for name in self.names()]

    def _row(self, run: RunDir) -> Mapping[str, object]:
        name, stamp = run.path.name, _stamp(run)
        is_running = running_process(run) is not None
        known = self._listed.get(name)
        if known is None or known.stamp != stamp:
            with self._lock:
                course = self._open.get(name)
            if course is None:
                course = self.course(run) if is_running else Course(run)
            try:
                with course.fresh():
                    known = _Listed(stamp, self._facts(course))
            except RunError:
                known = _Listed(stamp, {"name": name, "_running": "unreadable", "_idle": "unreadable"})
            self._listed[name] = known
        state = known.row["_running" if is_running else "_idle"]
        return {"state": state, **{key: value for key, value in known.row.items() if key[0] != "_"}}

    def _facts(self, course: Course) -> dict[str, object]:
        run, summary = course.run, course.summary
        facts = RunFacts(run.path.name, "", self._hands.num_bytes(run), False, (), summary)
        fields = {key: value for key, value in facts_json(facts).items() if key not in ("status", "path")}
        seconds = summary.last_time - summary.first_time if summary.first_time is not None else None
        return {
            **fields,
            "task": summary.started.task if summary.started else "",
            "first_time": summary.first_time,
            "seconds": seconds,
            "_running": state_of(summary, is_running=True),
            "_idle": state_of(summary, is_running=False),
        }


def _stamp(run: RunDir) -> Stamp:
    try:
        status = run.file(EVENTS).stat()
    except OSError:
        return (0, 0)
    return (status.st_size, status.st_mtime_ns)
