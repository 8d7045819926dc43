"""A night: one failing does not stop the next, what became of each is kept and told, and a stop is heard."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from desks import FakeDesk, at_work, write_recipe, write_run

from mlx_finetune.app.desktop.desk import Cancelled, Ran
from mlx_finetune.app.desktop.overnight import dialogue as overnight
from mlx_finetune.app.desktop.overnight import night as nights
from mlx_finetune.app.desktop.overnight import power
from mlx_finetune.app.desktop.overnight.night import Item, Night, read_night, summary_lines, write_night
from mlx_finetune.app.desktop.overnight.queue import Worker, work
from mlx_finetune.errors import RunError
from mlx_finetune.events import Event, RunFailed, RunFinished, RunStopped, to_json
from mlx_finetune.rundir import EVENTS, take_lock

BEGAN = time.mktime((2026, 11, 26, 23, 10, 0, 0, 0, -1))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return nights.new_folder(tmp_path / "logs", BEGAN)


def finished(step: int = 26) -> RunFinished:
    return RunFinished(step, "done", 3.21, 2.1, step, 2.1, 60.0, 1000, 1)


def item(name: str) -> Item:
    return Item(f"recipes/{name}.toml", f"adapters/{name}", ("seed=1",))


class FakeTrainer:
    """Trainings that end at once: with an exit code, an event in the journal and a line in the log each."""

    def __init__(self, folder: Path, ends: Mapping[str, tuple[int, Event | None, str]]) -> None:
        self.folder = folder
        self.ends = ends
        self.calls: list[list[str]] = []
        self.stopped_by: str | None = None
        self.notes: list[tuple[str, str]] = []
        self.awake = 0
        self.clock = BEGAN

    def worker(self) -> Worker:
        return Worker(
            self._train, lambda: self._is_stopped, lambda *note: self.notes.append(note), self._wake, self._now
        )

    @property
    def _is_stopped(self) -> bool:
        return any(self.stopped_by is not None and self.stopped_by in call[1] for call in self.calls)

    def _train(self, arguments: Sequence[str]) -> int:
        self.calls.append(list(arguments))
        name = Path(arguments[1]).stem
        code, event, line = self.ends[name]
        self.clock += 3600
        run = Path("adapters") / name
        run.mkdir(parents=True, exist_ok=True)
        if event is not None:
            with (run / EVENTS).open("a") as journal:
                journal.write(to_json(event, self.clock) + "\n")
        with (self.folder / nights.LOG).open("a") as log:
            log.write(f"{line}\n")
        return code

    def _wake(self) -> None:
        self.awake += 1

    def _now(self) -> float:
        return self.clock


def test_one_that_fails_does_not_stop_the_next_and_all_is_told(folder: Path) -> None:
    old = Path("adapters/good")
    old.mkdir(parents=True)
    (old / EVENTS).write_text(to_json(RunStopped(3, 15), BEGAN - 60) + "\n")
    write_night(folder, Night((item("bad"), item("refused"), item("gone"), item("good")), BEGAN))
    ends = {
        "bad": (1, RunFailed("the loss is not finite", "", 1), ""),
        "refused": (2, None, "load: x\nerror: recipes/refused.toml:3: no key `lr`\nhint: did you mean"),
        "gone": (137, None, "nothing to say"),
        "good": (0, finished(), ""),
    }
    trainer = FakeTrainer(folder, ends)
    assert work(folder, trainer.worker()) == 1
    assert trainer.calls[0] == ["train", "recipes/bad.toml", "--set", "seed=1"]
    assert (folder / nights.SUMMARY).read_text().splitlines() == [
        "Overnight, 26.11. 23:10 to 27.11. 03:10, 4h 00m: 1 of 4 finished",
        "  1  bad: failed: the loss is not finite",
        "  2  refused: failed (code 2): recipes/refused.toml:3: no key `lr`",
        "  3  gone: failed (code 137)",
        "  4  good: finished at step 26 in 1h 00m; validation loss 3.210 -> 2.100",
    ]
    assert trainer.notes == [("mlxft: the night is over", "1 of 4 trainings finished")]
    assert trainer.awake == 1
    assert nights.holder(folder) is None


def test_a_night_that_is_stopped_saves_the_one_at_work_and_starts_no_other(folder: Path) -> None:
    write_night(folder, Night((item("a"), item("b"), item("c")), BEGAN))
    trainer = FakeTrainer(folder, {"a": (0, finished(), ""), "b": (143, RunStopped(7, 15), "")})
    trainer.stopped_by = "recipes/b.toml"
    assert work(folder, trainer.worker()) == 0
    night = read_night(folder)
    assert night is not None
    assert [(one.state, one.code) for one in night.items] == [("done", 0), ("left", 143), ("left", None)]
    assert [one.run for one in night.remaining] == ["adapters/b", "adapters/c"]
    assert summary_lines(night)[2:] == [
        '  2  b: stopped after step 7; "Train" goes on with it',
        "  3  c: was not started, as the night was stopped",
    ]


def test_only_one_process_works_through_a_night(folder: Path) -> None:
    write_night(folder, Night((item("a"),), BEGAN))
    assert take_lock(folder / nights.LOCK) is not None
    with pytest.raises(RunError, match="another process works through"):
        work(folder, FakeTrainer(folder, {}).worker())


def test_what_is_kept_is_read_back_the_same(folder: Path) -> None:
    night = Night((replace(item("a"), state="done", code=0, began=1.5, ended=2.5, error="ü"), item("it's")), BEGAN, 9.0)
    write_night(folder, night)
    assert read_night(folder) == night
    for damaged in ("", "{", "[]", '{"items": [{"x": 1}], "began": 1, "ended": null}'):
        (folder / nights.STATE).write_text(damaged)
        assert read_night(folder) is None


def test_a_night_that_broke_off_says_where(folder: Path) -> None:
    night = Night((replace(item("a"), state="running", began=BEGAN), item("b")), BEGAN)
    assert summary_lines(night)[1:] == ["  1  a: was at work when the night broke off", "  2  b: was not started"]


# The dialogue


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDesk:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        write_recipe(tmp_path, name)
    fake = FakeDesk(tmp_path)
    fake.programs = {"pmset": Ran(0, "Now drawing from 'AC Power'\n -InternalBattery-0 (id=1)\t100%; charged;\n", "")}

    def finish(arguments: Sequence[str], log: Path) -> None:
        trainer = FakeTrainer(log.parent, {"a": (0, finished(), ""), "b": (0, finished(), "")})
        work(log.parent, trainer.worker())

    fake.on_start = finish
    return fake


def test_a_night_is_chosen_checked_started_and_told(fake: FakeDesk, tmp_path: Path) -> None:
    fake.answers = ["y", "n"]
    assert overnight.overnight(fake.desk(), ["b", "recipes/a.toml"]) == 0
    ((arguments, log),) = fake.started
    assert arguments == ["launch", "overnight", "--queue", str(log.parent)]
    assert log.parent.parent == tmp_path / "logs"
    night = read_night(log.parent)
    assert night is not None
    assert [one.run for one in night.items] == ["adapters/b", "adapters/a"]
    assert "Leave the lid open" in fake.text
    assert "2 of 2 finished" in fake.text
    assert any("\a" in line for line in fake.said)
    assert fake.ran == [["pmset", "-g", "batt"]] * 2


def test_the_display_sleeps_only_when_that_is_wanted(fake: FakeDesk) -> None:
    fake.answers = ["y", "y"]
    overnight.overnight(fake.desk(), ["a"])
    assert fake.ran[-1] == ["pmset", "displaysleepnow"]


def test_several_are_chosen_from_a_dialog(fake: FakeDesk) -> None:
    fake.has_dialogs = True

    def pick(command: Sequence[str]) -> Ran:
        labels = [one for one in command[6:] if one.endswith(("  b - learns", "  a - learns"))]
        return Ran(0, "".join(f"{label}\n" for label in labels), "")

    fake.programs["osascript"] = pick
    fake.answers = ["y", "n"]
    assert overnight.overnight(fake.desk(), []) == 0
    assert fake.ran[0][5] == "many"


@pytest.mark.parametrize(
    ("name", "asks"),
    [("batt_discharging", True), ("batt_low", True), ("batt_ac_charged", False), ("batt_desktop_mac", False)],
)
def test_on_battery_it_is_asked(name: str, asks: bool, fake: FakeDesk, shared) -> None:
    fake.programs["pmset"] = Ran(0, shared("macos-fixtures", "pmset", f"{name}.txt").read_text(), "")
    if asks:
        fake.answers = [""]
        with pytest.raises(Cancelled):
            power.check_power(fake.desk())
        assert "it runs on its battery (" in fake.text
        fake.answers = ["y"]
    power.check_power(fake.desk())
    assert ("Leave the lid open" in fake.text) is (name != "batt_desktop_mac")


@pytest.mark.parametrize("answer", [None, Ran(1, "", "no such option"), Ran(0, "", ""), Ran(0, "\xff garbage", "")])
def test_a_power_source_that_is_not_known_stops_nothing(answer: Ran | None, fake: FakeDesk) -> None:
    fake.programs["pmset"] = answer
    power.check_power(fake.desk())


def test_it_is_idle_and_system_sleep_that_is_held_off_never_that_of_the_display() -> None:
    assert list(power.awake_command(7)) == ["caffeinate", "-is", "-w", "7"]


def test_what_cannot_work_is_left_out_and_said(fake: FakeDesk, tmp_path: Path) -> None:
    run = write_run(tmp_path, "b", "running")
    fake.answers = ["y", "n"]
    with at_work(run):
        overnight.overnight(fake.desk(), ["a", "b"])
    assert "  2  b: left out, it is at work already" in fake.said
    fake.printed = {"plan": Ran(2, "", "error: recipes/a.toml:3: no key `lr`\nhint: x\n")}
    with pytest.raises(RunError, match="none of them can be trained"):
        overnight.overnight(fake.desk(), ["recipes/a.toml"])
    fake.printed = {"plan": Ran(3, "", "")}
    with pytest.raises(RunError):
        overnight.overnight(fake.desk(), ["recipes/a.toml"])
    assert "does not fit" in fake.text


def test_two_of_one_name_do_not_share_a_folder(fake: FakeDesk, tmp_path: Path) -> None:
    write_recipe(tmp_path, "c", output="adapters/a")
    found = overnight.check_starts(fake.desk(), overnight.pick_starts(fake.desk(), ["a", "c", "recipes/a.toml"]))
    assert [str(one.run.path) for one in found] == ["adapters/a", "adapters/a-2", "adapters/a-3"]


def test_a_night_that_does_not_start_says_where_to_look(fake: FakeDesk) -> None:
    fake.on_start = lambda arguments, log: None
    fake.answers = ["y"]
    with pytest.raises(RunError, match="could not be started") as refused:
        overnight.overnight(fake.desk(), ["a"])
    assert "log.txt" in refused.value.hint


def test_what_a_broken_night_has_left_is_offered(fake: FakeDesk, tmp_path: Path) -> None:
    folder = nights.new_folder(tmp_path / "logs", BEGAN)
    done = replace(item("a"), state="done", code=0, began=BEGAN, ended=BEGAN)
    write_night(folder, Night((done, replace(item("b"), state="running", began=BEGAN)), BEGAN))
    write_run(tmp_path, "b", "running")
    fake.answers = ["y", "y", "n"]
    assert overnight.overnight(fake.desk(), []) == 0
    ((_, log),) = fake.started
    night = read_night(log.parent)
    assert night is not None
    assert [(one.run, one.is_resumed) for one in night.items] == [("adapters/b", True)]


def running_night(tmp_path: Path) -> tuple[Path, int]:
    folder = nights.new_folder(tmp_path / "logs", BEGAN)
    write_night(folder, Night((replace(item("a"), state="running", began=BEGAN), item("b")), BEGAN))
    lock = take_lock(folder / nights.LOCK)
    assert lock is not None
    return folder, lock


def test_the_window_shows_each_training_and_leaves_without_ending_any(fake: FakeDesk, tmp_path: Path) -> None:
    running_night(tmp_path)
    with at_work(write_run(tmp_path, "a", "running")):
        fake.answers = ["4", "1"]
        assert overnight.overnight(fake.desk(), []) == 0
    assert fake.called == [["monitor", "adapters/a", "--until-end"]] * 2
    assert "\n1 of 2: a" in fake.said
    assert fake.said[-1].startswith('\nNext: double-click "Monitor" to see the night again')
    assert fake.started == []


def test_the_summary_is_shown_once_when_nobody_looked_on(fake: FakeDesk, tmp_path: Path) -> None:
    folder = nights.new_folder(tmp_path / "logs", BEGAN)
    write_night(folder, Night((replace(item("a"), state="done", code=0),), BEGAN, BEGAN + 1))
    assert overnight.unseen_night(fake.desk()) == folder
    assert overnight.tell_summary(fake.desk(), folder) == 0
    assert overnight.unseen_night(fake.desk()) is None


def test_two_nights_of_one_second_have_folders_of_their_own(tmp_path: Path) -> None:
    first, second = (nights.new_folder(tmp_path, BEGAN) for _ in range(2))
    assert (first.name, second.name) == ("overnight-20261126-231000", "overnight-20261126-231000-2")
    write_night(first, Night((), BEGAN))
    write_night(second, Night((), BEGAN))
    assert nights.latest_night(tmp_path) == second
    assert nights.latest_night(tmp_path / "none") is None
