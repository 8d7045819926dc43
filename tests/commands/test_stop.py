"""``mlxft stop``: finds the process, lets it save, says where it stopped and how to go on."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from journal import FINISHED, STARTED, records
from processes import Machine, steps, wait_until
from web_pages import add_records, write_run

from mlx_finetune.commands.stop import command
from mlx_finetune.errors import RunError
from mlx_finetune.rundir import LOCK, RUN_INFO, SUPERVISOR, RunDir, lock_holder, running_process


@pytest.mark.parametrize(
    ("task", "following"),
    [("classify", "generate demo --prompt TEXT"), ("reward", "eval demo"), ("sft", "chat demo"), (None, "chat demo")],
)
def test_a_run_that_had_finished_is_tried_as_its_task_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str | None, following: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run = write_run(Path("adapters"), "demo", records(STARTED))
    if task is not None:
        run.file(RUN_INFO).write_text(json.dumps({"resolved": {"task": task}}))

    def finish(run: RunDir, **more: object) -> None:
        add_records(run, records(STARTED, FINISHED)[1:])

    monkeypatch.setattr("mlx_finetune.app.running.control.stop_and_wait", finish)
    result = CliRunner().invoke(command, ["demo"], standalone_mode=False)
    assert result.stderr.splitlines()[-1] == f"next: mlxft {following}"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    machine.close()


def train(machine: Machine, mode: str, name: str = "demo", *options: str) -> RunDir:
    """A training in the background that has taken a few steps, or has become deaf."""
    run = machine.recipe(mode, name)
    machine.start("train", f"{name}.toml", *options)
    wait_until(lambda: steps(run) > 3 or (mode == "deaf" and '"run_started"' in journal(run)))
    wait_until(lambda: lock_holder(run.file(SUPERVISOR)))
    return run


def journal(run: RunDir) -> str:
    return run.file("events.jsonl").read_text() if run.file("events.jsonl").is_file() else ""


def test_a_run_stops_after_its_step_and_the_way_on_is_told(machine: Machine) -> None:
    run = train(machine, "wait", "demo", "--set", "seed=5")
    supervisor = lock_holder(run.file(SUPERVISOR))
    code, said = machine.call("stop", "demo")
    (stopped,) = [line for line in journal(run).splitlines() if '"run_stopped"' in line]
    number = stopped.split('"step": ')[1].split(",")[0]
    assert code == 0
    assert said == [
        f"asked process {supervisor} to stop demo; it finishes its step and saves ...",
        f"stopped after step {number}; everything up to there is saved",
        "to go on: mlxft train demo.toml --set seed=5 --resume",
    ]
    assert running_process(run) is None
    assert run.checkpoint(int(number)).is_dir()


def test_now_ends_even_a_process_that_hears_nothing_and_it_is_not_started_again(machine: Machine) -> None:
    run = train(machine, "deaf")
    code, said = machine.call("stop", "--now")
    assert code == 0
    assert said[-1] == "stopped; no checkpoint was saved"
    assert running_process(run) is None
    assert journal(run).count('"run_started"') == 1


@pytest.mark.slow
def test_a_supervisor_that_ctrl_z_has_stopped_is_woken(machine: Machine) -> None:
    run = train(machine, "wait")
    supervisor = lock_holder(run.file(SUPERVISOR))
    assert supervisor
    os.kill(supervisor, signal.SIGSTOP)
    assert machine.call("stop", "demo")[0] == 0
    assert running_process(run) is None


@pytest.mark.slow
def test_a_training_without_a_supervisor_is_asked_itself(machine: Machine) -> None:
    """As after a ``kill -9`` of ``mlxft train``, in the moment before the child sees that it is alone."""
    run = train(machine, "deaf")
    supervisor, child = lock_holder(run.file(SUPERVISOR)), lock_holder(run.file(LOCK))
    assert supervisor
    os.kill(supervisor, signal.SIGKILL)
    wait_until(lambda: running_process(run) == child)
    code, said = machine.call("stop", "demo", "--now")
    assert (code, said[0]) == (0, f"asked process {child} to stop demo; it leaves at once ...")
    assert running_process(run) is None


@pytest.mark.slow
def test_without_a_name_the_one_that_is_at_work_is_meant_and_several_are_listed(machine: Machine) -> None:
    first, second = train(machine, "wait", "one"), train(machine, "wait", "two")
    code, said = machine.call("stop")
    assert (code, said[0]) == (1, "error: 2 runs are at work: one, two")
    assert machine.call("stop", "two")[0] == 0
    assert machine.call("stop")[0] == 0
    assert running_process(first) is running_process(second) is None


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["demo"], "no training is at work in adapters/demo", "see how it ended with: mlxft runs show demo"),
        ([], "no run in adapters/ is at work", "see all runs with: mlxft runs"),
    ],
)
def test_a_run_that_is_not_at_work_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str, hint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("adapters/demo").mkdir(parents=True)
    Path("adapters/demo/events.jsonl").touch()
    error = CliRunner().invoke(command, arguments).exception
    assert isinstance(error, RunError)
    assert (error.message, error.hint) == (message, hint)
