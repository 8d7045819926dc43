"""Runs for trackers to follow, and the real process that follows them, with a stand-in for the library."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mlx_finetune.app.trackers.watching import FOLLOWER
from mlx_finetune.events import Event
from mlx_finetune.journal import EventWriter
from mlx_finetune.rundir import EVENTS, RUN_INFO, TRACKERS, RunDir

ROOT = Path(__file__).resolve().parents[1]
STAND_IN = Path(__file__).resolve().parent / "tracker_stand_in"
TIMEOUT = 60
RESOLVED = {"model": "tiny", "output_dir": "adapters/demo", "data": {"path": "rows.jsonl"}}


def write_run(folder: Path, events: Sequence[Event], *, created: str = "2026-11-26") -> RunDir:
    """A run folder with a journal and a run.json."""
    run = RunDir(folder)
    folder.mkdir(parents=True, exist_ok=True)
    info = {"created": created, "resolved": RESOLVED, "model_sha256": "abc", "total_steps": 40}
    run.file(RUN_INFO).write_text(json.dumps(info))
    add_events(run, events)
    return run


def add_events(run: RunDir, events: Sequence[Event]) -> None:
    """More of the same."""
    writer = EventWriter(run.file(EVENTS), clock=time.time)
    for event in events:
        writer(event)
    writer.close()


def environment(mode: str = "", paths: Sequence[Path] = (STAND_IN,)) -> dict[str, str]:
    """Of a process that finds the stand-in and is told how to behave."""
    path = os.pathsep.join(map(str, (*paths, ROOT)))
    return os.environ | {"PYTHONPATH": path, "STAND_IN": mode, "WANDB_MODE": "offline"}


def follow(
    run: RunDir,
    tracker: str = "tensorboard",
    *,
    mode: str = "",
    options: Sequence[str] = (),
    paths: Sequence[Path] = (STAND_IN,),
) -> list[str]:
    """Start the process with a whole journal and an ended stdin, and wait: the lines that it said, its code last."""
    since = ["--since", "0"]
    done = subprocess.run(
        [sys.executable, "-m", FOLLOWER, "--tracker", tracker, "--run", str(run.path), *since, *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environment(mode, paths),
        text=True,
        timeout=TIMEOUT,
    )
    return [*(line for line in done.stdout.splitlines() if line), str(done.returncode)]


def told(run: RunDir) -> list[list[object]]:
    """What the stand-in was told."""
    path = run.file(TRACKERS) / "tensorboard" / "told.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def steps_told(run: RunDir, name: str = "train/loss") -> list[object]:
    """The steps of one series, in the order in which they came."""
    return [step for name_, *rest in told(run) if name_ == name for step in rest[1:]]


def wait_until(is_so: Callable[[], bool]) -> None:
    """Raise ``AssertionError`` where it does not come to be."""
    until = time.monotonic() + TIMEOUT
    while not is_so():
        assert time.monotonic() < until, "it did not come to be"
        time.sleep(0.02)
