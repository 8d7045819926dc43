"""``mlxft launch`` and ``mlxft launchers`` as commands: what they touch outside, their exit codes and their words."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from processes import ROOT
from windows import MacTools

from mlx_finetune.app.desktop.desk import Cancelled
from mlx_finetune.app.desktop.training import dialogue as training
from mlx_finetune.commands import launch, launchers, window
from mlx_finetune.errors import RunError


def call(*arguments: str):
    return CliRunner().invoke(launch.command, arguments, standalone_mode=False)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("raised", "code"), [(Cancelled(), 0), (KeyboardInterrupt(), 130)], ids=["cancelled", "interrupted"]
)
def test_who_goes_away_is_told_that_nothing_was_done(
    raised: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    def leave(*arguments: object) -> int:
        raise raised

    monkeypatch.setattr(training, "train", leave)
    done = call("train", "a b")
    assert done.return_value == code
    assert "othing more was done." in done.stderr
    assert f"train ['a b']: code {code}, 0 s." in (here / "logs" / "launchers.log").read_text()


def test_an_error_is_kept_in_the_log_too(here: Path) -> None:
    done = call("chat")
    assert isinstance(done.exception, RunError)
    assert "chat []: code 1, 0 s. nothing has been trained here yet" in (here / "logs" / "launchers.log").read_text()


def test_without_a_terminal_nothing_is_asked(here: Path) -> None:
    done = call("train")
    assert done.exception is not None
    assert str(done.exception) == "there is no terminal to ask on"
    assert call("nonsense").exception is not None


def test_dialogs_need_a_login_at_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    assert window.make_desk({}).has_dialogs
    assert not window.make_desk({"SSH_CONNECTION": "1.2.3.4"}).has_dialogs
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not window.make_desk({}).has_dialogs


def test_a_program_that_is_missing_is_none_and_arguments_are_not_run(here: Path) -> None:
    assert window.run_program(["no-such-program-anywhere"]) is None
    assert window.run_program(["printf", "a\0b"]) is None
    ran = window.run_program(["printf", "%s", "$(touch canary)"])
    assert ran is not None
    assert (ran.code, ran.out) == (0, "$(touch canary)")
    assert list(here.glob("canary")) == []


def test_a_command_that_dies_of_a_signal_has_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os, sys; os.kill(os.getpid(), int(sys.argv[1]))"
    monkeypatch.setattr(window, "MLXFT", (sys.executable, "-I", "-c", code))
    assert window.run_here([str(int(signal.SIGABRT))]) == 134
    assert window.run_here([str(int(signal.SIGKILL))]) == 137


def test_ctrl_c_is_for_the_command_in_front_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os, signal; os.kill(os.getppid(), signal.SIGINT); print(signal.getsignal(signal.SIGINT).__name__)"
    monkeypatch.setattr(window, "MLXFT", (sys.executable, "-I", "-c", code))
    before = signal.getsignal(signal.SIGINT)
    assert window.run_here([]) == 0
    assert signal.getsignal(signal.SIGINT) is before


def test_what_is_left_to_the_background_has_a_session_and_a_log_of_its_own(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window, "MLXFT", (sys.executable, "-I", "-c", "import os; print(os.getsid(0), os.getpid())"))
    pid = window.start_alone(["x"], here / "log")
    os.waitpid(pid, 0)
    assert (here / "log").read_text().split() == [str(pid), str(pid)]
    with pytest.raises(RunError, match="gone/log"):
        window.start_alone(["x"], here / "gone" / "log")


def test_the_log_begins_anew_when_it_is_large_and_a_full_disk_stops_nothing(here: Path) -> None:
    log = here / "logs" / "launchers.log"
    launch._note(here / "logs", "one \udcff")
    assert log.read_text().endswith(" one \\udcff\n")
    log.write_text("x" * 1_000_001)
    launch._note(here / "logs", "two")
    assert log.read_text().endswith(" two\n")
    assert log.stat().st_size < 100
    launch._note(log, "three")


# mlxft launchers


def manage(*arguments: str):
    return CliRunner().invoke(launchers.command, arguments, standalone_mode=False)


def test_install_check_and_remove(here: Path) -> None:
    done = manage("install")
    desktop = here / "Desktop"
    assert (done.return_value, done.stdout.count("written: ")) == (0, 8)
    assert "next: double-click Train" in done.stderr
    assert manage("check").stdout == f"all 8 launchers in {desktop} are good\n"
    (desktop / "Train.command").chmod(0o644)
    (desktop / "Chat.command").unlink()
    checked = manage("check", "--json")
    shown = json.loads(checked.stdout)
    assert (checked.return_value, shown["installed"]) == (1, 7)
    assert {one["name"]: one["kind"] for one in shown["problems"]} == {"Train": "not-executable", "Chat": "missing"}
    for problem in shown["problems"]:
        assert f"  mend it: {problem['command']}\n" in manage("check").stdout
    assert manage("install").return_value == 0
    assert manage("remove").stdout.count("removed: ") == 8
    assert list(desktop.iterdir()) == []
    assert manage("check").return_value == 1
    assert manage("remove").return_value == 0


def test_a_foreign_file_is_left_alone_and_told(here: Path) -> None:
    (here / "my place").mkdir()
    (here / "my place" / "Train.command").write_text("mine")
    done = manage("install", "my place")
    assert done.return_value == 1
    assert done.stderr.endswith(f"or type: mlxft launchers check '{here / 'my place'}'\n")
    assert f"left alone, not ours: {here / 'my place' / 'Train.command'}\n" in done.stdout
    assert (here / "my place" / "Train.command").read_text() == "mine"


def test_what_is_written_really_starts_mlxft_where_the_runs_are(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where that folder holds modules with the names of those that Python needs."""
    (here / "adapters").mkdir()
    python = here / "python"
    python.write_text(f'#!/bin/bash\nPYTHONPATH={str(ROOT)!r} exec {sys.executable!r} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(sys, "prefix", str(here))  # never the checkout's script, which makes its environment anew
    manage("install")
    tools = MacTools(here)
    for name in ("json", "click", "sitecustomize", "mlx_finetune"):
        (here / f"{name}.py").write_text("raise SystemExit('imported from the folder of the runs')\n")
    assert f"root='{here}'\napp='{python}'\n" in (here / "Desktop" / "Chat.command").read_text()
    done = subprocess.run(
        [here / "Desktop" / "Chat.command"],
        env={"HOME": str(here), "PATH": "/usr/bin:/bin", "MLXFT_TEST_PATH": str(tools.folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == 'error: nothing has been trained here yet\nhint: double-click "Train" first\n'
    assert done.returncode == 1


def test_long_lines_end_between_words_in_a_window(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "  1  " + "word " * 20 + "/a/path/that/is/never/cut/" + "x" * 90 + "\a"
    window.say(line)
    assert capsys.readouterr().err == f"{line}\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda fallback: os.terminal_size((40, 24)))
    window.say(f"\n{line}")
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["", "  1  word word word word word word word"]
    assert lines[-1] == "  /a/path/that/is/never/cut/" + "x" * 90 + "\a"
