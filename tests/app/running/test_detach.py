"""``mlxft train --detach``: the terminal sees the start, then the training goes on without it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import Machine, steps, wait_until

from mlx_finetune.rundir import LOCK, LOG, SUPERVISOR, lock_holder, running_process


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    machine.close()


def test_the_run_goes_on_in_a_session_of_its_own_after_the_command_has_left(machine: Machine) -> None:
    run = machine.recipe("wait")
    code, said = machine.call("train", "demo.toml", "--detach")
    supervisor = lock_holder(run.file(SUPERVISOR))
    assert supervisor
    assert code == 0
    assert said[-3:] == [
        f"the training goes on in the background (process {supervisor}); what it says goes to adapters/demo/log.txt",
        "watch it: mlxft monitor demo",
        "stop it:  mlxft stop demo",
    ]
    assert said[0] == "load: tiny"
    assert os.getsid(supervisor) == supervisor != os.getsid(0)
    before = steps(run)
    wait_until(lambda: steps(run) > before + 2)
    os.kill(supervisor, signal.SIGTERM)
    wait_until(lambda: "to go on: mlxft train demo.toml --resume" in run.file(LOG).read_text())
    assert "SIGTERM: stopping once the work at hand is saved" in run.file(LOG).read_text()
    assert running_process(run) is None


@pytest.mark.slow
def test_a_crash_in_the_background_is_mended_there_and_told_in_the_log(machine: Machine) -> None:
    run = machine.recipe("crash")
    assert machine.call("train", "demo.toml", "--detach")[0] == 0
    wait_until(lambda: steps(run) > 5)
    assert "a library aborted the training process (SIGABRT); it goes on from step 2" in run.file(LOG).read_text()


@pytest.mark.slow
def test_a_training_whose_supervisor_is_killed_saves_and_leaves(machine: Machine) -> None:
    run = machine.recipe("wait")
    machine.call("train", "demo.toml", "--detach")
    supervisor = lock_holder(run.file(SUPERVISOR))
    assert supervisor
    os.kill(supervisor, signal.SIGKILL)
    wait_until(lambda: running_process(run) is None)
    assert '"run_stopped"' in run.file("events.jsonl").read_text().splitlines()[-1]


@pytest.mark.parametrize(
    ("mode", "lines"),
    [
        pytest.param("refuse", ["error: no such model", "hint: mlxft models list"], marks=pytest.mark.slow),
        ("fail", ["load: tiny", "error: the data has no rows", "hint: look at them"]),
    ],
)
def test_a_start_that_fails_is_told_where_it_was_asked_for(machine: Machine, mode: str, lines: list[str]) -> None:
    run = machine.recipe(mode)
    assert machine.call("train", "demo.toml", "--detach") == (1, lines)
    assert not run.path.exists()


def test_ctrl_c_before_the_start_stops_the_run_and_gives_its_code(machine: Machine) -> None:
    run = machine.recipe("late")
    command = machine.start("train", "demo.toml", "--detach")
    wait_until(lambda: lock_holder(run.file(LOCK)))
    command.send_signal(signal.SIGINT)
    _, said = command.communicate()
    assert command.returncode == 130
    assert said.splitlines() == [
        "load: tiny",
        "stopping before the next step; press Ctrl-C again to leave at once",
        "",
        "stopped before step 1",
    ]
    assert running_process(run) is None


@pytest.mark.slow
def test_a_terminal_that_closes_before_the_start_leaves_the_run_alone(machine: Machine) -> None:
    run = machine.recipe("late")
    command = machine.start("train", "demo.toml", "--detach")
    wait_until(lambda: lock_holder(run.file(SUPERVISOR)))
    command.send_signal(signal.SIGHUP)
    command.communicate()
    run.file("go").touch()
    wait_until(lambda: steps(run) > 2)
