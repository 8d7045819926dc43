"""A person double-clicks: real windows, real processes, a Mac's tools stubbed. Trainings outlive their windows.

Most trainings here are ``waiting_child.py``, which goes on until it is asked to stop; one test trains a tiny model.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import ROOT, Machine, steps, wait_until
from small_runs import write_recipe as write_tiny_recipe
from windows import MacTools, Window

from mlx_finetune.app.desktop.launcher import Target, install, launcher_path
from mlx_finetune.app.desktop.overnight.night import LOG, SUMMARY, holder, latest_night
from mlx_finetune.rundir import RunDir, running_process


class Home:
    """A home folder with launchers on its Desktop, which call this Python in ``folder``."""

    def __init__(self, folder: Path, *, with_dialogs: bool = False, stand_in: bool = True) -> None:
        self.machine = Machine(folder)
        self.folder = folder
        self.tools = MacTools(folder, with_dialogs=with_dialogs)
        (folder / "adapters").mkdir()
        paths = self.machine.environment["PYTHONPATH"] if stand_in else str(ROOT)
        python = folder / "python"  # the launchers drop PYTHONPATH
        python.write_text(f'#!/bin/bash\nPYTHONPATH={paths!r} exec {sys.executable!r} "$@"\n')
        python.chmod(0o755)
        install(folder / "Desktop", Target(folder, python, ("-m", "mlx_finetune")))
        self.environment = {"HOME": str(folder), "TERM": "dumb", "PATH": "/usr/bin:/bin", "NO_COLOR": "1"}
        self.environment |= {"MLXFT_TEST_PATH": str(self.tools.folder)}
        self.environment |= {key: os.environ[key] for key in ("MLXFT_CACHE", "HF_HUB_OFFLINE", "OPENBLAS_NUM_THREADS")}
        self.windows: list[Window] = []

    def open(self, verb: str, *arguments: str, **more: str) -> Window:
        """Double-click a launcher."""
        window = Window(
            [launcher_path(self.folder / "Desktop", verb), *arguments], self.environment | more, self.folder
        )
        self.windows.append(window)
        return window

    def stopped_run(self, name: str, mode: str = "wait") -> RunDir:
        """A run that was stopped after step 2, so that it goes on without a plan, which has no model to look at."""
        self.machine.recipe(mode, name)
        run = RunDir(self.folder / "adapters" / name)
        run.checkpoint(2).mkdir(parents=True)
        (run.checkpoint(2) / "manifest.json").write_text("{}")
        info = {"status": "stopped", "step": 2, "recipe_path": f"{name}.toml", "overrides": []}
        run.file("run.json").write_text(json.dumps(info | {"started_in": str(self.folder)}))
        return run

    def close(self) -> None:
        for window in self.windows:
            window.close()
        folder = latest_night(self.folder / "logs")
        if folder is not None and (pid := holder(folder)):
            os.kill(pid, 9)
        self.machine.close()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path)
    yield home
    home.close()


def test_a_training_outlives_its_window_and_monitor_finds_it_and_stops_it(home: Home) -> None:
    run = home.stopped_run("demo")
    window = home.open("train")
    window.answer("1  Go on with demo (stopped at step 2)", "1")
    window.wait_for("closing it changes nothing")
    window.wait_for("watching ")
    assert window.raw.startswith("\x1b]0;mlxft: Train\x07")
    pid = running_process(run)
    assert pid
    window.close()
    before = steps(run)
    wait_until(lambda: steps(run) > before + 3)
    assert running_process(run) == pid
    assert os.getsid(pid) == pid
    monitor = home.open("monitor")
    monitor.wait_for("watching ")
    monitor.type("\x03")
    monitor.wait_for("demo is still at work.")
    monitor.answer("Number (Return: 1): ", "2")
    monitor.wait_for("everything up to there is saved")
    monitor.wait_for('Next: double-click "Train" to go on with it')
    monitor.answer("Press Return to close this window. ", "")
    assert monitor.end() == 0
    assert running_process(run) is None
    assert run.checkpoints()[-1] != run.checkpoint(2)


def test_stop_safely_ends_what_is_at_work(home: Home) -> None:
    run = home.stopped_run("demo")
    code, said = home.machine.call("train", "demo.toml", "--resume", "--detach")
    assert code == 0, said
    window = home.open("stop")
    window.wait_for("it finishes its step and saves")
    window.wait_for("everything up to there is saved")
    window.answer("Press Return", "")
    assert window.end() == 0
    assert running_process(run) is None


def test_an_error_is_a_sentence_and_the_window_stays(home: Home) -> None:
    window = home.open("chat")
    window.wait_for("error: nothing has been trained here yet")
    window.wait_for("It stopped with code 1; the reason stands above.")
    window.answer("Press Return", "")
    assert window.end() == 1
    assert "nothing has been trained here yet" in (home.folder / "logs" / "launchers.log").read_text()


def test_who_cancels_is_told_that_nothing_was_done(home: Home) -> None:
    home.machine.recipe("wait")
    for key in ("\x04", "\x03"):
        window = home.open("train")
        window.wait_for("into this window: ")
        window.type(key)
        window.wait_for("othing more was done.")  # or Interrupted; ..., where Ctrl-C comes before the question is heard
        window.answer("Press Return", "")
        assert window.end() in ((0,) if key == "\x04" else (0, 130))


@pytest.fixture
def gui_home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path, with_dialogs=True)
    yield home
    home.close()


def start_night(home: Home, *names: str) -> tuple[Window, list[RunDir]]:
    """A night of trainings that end when a file is made in their folder."""
    runs = [home.stopped_run(name, "finish") for name in names]
    home.tools.answer("pmset.batt", "Now drawing from 'AC Power'\n -InternalBattery-0 (id=1)\t80%; charging;\n")
    window = home.open("overnight", *(f"{home.folder}/{name}.toml" for name in names))
    window.wait_for("Leave the lid open")
    window.answer("now, one after another? [Y/n] ", "")
    window.answer("Let the display sleep now? [y/N] ", "y")
    window.wait_for(f"1 of {len(names)}: {names[0]}")
    wait_until(lambda: running_process(runs[0]) and steps(runs[0]) > 2)
    return window, runs


def test_a_night_outlives_its_window_and_tells_in_the_morning(gui_home: Home) -> None:
    window, runs = start_night(gui_home, "a", "b")
    window.close()
    for run in runs:
        wait_until(lambda run=run: steps(run) > 3)
        run.file("finish").touch()
    folder = latest_night(gui_home.folder / "logs")
    assert folder is not None
    wait_until((folder / SUMMARY).is_file)
    wait_until(lambda: any(call[0] == "osascript" for call in gui_home.tools.log))
    assert holder(folder) is None
    calls = gui_home.tools.log
    (awake,) = [call for call in calls if call[0] == "caffeinate"]
    assert awake[1:3] == ["-is", "-w"]
    assert ["pmset", "displaysleepnow"] in calls
    (note,) = [call for call in calls if call[0] == "osascript"]
    assert note[-2:] == ["mlxft: the night is over", "2 of 2 trainings finished"]
    monitor = gui_home.open("monitor")
    monitor.wait_for("2 of 2 finished")
    monitor.wait_for("validation loss 2.500 -> 1.500")
    monitor.answer("Press Return", "")
    assert monitor.end() == 0
    assert "\a" in monitor.raw
    assert "error:" not in (folder / LOG).read_text()


@pytest.mark.slow
def test_stop_safely_may_end_the_whole_night(home: Home) -> None:
    window, runs = start_night(home, "a", "b")
    stop = home.open("stop")
    stop.answer("Number (Return: 1): ", "1")
    stop.wait_for("0 of 2 finished")
    stop.wait_for("1  a: stopped after step")
    stop.wait_for("2  b: was not started, as the night was stopped")
    stop.answer("Press Return", "")
    window.wait_for("0 of 2 finished")
    window.answer("Press Return", "")
    assert running_process(runs[0]) is None
    assert steps(runs[1]) == 0


def test_a_dialog_chooses_what_goes_on(gui_home: Home) -> None:
    run = gui_home.stopped_run("demo")
    gui_home.tools.answer("osascript", "1  Go on with demo (stopped at step 2)\n")
    window = gui_home.open("train")
    window.wait_for("watching ")
    assert running_process(run)
    (call,) = [call for call in gui_home.tools.log if call[0] == "osascript"]
    assert call[3:7] == ["mlxft", "What is to be trained?", "one", "1  Go on with demo (stopped at step 2)"]


def test_a_dialog_that_is_closed_starts_nothing(gui_home: Home) -> None:
    run = gui_home.stopped_run("demo")
    window = gui_home.open("train")
    window.wait_for("Nothing more was done.")
    window.answer("Press Return", "")
    assert window.end() == 0
    assert running_process(run) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ['it\'s "mine" $(touch canary) `touch canary`'])
def test_a_tiny_model_is_really_trained_tested_and_talked_with(
    name: str, tmp_path: Path, tiny_model: Callable[..., Path]
) -> None:
    home = Home(tmp_path, stand_in=False)
    try:
        recipe = write_tiny_recipe(tmp_path, tiny_model("llama"))
        recipe = recipe.rename(tmp_path / f"{name}.toml")
        recipe.write_text(recipe.read_text().replace(str(tmp_path / "run"), "adapters/tiny"))
        train = home.open("train")
        dragged = "".join(c if c.isalnum() or c in "/._-" else f"\\{c}" for c in str(recipe))
        train.answer("or drag a recipe into this window: ", dragged)
        train.answer("Start the training? [Y/n] ", "")
        train.wait_for('Next: double-click "Test"', 120)
        train.answer("Press Return", "")
        assert train.end() == 0
        assert (tmp_path / "adapters" / "tiny" / "adapter_model.safetensors").is_file()
        test = home.open("test")
        test.wait_for("> Say something.", 120)
        test.wait_for("--- base ---")
        test.answer("Your own question (Return alone ends): ", "What is 3 and 21?")
        test.wait_for("--- tiny ---")
        test.answer("Your own question (Return alone ends): ", "")
        test.answer("Press Return", "")
        assert test.end() == 0
        chat = home.open("chat", TERM="xterm-256color", PROMPT_TOOLKIT_NO_CPR="1")
        chat.wait_for("/help lists the commands", 120)
        chat.wait_for(">\x08")
        chat.type("/exit\r")
        chat.wait_for('Next: double-click "Train"')
        chat.answer("Press Return", "")
        assert chat.end() == 0
        assert not list(tmp_path.rglob("canary"))
    finally:
        home.close()
