"""A training that came to nothing leaves no folder; whatever else lies in one stays where it is."""

import os
import shutil
import sys
import textwrap
from pathlib import Path

import pytest

from mlx_finetune import rundir
from mlx_finetune.app.running.launch import TrainRequest
from mlx_finetune.app.running.supervise import Supervised, supervise
from mlx_finetune.events import Record
from mlx_finetune.journal import EventFollower
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.rundir import RunDir

RECIPE = Recipe.model_validate({"model": "m", "output_dir": "run", "data": {"path": "x"}})
#: A child that takes the folder, does what ``more`` says, and fails as told.
CHILD = """
import os, sys, time
from pathlib import Path
from mlx_finetune import durable, rundir
from mlx_finetune.events import RunFailed, RunStopped
from mlx_finetune.journal import EventWriter

run = rundir.RunDir(Path(sys.argv[1]))
run.path.mkdir(parents=True, exist_ok=True)
lock = rundir.take_lock(run.file(rundir.LOCK))
assert lock is not None
emit = EventWriter(run.file(rundir.EVENTS), clock=time.time)
os.dup2(durable.open_append(run.file(rundir.LOG)), 2)
{more}
emit({event})
emit.close()
sys.exit({code})
"""
REFUSED = 'RunFailed("the data is bad", "mend it", 1)'


class Quiet:
    """A view that shows nothing and remembers what it was told."""

    def __init__(self) -> None:
        self.events: list[object] = []

    def show(self, record: Record) -> None:
        self.events.append(record.event)

    def tick(self, now: float) -> None:
        del now

    def say(self, message: str) -> None:
        del message

    def close(self) -> None:
        """Nothing to restore."""


@pytest.fixture(name="run")
def run_fixture(tmp_path: Path) -> RunDir:
    (tmp_path / "demo.toml").write_text("model = 'm'\n")
    return RunDir(tmp_path / "adapters" / "night" / "run")


def train(
    run: RunDir, view: Quiet, *, event: str = REFUSED, more: str = "", code: int = 1, shown_by: int | None = None
) -> Supervised:
    script = CHILD.format(event=event, more=textwrap.dedent(more), code=code)
    request = TrainRequest(run.path.parents[2] / "demo.toml", shown_by=shown_by)
    return supervise(request, run, RECIPE, view, command=[sys.executable, "-c", script, str(run.path)])


def test_a_refused_training_is_said_and_leaves_no_folder_that_it_made(run: RunDir) -> None:
    view = Quiet()
    supervised = train(run, view)
    assert (supervised.exit_code, supervised.ending.message) == (1, "the data is bad")
    assert len(view.events) == 1
    assert [path.name for path in run.path.parents[2].iterdir()] == ["demo.toml"]


def test_a_training_that_is_stopped_before_it_decides_anything_leaves_none(run: RunDir) -> None:
    assert train(run, Quiet(), event="RunStopped(0, 2)", code=130).exit_code == 130
    assert not run.path.exists()


def test_folders_that_were_there_before_stay(run: RunDir) -> None:
    run.path.parent.mkdir(parents=True)
    train(run, Quiet())
    assert run.path.parent.is_dir()
    assert not run.path.exists()
    run.path.mkdir()
    (run.path / rundir.CORRECTIONS).write_text("{}\n")
    train(run, Quiet())
    assert run.file(rundir.CORRECTIONS).read_text() == "{}\n"
    assert run.file(rundir.EVENTS).is_file()


@pytest.mark.parametrize("name", [rundir.RUN_INFO, rundir.RECIPE, "checkpoint-1", "notes.txt", rundir.CORRECTIONS])
def test_a_folder_that_holds_more_than_a_start_writes_stays_whole(run: RunDir, name: str) -> None:
    train(run, Quiet(), more=f"run.file({name!r}).write_text('{{}}')")
    left = {path.name for path in run.path.iterdir()}
    assert left == {name, rundir.EVENTS, rundir.LOG, rundir.LOCK, rundir.SUPERVISOR}


def test_a_training_that_has_begun_keeps_its_journal(run: RunDir) -> None:
    begun = """
        from mlx_finetune.events import RunStarted
        emit(RunStarted("run", "m", "sft", 0, 40, 20, 80, 8, 1_000, 50_000, "CPU", "float32"))
    """
    train(run, Quiet(), more=begun)
    assert run.file(rundir.EVENTS).is_file()


def test_whoever_shows_a_start_in_the_background_has_the_journal_to_read_while_it_lives(run: RunDir) -> None:
    train(run, Quiet(), shown_by=os.getppid())
    assert run.file(rundir.EVENTS).is_file()
    shutil.rmtree(run.path)
    train(run, Quiet(), shown_by=os.getpid())  # as if our parent were not the one that started us any more
    assert not run.path.exists()


def test_a_journal_that_is_removed_while_it_is_followed_has_nothing_new(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.path.mkdir(parents=True)
    run.file(rundir.EVENTS).write_text("{}\n")
    follower = EventFollower(run.file(rundir.EVENTS))
    look = Path.stat

    def look_and_lose(path: Path) -> os.stat_result:
        found = look(path)
        path.unlink()
        return found

    monkeypatch.setattr(Path, "stat", look_and_lose)
    assert list(follower.poll()) == []


def test_a_bug_keeps_its_log(run: RunDir) -> None:
    bug = 'RunFailed("KeyError: 1", "this is a bug in mlxft; the traceback is in log.txt", 1)'
    train(run, Quiet(), event=bug, more="os.write(2, b'Traceback\\n')")
    assert run.file(rundir.LOG).read_bytes() == b"Traceback\n"


def test_another_process_that_has_taken_the_folder_meanwhile_keeps_it(run: RunDir) -> None:
    held = """
        import subprocess
        os.set_inheritable(lock, True)
        subprocess.Popen(["sleep", "2"], close_fds=False, stdin=-3, stdout=-3, stderr=-3)
    """
    train(run, Quiet(), more=held)
    assert run.file(rundir.EVENTS).is_file()
