"""The parent's side: one warning for whatever a tracker does, and no waiting."""

import ast
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from following import STAND_IN, add_events, environment, steps_told, wait_until, write_run
from journal import FINISHED, STARTED, step

from mlx_finetune.app.trackers import watching
from mlx_finetune.app.trackers.watching import TrackedView, Trackers, look_lines, tracked
from mlx_finetune.events import Record, from_json, to_json
from mlx_finetune.rundir import LOG, TRACKERS, RunDir


class Talk:
    """A view that keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.shown: list[Record] = []
        self.num_ticks = 0
        self.is_closed = False

    def show(self, record: Record) -> None:
        self.shown.append(record)

    def tick(self, now: float) -> None:
        self.num_ticks += 1

    def say(self, message: str) -> None:
        self.said.append(message)

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture(name="behave")
def behave_fixture(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """The processes that are started from now on find the stand-in, which behaves as it is told."""

    def behave(mode: str) -> None:
        for name, value in environment(mode).items():
            monkeypatch.setenv(name, value)

    return behave


def _watch_until(trackers: Trackers, is_so: Callable[[], bool]) -> None:
    def looked() -> bool:
        trackers.look()
        return is_so()

    wait_until(looked)


def test_a_whole_run_is_told_without_a_word(tmp_path: Path, behave: Callable[[str], None]):
    behave("")
    run = write_run(tmp_path / "demo", [])
    view = Talk()
    with tracked(["tensorboard"], run, view, is_fork=False) as watched:
        add_events(run, [STARTED, step(1)])
        _tick_until(watched, lambda: steps_told(run) == [1])
        add_events(run, [step(2), FINISHED])
    assert steps_told(run) == [1, 2]
    assert view.said == []


def _tick_until(view: object, is_so: Callable[[], bool]) -> None:
    assert isinstance(view, TrackedView)

    def ticked() -> bool:
        view.tick(0.0)
        return is_so()

    wait_until(ticked)


@pytest.mark.some(1)
@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("raises at step 3", "tensorboard failed, and the training goes on without it: OSError: the network is gone"),
        ("is killed at step 3", "tensorboard ended (signal 9), and the training goes on without it"),
        ("exits", "tensorboard failed, and the training goes on without it: SystemExit: api_key not configured"),
    ],
)
def test_a_tracker_that_fails_is_one_warning_here_and_in_the_log(
    tmp_path: Path, behave: Callable[[str], None], mode: str, said: str
):
    behave(mode)
    run = write_run(tmp_path / "demo", [])
    view = Talk()
    with tracked(["tensorboard"], run, view, is_fork=False) as watched:
        add_events(run, [STARTED, *(step(number) for number in range(1, 6))])
        _tick_until(watched, lambda: bool(view.said))
        for _ in range(3):
            watched.tick(0.0)
    assert view.said == [f"warning: {said}"]
    (line,) = run.file(LOG).read_text().splitlines()
    stamp, _, text = line.partition(" warning: ")
    assert text == said
    assert time.strptime(stamp, "%Y-%m-%d %H:%M:%S%z")


def test_a_tracker_that_hangs_is_one_warning_and_is_left_behind(
    tmp_path: Path, behave: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
):
    behave("hangs")
    monkeypatch.setattr(watching, "HANG_SECONDS", 1.0)
    monkeypatch.setattr(watching, "END_SECONDS", 0.2)
    run = write_run(tmp_path / "demo", [])
    talk = Talk()
    trackers = Trackers(run, talk.say)
    trackers.start(["tensorboard"], is_fork=False)
    process = trackers.processes[0].process
    try:
        add_events(run, [STARTED, step(1)])
        _watch_until(trackers, lambda: bool(talk.said))
        started = time.monotonic()
        trackers.look()
        trackers.end()
        assert time.monotonic() - started < 5
        assert talk.said == [
            "warning: tensorboard does not answer, and the training goes on; it is told the rest if it comes back"
        ]
    finally:
        process.returncode = None
        process.kill()
        process.wait()


def test_a_training_that_begins_in_the_same_millisecond_is_that_of_the_tracker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(watching.time, "time", lambda: 1000.00049)  # rounded down in a journal
    trackers = Trackers(RunDir(tmp_path / "demo"), Talk().say)
    trackers.start(["wandb"], is_fork=False, command=[sys.executable, "-c", "import sys; print(sys.argv)"])
    process = trackers.processes[0].process
    assert process.wait(60) == 0
    assert process.stdout is not None
    since = ast.literal_eval(process.stdout.read().decode())
    trackers.end()
    record = from_json(to_json(STARTED, 1000.00049))
    assert record is not None
    assert float(since[since.index("--since") + 1]) <= record.time


def test_one_that_still_sends_at_the_end_is_said(
    tmp_path: Path, behave: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
):
    behave("hangs")
    monkeypatch.setattr(watching, "END_SECONDS", 0.2)
    run = write_run(tmp_path / "demo", [])
    talk = Talk()
    trackers = Trackers(run, talk.say)
    trackers.start(["tensorboard"], is_fork=False)
    add_events(run, [STARTED])  # what began before the tracker is not this training
    process = trackers.processes[0].process
    try:
        trackers.end()
        assert talk.said == ["note: tensorboard is still sending; it goes on by itself for at most ten minutes"]
    finally:
        process.returncode = None
        process.kill()
        process.wait()


def test_a_process_that_cannot_be_started_is_a_warning(tmp_path: Path):
    talk = Talk()
    trackers = Trackers(RunDir(tmp_path / "none"), talk.say)
    trackers.start(["wandb"], is_fork=False, command=[str(tmp_path / "no-python")])
    trackers.look()
    trackers.end()
    assert talk.said == [
        "warning: wandb cannot be started, and the training goes on without it: No such file or directory"
    ]
    assert not (tmp_path / "none").exists()


def test_without_trackers_the_view_stays_as_it_is(tmp_path: Path):
    view = Talk()
    with tracked([], RunDir(tmp_path), view, is_fork=False) as watched:
        assert watched is view


def test_a_tracked_view_hands_everything_on(tmp_path: Path):
    view = Talk()
    watched = TrackedView(view, Trackers(RunDir(tmp_path), view.say))
    record = Record(0.0, 0, STARTED)
    watched.show(record)
    watched.tick(0.0)
    watched.say("hello")
    watched.close()
    assert (view.shown, view.num_ticks, view.said, view.is_closed) == ([record], 1, ["hello"], True)


def test_where_to_look_afterwards_for_those_that_were_told(tmp_path: Path):
    run = RunDir(tmp_path / "my run")
    folder = run.file(TRACKERS)
    folder.mkdir(parents=True)
    names = ["wandb", "trackio", "tensorboard"]
    assert look_lines(names, run) == []
    (folder / "trackio.json").touch()
    (folder / "tensorboard.json").touch()
    assert look_lines(names, run) == [
        "trackio: trackio show",
        f"tensorboard: tensorboard --logdir '{folder}/tensorboard'",
    ]


def test_the_stand_in_is_where_the_tests_look_for_it():
    assert (STAND_IN / "tensorboardX" / "__init__.py").is_file()
