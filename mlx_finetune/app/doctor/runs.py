"""How the last runs ended, and what macOS wrote down about crashes meanwhile.

Reads the end of a run's journal (64 kB), never its data. Only what happened in the last days is told: an older run was
seen or given up.
"""

import os
import re
import shlex
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlx_finetune.app.doctor.finding import Finding, Typed
from mlx_finetune.app.running.endings import Ended, read_ending
from mlx_finetune.app.text import shorten
from mlx_finetune.events import Record, Restarted, RunFailed, RunFinished, RunStarted, RunStopped, StepDone, from_json
from mlx_finetune.rundir import EVENTS, RunDir, list_runs, running_process

NUM_RUNS = 3
RECENT_SECONDS = 7 * 86400.0
TAIL_BYTES = 1 << 16
MAX_CRASH_REPORTS = 20
#: Where macOS puts crash reports: those of the whole machine (readable by administrators), and those of the user.
CRASH_FOLDERS = ("/Library/Logs/DiagnosticReports", "~/Library/Logs/DiagnosticReports")

#: What a person is told at most of a sentence that a run left behind.
_WIDTH = 300
_PANICS: tuple[tuple[str, str, str, str], ...] = (
    (
        r"no checkins from watchdogd",
        "macOS restarted because its watchdog got no answer, as happens when the GPU works and the display is lit",
        "let it sleep while a training runs",
        "pmset displaysleepnow",
    ),
    (
        r"completeMemory\(\) prepare count underflow",
        "macOS restarted because of an error in its own GPU driver, which nothing here can prevent",
        "a run goes on from its last checkpoint with --resume",
        "mlxft runs list",
    ),
)
_JETSAM = re.compile(r'"largestProcess"\s*:\s*"(python[\w.]*)"', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class RunEnd:
    """How a run ended. ``lost``: it is gone without a last word; ``go_on`` is the command that continues it, or ""."""

    name: str
    kind: Literal["failed", "lost", "restarted"]
    step: int
    message: str
    hint: str
    go_on: str


@dataclass(frozen=True, slots=True)
class Crash:
    """A crash report of macOS that is about a training: what it says, what to do, and what to type."""

    file: str
    message: str
    hint: str
    command: str


def read_ends(base: Path, now: float, go_on: Callable[[RunDir], Sequence[str]]) -> Iterator[RunEnd]:
    """The last runs under ``adapters/`` of ``base`` that did not end well, the newest first."""
    for run in newest_runs(base, now)[:NUM_RUNS]:
        with suppress(OSError):
            if running_process(run) is None:
                end = read_end(run, tail_of(run), go_on)
                if end is not None:
                    yield end


def newest_runs(base: Path, now: float) -> list[RunDir]:
    """Runs under ``adapters/`` of ``base`` that reported something in the last days, the newest first."""
    times: list[tuple[float, RunDir]] = []
    with suppress(OSError):
        for run in list_runs(base / "adapters"):
            with suppress(OSError):
                times.append((run.file(EVENTS).stat().st_mtime, RunDir(Path("adapters", run.path.name))))
    times.sort(key=lambda pair: pair[0], reverse=True)
    return [RunDir(base / run.path) for time, run in times if now - time <= RECENT_SECONDS]


def tail_of(run: RunDir) -> list[Record]:
    """The last events of a run, as far as they stand in the last 64 kB of its journal."""
    with run.file(EVENTS).open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL_BYTES))
        lines = file.read().split(b"\n")
    return [record for line in lines if (record := from_json(line)) is not None]


def read_end(run: RunDir, records: Sequence[Record], go_on: Callable[[RunDir], Sequence[str]]) -> RunEnd | None:
    """What the last events tell; None for a run that finished, was stopped, or has nothing to tell."""
    events = [record.event for record in records]
    outcome = next((e for e in reversed(events) if isinstance(e, RunFinished | RunStopped | RunFailed)), None)
    since = max((i for i, e in enumerate(events) if isinstance(e, RunStarted)), default=-1)
    last = max((i for i, e in enumerate(events) if e is outcome), default=-1)
    step = next((e.step for e in reversed(events) if isinstance(e, StepDone)), 0)
    restarts = [e for e in events if isinstance(e, Restarted)]
    name = run.path.name
    again = next(iter(go_on(run)), "").removeprefix("to go on: ")
    if last < since or outcome is None:  # it began once more after its last word, or never had one
        return RunEnd(name, "lost", step, "", "", again) if step else None
    if isinstance(outcome, RunFailed):
        return RunEnd(name, "failed", step, shorten(outcome.message, _WIDTH), shorten(outcome.hint, _WIDTH), again)
    if restarts:
        return RunEnd(name, "restarted", step, shorten(restarts[-1].sentence, _WIDTH), "", again)
    return None


def read_crashes(folders: Sequence[str], now: float) -> Iterator[Crash]:
    """Crash reports of the last days in which macOS says what MLX says too, or that a Python took all memory."""
    paths: list[tuple[float, Path]] = []
    for folder in folders:
        with suppress(OSError):
            for path in Path(folder).expanduser().iterdir():
                if path.suffix in (".panic", ".ips"):
                    with suppress(OSError):
                        paths.append((path.stat().st_mtime, path))
    for time, path in sorted(paths, reverse=True)[:MAX_CRASH_REPORTS]:
        if now - time > RECENT_SECONDS:
            return
        with suppress(OSError), path.open("rb") as file:
            found = read_crash(path.name, file.read(1 << 20).decode("utf-8", "replace"))
            if found is not None:
                yield found


def read_crash(name: str, text: str) -> Crash | None:
    """What one crash report says about a training, None for one about something else."""
    for pattern, message, hint, command in _PANICS:
        if re.search(pattern, text):
            return Crash(name, message, hint, command)
    jetsam = _JETSAM.search(text) if name.startswith("JetsamEvent") else None
    if jetsam is not None:
        message = f"memory ran out, and {jetsam[1]} had the most of it"
        return Crash(name, message, "mlxft plan RECIPE says what needs less", "mlxft runs list")
    if not name.lower().startswith("python"):
        return None
    ending = read_ending(Ended(1, killed_by=signal.SIGABRT, log_tail=(text,)))
    return None if ending.cause == "SIGABRT" else Crash(name, ending.message, ending.hint, "mlxft runs list")


# --- what to do ---


def run_problems(ends: Sequence[RunEnd], crashes: Sequence[Crash], typed: Typed) -> Iterator[Finding]:
    """The ends of the last runs with the command that goes on, and crash reports that no run tells about."""
    for end in ends:
        show = f"{typed.mlxft} runs show {shlex.quote(end.name)}"
        again = typed.command(end.go_on) if end.go_on else show
        match end.kind:
            case "failed":
                hint = f"; {end.hint}" if end.hint else ""
                yield Finding("warning", f"the run {end.name} failed: {end.message}{hint}", again)
            case "lost":
                message = f"the run {end.name} went away after step {end.step} without a word, as when power is lost"
                yield Finding("warning", message, again)
            case "restarted":
                yield Finding("note", f"the run {end.name} was started again: {end.message}", show)
    told = " ".join(end.message for end in ends)
    for message, hint, command in dict.fromkeys((crash.message, crash.hint, crash.command) for crash in crashes):
        if message not in told:
            yield Finding("warning", f"in the last days {message}; {hint}", typed.command(command))
