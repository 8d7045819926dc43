"""The real training process on a tiny model: killed, interrupted, refused, resumed; its bits, codes and words.

The same interruptions at every step, inside one process, are in test_resume.py. A process that loads mlx costs seconds,
so the default suite starts four of them; the rest is marked slow.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import course, train, write_recipe

from mlx_finetune import rundir
from mlx_finetune.events import CheckpointSaved, Event, Notice, RunFinished, RunStarted, RunStopped, StepDone, from_json
from mlx_finetune.journal import read_events
from mlx_finetune.recipe.load import load_recipe
from mlx_finetune.rundir import RunDir
from mlx_finetune.train.child import naming_notices

TinyModel = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]
CHILD = ("-m", "mlx_finetune.train.child")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
TIMEOUT = 120  # seconds; one of these takes 4 on a machine that is free


@pytest.fixture(scope="module")
def straight(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """The uninterrupted run, in this process."""
    return train(write_recipe(tmp_path_factory.mktemp("straight"), tiny_model("llama")))


@pytest.fixture
def recipe(tiny_model: TinyModel, tmp_path: Path) -> Path:
    return write_recipe(tmp_path, tiny_model("llama"))


def command(recipe: Path, *options: str, step: int = 0, signals: tuple[int, ...] = ()) -> list[str]:
    """The child, or the child that sends itself ``signals`` after ``step``."""
    start = CHILD if not signals else (str(ROOT / "tests/signalled_child.py"), str(step), ",".join(map(str, signals)))
    return [sys.executable, *start, "--recipe", str(recipe), *options]


def start(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=TIMEOUT)


def run_of(recipe: Path) -> RunDir:
    return RunDir(recipe.with_suffix(""))


def assert_same(run: RunDir, straight: RunDir) -> None:
    """The same course and the same bytes of weights and samples as the uninterrupted run."""
    assert course(run) == course(straight)
    for name in (rundir.MLX_WEIGHTS, rundir.PEFT_WEIGHTS, rundir.SAMPLES):
        assert run.file(name).read_bytes() == straight.file(name).read_bytes(), name


def contents(run: RunDir) -> dict[Path, bytes]:
    """Every file but the lock, which names the last process that asked."""
    files = (path for path in run.path.rglob("*") if path.is_file() and path.name != rundir.LOCK)
    return {path: path.read_bytes() for path in files}


def stops(run: RunDir) -> list[RunStopped]:
    return [record.event for record in read_events(run.file(rundir.EVENTS)) if isinstance(record.event, RunStopped)]


def test_a_killed_process_resumes_to_the_same_bytes_and_its_folder_is_then_refused(
    recipe: Path, straight: RunDir
) -> None:
    run, folder = run_of(recipe), recipe.parent
    killed = start(command(recipe, step=3, signals=(signal.SIGKILL,)), folder)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in run.checkpoints()] == ["checkpoint-2"]
    assert not run.file(rundir.PEFT_WEIGHTS).exists()
    resumed = start(command(recipe, "--resume"), folder)
    assert (resumed.returncode, resumed.stderr) == (0, ""), run.file(rundir.LOG).read_text()
    assert_same(run, straight)
    before = contents(run)
    refused = start(command(recipe), folder)
    assert refused.returncode == 1
    error, hint = refused.stderr.splitlines()
    assert error == f"error: {run.path} already holds a run (finished, step 6)"
    assert hint.startswith("hint: train it further with --extend 100, choose another output_dir")
    assert contents(run) == before


def test_a_notice_names_the_recipe_and_its_options_in_the_command_of_its_hint(recipe: Path) -> None:
    loaded = load_recipe(recipe, ["data.max_seq_length=32"])
    events: list[Event] = []
    emit = naming_notices(loaded, events.append)
    emit(Notice("warning", "a row", "see them with file and line: mlxft data check RECIPE"))
    typed = f"mlxft data check {recipe} --set data.max_seq_length=32"
    assert events == [Notice("warning", "a row", f"see them with file and line: {typed}")]


def test_an_interrupted_process_saves_leaves_with_130_and_the_command_finishes_it_in_json(
    recipe: Path, straight: RunDir
) -> None:
    run, folder = run_of(recipe), recipe.parent
    interrupted = start(command(recipe, step=3, signals=(signal.SIGINT,)), folder)
    assert interrupted.returncode == 128 + signal.SIGINT
    assert stops(run) == [RunStopped(3, signal.SIGINT)]
    assert [path.name for path in run.checkpoints()] == ["checkpoint-2", "checkpoint-3"]
    assert not run.file(rundir.PEFT_WEIGHTS).exists()
    arguments = [sys.executable, "-m", "mlx_finetune", "train", str(recipe), "--resume", "--json"]
    finished = start(arguments, folder)
    assert finished.returncode == 0, finished.stderr
    records = [from_json(line) for line in finished.stdout.splitlines()]
    assert None not in records
    events = [record.event for record in records if record is not None]
    started = next(event for event in events if isinstance(event, RunStarted))
    assert (started.first_step, started.total_steps) == (3, 6)
    assert [event.step for event in events if isinstance(event, StepDone)] == [4, 5, 6]
    assert isinstance(events[-1], RunFinished)
    assert_same(run, straight)


@pytest.mark.slow
def test_a_process_that_is_asked_for_a_checkpoint_saves_goes_on_and_ends_with_the_same_bytes(
    recipe: Path, straight: RunDir
) -> None:
    """Step 3 is the only one that is saved because of the signal; ``save_steps`` is 2."""
    run = run_of(recipe)
    asked = start(command(recipe, step=3, signals=(rundir.SAVE_SIGNAL,)), recipe.parent)
    assert (asked.returncode, asked.stderr) == (0, ""), run.file(rundir.LOG).read_text()
    saved = [one.event for one in read_events(run.file(rundir.EVENTS)) if isinstance(one.event, CheckpointSaved)]
    assert [event.step for event in saved] == [2, 3, 4, 6]
    assert_same(run, straight)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_save_and_leave_with_128_and_their_number(
    recipe: Path, straight: RunDir, number: signal.Signals
) -> None:
    run = run_of(recipe)
    assert start(command(recipe, step=4, signals=(number,)), recipe.parent).returncode == 128 + number
    assert stops(run) == [RunStopped(4, number)]
    assert start(command(recipe, "--resume"), recipe.parent).returncode == 0
    assert_same(run, straight)


@pytest.mark.slow
def test_a_second_signal_leaves_at_once_and_what_was_saved_is_safe(recipe: Path, straight: RunDir) -> None:
    run = run_of(recipe)
    twice = start(command(recipe, step=3, signals=(signal.SIGINT, signal.SIGINT)), recipe.parent)
    assert twice.returncode == 128 + signal.SIGINT
    assert stops(run) == []
    assert [path.name for path in run.checkpoints()] == ["checkpoint-2"]
    assert start(command(recipe, "--resume"), recipe.parent).returncode == 0
    assert_same(run, straight)


@pytest.mark.slow
def test_a_process_whose_parent_is_gone_saves_and_leaves(recipe: Path) -> None:
    """A shell between us and the child ends after some steps, and the child finds another parent."""
    run = run_of(recipe)
    child = shlex.join(command(recipe, "--set", "training.max_steps=2000", "--set", "eval.prompts=[]"))
    journal = shlex.quote(str(run.file(rundir.EVENTS)))
    script = f'{child} --parent-pid $$ & until grep -qs \'"kind": "{StepDone.kind}"\' {journal}; do sleep 0.05; done'
    assert start(["sh", "-c", script], recipe.parent).returncode == 0
    deadline = time.monotonic() + TIMEOUT
    while not stops(run) and time.monotonic() < deadline:
        time.sleep(0.05)
    (stopped,) = stops(run)
    assert stopped.signal_number == signal.SIGHUP
    assert 1 <= stopped.step < 2000
    assert run.checkpoint(stopped.step).is_dir()
