"""Look on while a run is at work, from outside: only reads, so it can come and go."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mlx_finetune.app.running.launch import POLL_SECONDS, View
from mlx_finetune.app.running.runs import is_running
from mlx_finetune.errors import RunError
from mlx_finetune.events import from_json
from mlx_finetune.journal import EventFollower
from mlx_finetune.rundir import EVENTS, RunDir, list_all_runs

LOOK_SECONDS = 0.5  # between two looks at the lock of the run
_MAX_LINE_BYTES = 1 << 20


def follow(run: RunDir, follower: EventFollower, view: View, has_left: Callable[[], bool]) -> None:
    """Show what ``follower`` brings until the run is at work no more and all was read, or until ``has_left``."""
    next_look = 0.0
    is_at_work = True
    while is_at_work and not has_left():
        now = time.monotonic()
        if now >= next_look:
            is_at_work, next_look = is_running(run), now + LOOK_SECONDS
        for record in follower.poll():
            view.show(record)
        view.tick(time.time())
        if is_at_work:
            time.sleep(POLL_SECONDS)


def running_runs(folder: Path) -> Sequence[RunDir]:
    """The runs in ``folder`` that are at work, by name; stages of pipelines are among them."""
    return [run for run in list_all_runs(folder) if is_running(run)]


def only_running(folder: Path) -> RunDir:
    """The one run in ``folder`` that is at work. Raises ``RunError`` for none, and for several with their names."""
    running = running_runs(folder)
    if not running:
        raise RunError(f"no run in {folder}/ is at work", "see all runs with: mlxft runs")
    if len(running) > 1:
        names = ", ".join(run.name for run in running)
        raise RunError(f"{len(running)} runs are at work: {names}", f"name one, for instance {running[0].name}")
    return running[0]


def latest_run(folder: Path) -> RunDir:
    """The running run in ``folder`` with the latest event, else the run with the latest event. Raises ``RunError``."""
    runs = running_runs(folder) or list_all_runs(folder)
    if not runs:
        raise RunError(f"there is no run in {folder}/", "mlxft train RECIPE starts one")
    return max(runs, key=last_event_time)


def last_event_time(run: RunDir) -> float:
    """When the last whole line of the journal was reported, in seconds since 1970; 0 without one."""
    path = run.file(EVENTS)
    if not path.is_file():
        return 0.0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _MAX_LINE_BYTES))
        lines = file.read().split(b"\n")
    records = (from_json(line) for line in reversed(lines))
    return next((record.time for record in records if record is not None), 0.0)
