"""The shorter launchers: what each runs, and that each ends with what to double-click next."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from desks import FakeDesk, at_work, write_recipe, write_run

from mlx_finetune.app.desktop import verbs
from mlx_finetune.app.desktop.launcher import NAMES, Target
from mlx_finetune.app.desktop.overnight import night as nights
from mlx_finetune.app.desktop.overnight.night import Item, Night, write_night
from mlx_finetune.errors import RunError
from mlx_finetune.rundir import take_lock


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDesk:
    monkeypatch.chdir(tmp_path)
    return FakeDesk(tmp_path)


def test_setup_looks_asks_fetches_and_says_train(fake: FakeDesk, tmp_path: Path) -> None:
    fake.answers = [""]
    desktop = tmp_path / "Desktop"
    assert verbs.set_up(fake.desk(), Target(tmp_path, tmp_path / "app"), desktop) == 0
    assert fake.called == [["doctor"], ["models", "get", "smollm2-135m"]]
    assert fake.asked == [f"\nPut the launchers (Train, Monitor, Chat ...) into {desktop}? [Y/n] "]
    assert len(list(desktop.iterdir())) == len(NAMES)
    assert fake.said[-1] == '\nNext: double-click "Train" to train a first model in a few minutes.'


def test_setup_stops_at_a_blocker_and_writes_no_launcher_unasked(fake: FakeDesk, tmp_path: Path) -> None:
    target, desktop = Target(tmp_path, tmp_path / "app"), tmp_path / "Desktop"
    fake.commands = {"doctor": 3}
    assert verbs.set_up(fake.desk(), target, desktop) == 3
    assert fake.called == [["doctor"]]
    fake.commands, fake.answers = {"models": 1}, ["n"]
    assert verbs.set_up(fake.desk(), target, desktop) == 1
    assert "will be fetched when it is needed" in fake.text
    fake.can_ask = False
    verbs.set_up(fake.desk(), target, desktop)
    assert not desktop.exists()


def test_setup_names_what_it_did_not_write_over(fake: FakeDesk, tmp_path: Path) -> None:
    (tmp_path / "Train.command").write_text("mine")
    fake.answers = ["y"]
    verbs.set_up(fake.desk(), Target(tmp_path, tmp_path / "app"), tmp_path)
    assert "Not written over, as these are not ours: Train.command" in fake.said


def test_monitor_finds_what_is_at_work(fake: FakeDesk, tmp_path: Path) -> None:
    write_run(tmp_path, "old", "finished", time=9.0)
    run = write_run(tmp_path, "new", "running")
    fake.answers = ["1"]
    with at_work(run):
        assert verbs.monitor(fake.desk(), []) == 0
    assert fake.called == [["monitor", "adapters/new", "--until-end"]]


def test_monitor_asks_which_of_several(fake: FakeDesk, tmp_path: Path) -> None:
    runs = [write_run(tmp_path, name, "running", time=time) for name, time in (("a", 1.0), ("b", 2.0))]
    fake.answers = ["2", "1"]
    with at_work(runs[0]), at_work(runs[1]):
        verbs.monitor(fake.desk(), [])
    assert fake.called == [["monitor", "adapters/a", "--until-end"]]
    assert fake.said[1] == "  1  b (at work)"


def test_monitor_shows_the_summary_of_the_night_then_the_last_run(fake: FakeDesk, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nothing has been trained"):
        verbs.monitor(fake.desk(), [])
    write_run(tmp_path, "a", "finished")
    folder = nights.new_folder(tmp_path / "logs", 1.0)
    write_night(folder, Night((Item("recipes/a.toml", "adapters/a", state="done", code=0),), 1.0, 2.0))
    assert verbs.monitor(fake.desk(), []) == 0
    assert "1 of 1 finished" in fake.text
    assert fake.called == []
    verbs.monitor(fake.desk(), [])
    assert fake.called == [["monitor", "adapters/a", "--until-end"]]


@pytest.mark.parametrize(("verb", "command"), [(verbs.chat, "chat"), (verbs.evaluate, "eval")])
def test_chat_and_evaluate_take_the_only_run_and_give_its_code(
    verb, command: str, fake: FakeDesk, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="nothing has been trained"):
        verb(fake.desk(), [])
    write_run(tmp_path, "a", "finished")
    fake.commands = {command: 134}
    assert verb(fake.desk(), []) == 134
    assert fake.called == [[command, "adapters/a"]]
    assert fake.asked == []
    assert fake.said[-1].startswith("\nNext: double-click ")


def test_stop_with_nothing_at_work_is_no_failure(fake: FakeDesk, tmp_path: Path) -> None:
    write_run(tmp_path, "a", "finished")
    assert verbs.stop(fake.desk(), []) == 0
    assert fake.called == []
    assert "there is nothing to stop" in fake.text


def test_stop_stops_the_one_that_is_at_work_or_the_chosen_one(fake: FakeDesk, tmp_path: Path) -> None:
    runs = [write_run(tmp_path, name, "running", time=time) for name, time in (("a", 1.0), ("b", 2.0))]
    with at_work(runs[0]):
        verbs.stop(fake.desk(), [])
        fake.answers = ["1"]
        with at_work(runs[1]):
            verbs.stop(fake.desk(), [])
            verbs.stop(fake.desk(), ["a"])
    assert [call[1] for call in fake.called] == ["adapters/a", "adapters/b", "adapters/a"]


def running_night(tmp_path: Path) -> int:
    folder = nights.new_folder(tmp_path / "logs", 1.0)
    item = Item("recipes/a.toml", "adapters/a")
    write_night(folder, Night((replace(item, state="running", began=1.0), item), 1.0))
    lock = take_lock(folder / nights.LOCK)
    assert lock is not None
    return lock


def test_stop_of_a_night_asks_its_process_and_waits(
    fake: FakeDesk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = running_night(tmp_path)
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    fake.answers = ["1"]
    fake.on_sleep = lambda: os.close(lock)
    verbs.stop(fake.desk(), [])
    assert sent == [(os.getpid(), signal.SIGTERM)]
    assert "Overnight" in fake.text


def test_ctrl_c_while_a_night_stops_ends_the_waiting_alone(
    fake: FakeDesk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press() -> None:
        raise KeyboardInterrupt

    lock = running_night(tmp_path)
    monkeypatch.setattr(os, "kill", lambda pid, number: None)
    fake.answers, fake.on_sleep = ["1"], press
    assert verbs.stop(fake.desk(), []) == 130
    assert fake.said[-1] == "\nwaits no longer; the night was asked to stop and will"
    os.close(lock)


def test_stop_may_end_one_training_of_a_night_alone(fake: FakeDesk, tmp_path: Path) -> None:
    lock = running_night(tmp_path)
    write_recipe(tmp_path, "a")
    fake.answers = ["2"]
    assert verbs.stop(fake.desk(), []) == 0
    assert fake.called == [["stop", "adapters/a"]]
    os.close(lock)
