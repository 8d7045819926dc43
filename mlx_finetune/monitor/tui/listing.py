"""The runs that can be watched: those at work first, then the latest. Only both ends of each journal are read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from mlx_finetune.events import Record, RunFailed, RunFinished, RunStarted, RunStopped, StepDone, from_json
from mlx_finetune.monitor.plain import number
from mlx_finetune.monitor.summary import Outcome, ended_as
from mlx_finetune.monitor.tui.blocks import Lines, fit, plain
from mlx_finetune.monitor.tui.words import ago
from mlx_finetune.rundir import EVENTS, RunDir, running_process

END_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Glance:
    """What one look at a run shows. ``loss`` is the last training loss, ``time`` that of the last event."""

    run: RunDir
    is_at_work: bool
    status: str
    model: str
    step: int
    total_steps: int | None
    loss: float | None
    time: float


class Listing:
    """The runs of a person's folders. Journals that did not change are not read again."""

    def __init__(self, list_runs: Callable[[], Sequence[RunDir]]) -> None:
        self._list_runs = list_runs
        self._known: dict[Path, tuple[tuple[int, int, bool], Glance]] = {}
        self.glances: Sequence[Glance] = []

    def look(self) -> None:
        """Bring ``glances`` up to date."""
        found = [self._glance(run) for run in self._list_runs()]
        self.glances = sorted(found, key=lambda one: (not one.is_at_work, -one.time, one.run.path))

    def _glance(self, run: RunDir) -> Glance:
        is_at_work = running_process(run) is not None
        try:
            status = run.file(EVENTS).stat()
            stamp = status.st_size, status.st_mtime_ns, is_at_work
        except OSError:
            stamp = 0, 0, is_at_work
        known = self._known.get(run.path)
        if known is None or known[0] != stamp:
            known = stamp, glance(run, is_at_work=is_at_work)
            self._known[run.path] = known
        return known[1]


def glance(run: RunDir, *, is_at_work: bool) -> Glance:
    """Read the beginning and the end of the journal of ``run``."""
    first, last = _ends(run.file(EVENTS))
    events = [record.event for record in (*first, *last)]
    started = next((event for event in reversed(events) if isinstance(event, RunStarted)), None)
    step = next((event for event in reversed(events) if isinstance(event, StepDone)), None)
    outcome: Outcome | None = None
    for event in events:
        if isinstance(event, RunFinished | RunStopped | RunFailed):
            outcome = event
        elif isinstance(event, RunStarted | StepDone):
            outcome = None
    return Glance(
        run,
        is_at_work,
        "at work" if is_at_work else ended_as(outcome),
        plain(started.model) if started else "",
        step.step if step else 0,
        started.total_steps if started else None,
        step.loss if step else None,
        last[-1].time if last else 0.0,
    )


def _ends(path: Path) -> tuple[Sequence[Record], Sequence[Record]]:
    """The records at the beginning and at the end of a journal; the latter has all of a short one."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            start = max(0, size - END_BYTES)
            file.seek(0)
            head = file.read(min(END_BYTES, start)).split(b"\n")[:-1]
            file.seek(start)
            tail = file.read().split(b"\n")
    except OSError:
        return [], []
    found = [[from_json(line) for line in lines] for lines in (head, tail if not start else tail[1:])]
    first, last = ([record for record in records if record is not None] for records in found)
    return first, last


def runs_lines(listing: Listing, chosen: int, shown: RunDir, now: float, *, width: int) -> Lines:
    """The table of runs; the chosen line is reversed, the run on the screen has a mark."""
    if not listing.glances:
        return [Text(" no runs here; mlxft train RECIPE starts one", "dim")]
    heading = ("", "run", "status", "step", "loss", "last event", "model")
    rows = [_cells(one, shown, now) for one in listing.glances]
    widths = [max(len(row[column]) for row in (heading, *rows)) for column in range(len(heading))]
    widths[1] = min(widths[1], max(10, width // 3))
    while sum(widths) + 2 * len(widths) > width + 2 and len(widths) > 3:
        widths.pop()  # the last columns go where not all fit
    lines = [_line(heading, widths, "dim", width)]
    for place, (row, one) in enumerate(zip(rows, listing.glances, strict=True)):
        style = "reverse" if place == chosen else "green" if one.is_at_work else ""
        lines.append(_line(row, widths, style, width))
    return [*lines, Text(""), Text(" up, down and Return: watch another run", "dim")]


def _cells(one: Glance, shown: RunDir, now: float) -> tuple[str, ...]:
    mark = "\u25b6" if one.run.path == shown.path else " "
    total = f"/{one.total_steps:,}" if one.total_steps else ""
    step = f"{one.step:,}{total}" if one.step or total else ""
    loss = number(one.loss, 4) if one.step else ""
    when = ago(one.time, now) if one.time else ""
    return (mark, plain(one.run.path.name), one.status, step, loss, when, one.model)


def _line(cells: Sequence[str], widths: Sequence[int], style: str, width: int) -> Text:
    line = Text(style=style)
    for cell, room in zip(cells, widths, strict=False):
        shown = fit(Text(cell), room)
        line.append_text(shown).append(" " * (room - shown.cell_len) + "  ")
    line.rstrip()
    line = fit(line, width)
    line.pad_right(width - line.cell_len)
    return line
