"""The golden screens of tests/golden/monitor: every pane of the full-screen monitor at three sizes, as lines of text.

Write them anew with ``PYTHONPATH=.:tests python tests/golden_screens.py`` and review the difference; it refuses while
the files have changes that are not committed.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from screen_runs import START, STARTED, at_pace, evaluated, step, working_run, write_run
from textual.pilot import Pilot

from mlx_finetune.events import Phase, RunFinished
from mlx_finetune.monitor.tui.app import MonitorApp
from mlx_finetune.monitor.tui.hands import Hands
from mlx_finetune.rundir import LOCK, RunDir, list_runs, take_lock

FOLDER = Path(__file__).parent / "golden" / "monitor"
SIZES = ((80, 24), (120, 40), (40, 12))
PANES = ("overview", "curves", "answers", "machine", "events", "checkpoints", "runs", "help")
NOW = START + 645.0  # a few seconds after the last step of the working run
COMMAND = "cd /Users/me/mlxft && mlxft train recipes/demo.toml --resume"


@contextmanager
def in_utc() -> Generator[None]:
    """Times of day on the screen are those of UTC."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "UTC"
    time.tzset()
    try:
        yield
    finally:
        os.environ.pop("TZ")
        if before is not None:
            os.environ["TZ"] = before
        time.tzset()


def write_runs(folder: Path) -> RunDir:
    """A run at work, a finished one and one that only loads; the first is the one to be watched."""
    demo = write_run(folder / "demo", working_run(), checkpoints=[100, 200, 300])
    end = RunFinished(40, "finished", 2.5, 1.25, 40, 1.25, 80.0, 16_000, 11 * 10**9, "", 40)
    finished = [STARTED, *evaluated(0, 0), *(step(number) for number in range(1, 41)), end]
    write_run(folder / "haiku", at_pace(finished, start=START - 90_000))
    write_run(folder / "loading", at_pace([Phase("load", "tiny-llama", 1, 2, "files")], start=START - 600))
    return demo


@contextmanager
def at_work(*runs: RunDir) -> Generator[None]:
    """The runs are locked as by a training process."""
    locks = [take_lock(run.file(LOCK)) for run in runs]
    try:
        yield
    finally:
        for lock in locks:
            assert lock is not None
            os.close(lock)


def hands(folder: Path, acts: list[str] | None = None) -> Hands:
    """Hands that write down what they were asked for."""
    told = [] if acts is None else acts
    return Hands(
        list_runs=lambda: list_runs(folder),
        stop=lambda run: told.append(f"stop {run.path.name}"),
        save_now=lambda run: told.append(f"save {run.path.name}"),
        resume_command=lambda run: COMMAND,
    )


def monitor(run: RunDir, *, acts: list[str] | None = None, now: float = NOW) -> MonitorApp:
    return MonitorApp(run, hands(run.path.parent, acts), clock=lambda: now)


async def settled(pilot: Pilot[int]) -> list[str]:
    """What is on the screen when everything is read and drawn."""
    app = pilot.app
    assert isinstance(app, MonitorApp)
    while app.watched.is_loading:
        await pilot.pause()
    app.draw()
    await pilot.pause()
    return screen(app)


def screen(app: MonitorApp) -> list[str]:
    """The lines of the screen as text."""
    strips = app.screen._compositor.render_strips()
    return [strip.text.rstrip() for strip in strips]


async def draw_panes(run: RunDir, size: tuple[int, int]) -> dict[str, list[str]]:
    """Every pane of the monitor at one size."""
    found: dict[str, list[str]] = {}
    app = monitor(run)
    async with app.run_test(size=size) as pilot:
        for pane in PANES:
            await settled(pilot)
            app.action_show_pane(pane)
            found[pane] = await settled(pilot)
    return found


def draw_all() -> Iterator[tuple[str, Sequence[str]]]:
    """Name and lines of every golden screen."""
    with tempfile.TemporaryDirectory() as made, in_utc():
        run = write_runs(Path(made))
        with at_work(run):
            for width, height in SIZES:
                for pane, lines in asyncio.run(draw_panes(run, (width, height))).items():
                    yield f"{pane}-{width}x{height}.txt", lines


def main() -> int:
    """Write the files anew."""
    changes = ["git", "status", "--porcelain", "--", str(FOLDER)]
    if subprocess.run(changes, check=True, capture_output=True, text=True, cwd=FOLDER.parent).stdout.strip():
        print(f"{FOLDER} has changes that are not committed")
        return 1
    FOLDER.mkdir(exist_ok=True)
    for name, lines in draw_all():
        (FOLDER / name).write_text("\n".join(lines) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
