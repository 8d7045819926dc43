"""Asking a run at work from outside: it hears, goes on or stops, and what is not at work is one sentence."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import Machine, steps, wait_until

from mlx_finetune.app.running.control import save_now, stop
from mlx_finetune.errors import RunError
from mlx_finetune.rundir import LOCK, SUPERVISOR, RunDir, lock_holder, running_process, take_lock


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    machine.close()


def train(machine: Machine) -> RunDir:
    run = machine.recipe("wait")
    machine.start("train", "demo.toml")
    wait_until(lambda: steps(run) > 3)
    wait_until(lambda: lock_holder(run.file(SUPERVISOR)))
    return run


def test_a_checkpoint_is_written_and_the_training_goes_on_under_the_same_process(machine: Machine) -> None:
    run = train(machine)
    known = {path.name for path in run.checkpoints()}
    child = lock_holder(run.file(LOCK))
    assert save_now(run) == child
    wait_until(lambda: {path.name for path in run.checkpoints()} - known)
    before = steps(run)
    wait_until(lambda: steps(run) > before + 2)
    assert lock_holder(run.file(LOCK)) == child
    assert "restarted" not in run.file("events.jsonl").read_text()


def test_a_stop_is_asked_of_the_supervisor_and_returns_at_once(machine: Machine) -> None:
    run = train(machine)
    supervisor = lock_holder(run.file(SUPERVISOR))
    assert stop(run) == supervisor
    wait_until(lambda: running_process(run) is None)
    assert '"run_stopped"' in run.file("events.jsonl").read_text()


@pytest.mark.parametrize("ask", [stop, save_now])
def test_what_is_not_at_work_cannot_be_asked(tmp_path: Path, ask: Callable[[RunDir], int]) -> None:
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    with pytest.raises(RunError, match="no training is at work in"):
        ask(run)


def test_between_two_training_processes_a_checkpoint_cannot_be_asked_for(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    supervisor = take_lock(run.file(SUPERVISOR))
    assert supervisor is not None
    try:
        with pytest.raises(RunError, match="only just starting"):
            save_now(run)
    finally:
        os.close(supervisor)
