"""``mlxft monitor``: comes and goes while a run is at work, and never touches it."""

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from journal import FINISHED, STARTED, records, step, whole_run
from processes import TIMEOUT, Machine, steps, wait_until

from mlx_finetune.app.running.follow import latest_run
from mlx_finetune.commands import monitor, monitor_web
from mlx_finetune.commands.monitor import command
from mlx_finetune.errors import RunError, UsageError
from mlx_finetune.events import Record, RunStopped, to_json
from mlx_finetune.loopback.addresses import take_port
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.rundir import LOCK, RUN_INFO, RunDir, lock_holder, running_process, take_lock


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    machine.close()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_run(name: str, journal: list[Record]) -> RunDir:
    run = RunDir(Path("adapters") / name)
    run.path.mkdir(parents=True)
    lines = [to_json(record.event, record.time) for record in journal]
    run.file("events.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return run


def train(machine: Machine, mode: str) -> RunDir:
    run = machine.recipe(mode)
    machine.start("train", "demo.toml")
    wait_until(lambda: steps(run) > 3)
    return run


def test_ctrl_c_leaves_and_the_training_goes_on(machine: Machine) -> None:
    run = train(machine, "wait")
    watching = machine.start("monitor")
    assert watching.stderr is not None
    head = [watching.stderr.readline() for _ in range(4)]
    assert head[0] == f"watching demo (process {running_process(run)}); Ctrl-C leaves, and the training goes on\n"
    assert head[1].startswith("demo: sft of tiny on cpu")
    assert "  loss " in head[3]
    watching.send_signal(signal.SIGINT)
    _, rest = watching.communicate()
    assert watching.returncode == 0
    assert rest.splitlines()[-1] == "left; the training goes on, mlxft stop demo ends it"
    before = steps(run)
    wait_until(lambda: steps(run) > before + 2)


def test_the_end_of_the_run_is_told_as_where_it_was_started(machine: Machine) -> None:
    run = machine.recipe("finish")
    training = machine.start("train", "demo.toml")
    wait_until(lambda: steps(run) > 3)
    watching = machine.start("monitor", "demo")
    assert watching.stderr is not None
    watching.stderr.readline()
    run.file("finish").touch()
    _, told = watching.communicate()
    _, there = training.communicate()
    assert (watching.returncode, training.returncode) == (0, 0)
    end = there[there.index("\nfinished at step") :]
    assert end.rstrip().endswith("next: mlxft chat demo")
    page = "  report for your browser: adapters/demo/report.html\n"  # made after the end that is told here
    assert page in end
    assert told.endswith(end.replace(page, ""))


@pytest.mark.slow
def test_a_restart_is_seen_from_outside(machine: Machine) -> None:
    """The monitor is there before step 3, where the training crashes; the journal is followed through it."""
    run = machine.recipe("late crash")
    machine.start("train", "demo.toml")
    wait_until(lambda: lock_holder(run.file(LOCK)))
    watching = machine.start("monitor", "demo", "--json")
    assert watching.stdout is not None
    assert watching.stderr is not None
    watching.stderr.readline()
    run.file("go").touch()
    kinds: list[str] = []
    while "restarted" not in kinds:
        kinds.append(json.loads(watching.stdout.readline())["kind"])
    assert [json.loads(watching.stdout.readline())["kind"] for _ in range(2)] == ["run_started", "step"]
    assert running_process(run)


@pytest.mark.slow
def test_a_closed_pipe_ends_the_monitor_and_not_the_run(machine: Machine) -> None:
    run = train(machine, "wait")
    watching = machine.start("monitor", "--json")
    assert watching.stdout is not None
    watching.stdout.readline()
    watching.stdout.close()
    watching.wait(30)
    before = steps(run)
    wait_until(lambda: steps(run) > before + 2)


@pytest.mark.parametrize(
    ("journal", "said"),
    [
        (whole_run(), ["demo is not at work; it finished at step 40", "next: mlxft chat demo"]),
        (
            records(replace(STARTED, task="seq2seq"), FINISHED),
            ["demo is not at work; it finished at step 40", "next: mlxft generate demo --prompt TEXT"],
        ),
        (records(STARTED, step(1), RunStopped(1, 15)), ["demo is not at work; it stopped after step 1 of 40"]),
        (records(STARTED, step(1)), ["demo is not at work; it went away after step 1 of 40"]),
    ],
)
def test_a_run_that_is_not_at_work_is_told_in_a_sentence(here: Path, journal: list[Record], said: list[str]) -> None:
    write_run("demo", journal)
    result = CliRunner().invoke(command, [], standalone_mode=False)
    assert (result.return_value, result.stderr.splitlines()) == (0, said)


class Terminal:
    """``mlxft monitor`` in a pseudo terminal of 80 by 24, and everything that it has written there."""

    def __init__(self, machine: Machine, *arguments: str, **environment: str) -> None:
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
            os.chdir(machine.folder)
            os.execve(
                sys.executable,
                [sys.executable, "-m", "mlx_finetune", "monitor", *arguments],
                machine.environment | {"TERM": "xterm-256color"} | environment,
            )
        self.written = b""

    def read_until(self, text: str) -> None:
        self.read_while(lambda: text.encode() not in self.written)

    def read_while(self, holds: Callable[[], bool]) -> None:
        """Read what is written meanwhile: a terminal that nobody reads holds up who writes to it."""
        deadline = time.monotonic() + TIMEOUT
        while holds():
            assert time.monotonic() < deadline, self.written[-2000:]
            if select.select([self.descriptor], [], [], 0.1)[0]:
                self.written += os.read(self.descriptor, 65536)

    def type(self, keys: str) -> None:
        os.write(self.descriptor, keys.encode())

    def wait(self) -> int:
        """The exit code, when everything was read."""
        with contextlib.suppress(OSError):
            while True:
                self.written += os.read(self.descriptor, 65536)
        _, status = os.waitpid(self.pid, 0)
        os.close(self.descriptor)
        return os.waitstatus_to_exitcode(status)


ENTER_SCREEN, LEAVE_SCREEN = b"\x1b[?1049h", b"\x1b[?1049l"


@pytest.mark.some(3)
@pytest.mark.parametrize(("how", "code"), [("q", 0), ("\x03", 0), ("SIGINT", 0), ("SIGTERM", 143)])
def test_in_a_terminal_the_screen_is_filled_and_given_back_and_the_training_goes_on(
    machine: Machine, how: str, code: int
) -> None:
    run = train(machine, "wait")
    terminal = Terminal(machine, "demo")
    terminal.read_until("Overview")
    terminal.read_until("targets/s")
    assert ENTER_SCREEN in terminal.written
    if how.startswith("SIG"):
        os.kill(terminal.pid, signal.Signals[how])
    else:
        terminal.type(how)
    assert terminal.wait() == code
    assert LEAVE_SCREEN in terminal.written
    assert terminal.written.endswith(b"left; the training goes on, mlxft stop demo ends it\r\n")
    before = steps(run)
    wait_until(lambda: steps(run) > before + 2)


@pytest.mark.slow
def test_keys_reach_the_training_itself(machine: Machine) -> None:
    """A checkpoint now, then a safe stop; the screen stays, and leaving it says how to go on."""
    run = train(machine, "wait")
    known = {path.name for path in run.checkpoints()}
    terminal = Terminal(machine, "demo")
    terminal.read_until("targets/s")
    terminal.type("c")
    terminal.read_while(lambda: {path.name for path in run.checkpoints()} == known)
    terminal.type("s")
    terminal.read_until("Stop demo?")
    assert running_process(run)
    terminal.type("y")
    terminal.read_while(lambda: running_process(run) is not None)
    terminal.read_until("stopped")
    terminal.type("q")
    assert terminal.wait() == 0
    assert re.search(rb"\nstopped after step \d+; everything up to there is saved\r\n", terminal.written)
    assert b"to go on: mlxft train demo.toml --resume" in terminal.written


@pytest.mark.slow
def test_after_ctrl_z_every_line_is_drawn_again(machine: Machine) -> None:
    train(machine, "wait")
    terminal = Terminal(machine, "demo")
    terminal.read_until("targets/s")
    terminal.type("\x1a")
    terminal.read_while(lambda: psutil.Process(terminal.pid).status() != psutil.STATUS_STOPPED)
    terminal.read_until("\x1b[?1049l")
    terminal.written = b""
    os.kill(terminal.pid, signal.SIGCONT)
    for part in ("\x1b[?1049h", "Overview", "targets/s", "leave"):
        terminal.read_until(part)
    terminal.type("q")
    assert terminal.wait() == 0


@pytest.mark.some(1)
@pytest.mark.parametrize("arguments", [["--until-end"], []])
def test_the_end_of_a_run_leaves_the_screen_only_where_that_was_asked_for(
    machine: Machine, arguments: list[str]
) -> None:
    run = machine.recipe("finish")
    machine.start("train", "demo.toml")
    wait_until(lambda: steps(run) > 3)
    terminal = Terminal(machine, "demo", *arguments)
    terminal.read_until("targets/s")
    run.file("finish").touch()
    if not arguments:
        terminal.read_until("mlxft chat demo")
        assert LEAVE_SCREEN not in terminal.written
        terminal.type("q")
    assert terminal.wait() == 0
    left = terminal.written.split(LEAVE_SCREEN)[1]
    assert b"finished at step " in left
    assert b"next: mlxft chat demo" in left


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "term"), [(["--plain"], "xterm-256color"), ([], "dumb"), (["--json"], "xterm")])
def test_otherwise_a_terminal_gets_lines(machine: Machine, arguments: list[str], term: str) -> None:
    train(machine, "wait")
    terminal = Terminal(machine, *arguments, TERM=term)
    terminal.read_until("watching demo (process ")
    terminal.type("\x03")
    assert terminal.wait() == 0
    assert ENTER_SCREEN not in terminal.written


@pytest.mark.parametrize(
    ("system", "environment", "works", "copied"),
    [
        ("darwin", {}, True, True),
        ("darwin", {}, False, False),
        ("darwin", {"SSH_CONNECTION": "1.2.3.4"}, True, False),
        ("linux", {}, True, False),
    ],
)
def test_a_mac_that_one_sits_at_has_a_clipboard_of_its_own(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    system: str,
    environment: dict[str, str],
    works: bool,
    copied: bool,
) -> None:
    pbcopy = tmp_path / "pbcopy"
    pbcopy.write_text(f"#!/bin/sh\n{'cat' if works else 'exit 1; cat'} > {tmp_path}/clipboard\n")
    pbcopy.chmod(0o755)
    monkeypatch.setattr(monitor, "PBCOPY", str(pbcopy))
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert monitor._copy("cd '/a b' && mlxft train") is copied
    assert (tmp_path / "clipboard").exists() is copied


def test_runs_to_switch_between_are_those_beside_the_run_and_those_here(here: Path) -> None:
    write_run("demo", whole_run())
    elsewhere = RunDir(here / "elsewhere" / "other")
    elsewhere.path.mkdir(parents=True)
    elsewhere.file("events.jsonl").touch()
    hands = monitor.monitor_hands(elsewhere)
    assert [run.name for run in hands.list_runs()] == [str(elsewhere.path), "demo"]
    assert hands.list_runs()[0] is elsewhere
    assert hands.resume_command(elsewhere) == ""


def test_without_a_name_the_run_with_the_latest_event_is_meant_whatever_the_files_times(here: Path) -> None:
    write_run("late", records(STARTED, step(1), step(2), start=2_000_000.0))
    early = write_run("early", records(STARTED, step(1), start=1_000_000.0))
    os.utime(early.file("events.jsonl"), (4_000_000_000, 4_000_000_000))
    assert latest_run(Path("adapters")).name == "late"
    lock = take_lock(early.file(LOCK))
    assert lock is not None
    assert latest_run(Path("adapters")).name == "early"
    os.close(lock)


def test_a_run_that_goes_away_without_a_word_is_a_failure(here: Path) -> None:
    run = write_run("demo", records(STARTED, step(1)))
    lock = take_lock(run.file(LOCK))
    assert lock is not None
    threading.Timer(0.3, os.close, (lock,)).start()
    result = CliRunner().invoke(command, ["demo"], standalone_mode=False)
    lines = result.stderr.splitlines()
    assert lines[0].startswith(f"watching demo (process {os.getpid()})")
    assert lines[-1].startswith("error: the training is gone without a word (see adapters/demo/log.txt)")
    assert result.return_value == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "8000"], "--port and --no-open are for the page"),
        (["--no-open"], "--port and --no-open are for the page"),
        (["--web", "--json"], "--web and --json do not go together"),
    ],
)
def test_options_of_the_page_do_not_go_with_others(here: Path, arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(command, arguments, standalone_mode=False)
    assert isinstance(result.exception, UsageError)
    assert result.exception.message == said


def test_a_port_that_is_taken_is_refused_where_it_was_asked_for(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLXFT_STATE", str(here / "state"))
    with take_port("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(command, ["--web", "--no-open", "--port", port], standalone_mode=False)
    assert isinstance(result.exception, RunError)
    assert result.exception.message.startswith(f"port {port} is taken")


def test_a_token_that_others_can_read_is_no_token_of_the_page(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLXFT_STATE", str(here / "state"))
    (here / "state").mkdir()
    (here / "state" / "monitor-token").write_text("mlxft-" + "a" * 40)
    result = CliRunner().invoke(command, ["--web", "--no-open", "--port", "0"], standalone_mode=False)
    assert isinstance(result.exception, RunError)
    assert "others can read the token" in result.exception.message


def test_the_page_of_a_folder_without_runs_opens_too(here: Path) -> None:
    assert monitor_web._place(None) == (Path("adapters"), "")
    write_run("one", whole_run())
    assert monitor_web._place("one") == (Path("adapters"), "one")
    assert monitor_web._place(None) == (Path("adapters"), "one")


def test_two_recipes_are_compared_where_both_can_be_read(here: Path) -> None:
    runs = [write_run(name, whole_run()) for name in ("one", "two")]
    assert monitor_web._compare(*runs)["refusal"]
    for run, seed in zip(runs, (1, 2), strict=True):
        recipe = Recipe.model_validate({"model": "m", "output_dir": str(run.path), "seed": seed, "data": {"path": "d"}})
        run.file(RUN_INFO).write_text(json.dumps({"resolved": recipe.model_dump(mode="json")}))
    found = monitor_web._compare(*runs)
    assert found["refusal"] == ""
    assert ["seed", "1", "2"] in found["recipe"]  # pyright: ignore[reportOperatorIssue]


def test_the_browser_gets_a_ticket_and_the_terminal_the_token(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    monkeypatch.setenv("MLXFT_STATE", str(here / "state"))
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr("mlx_finetune.monitor.web.server.serve_pages", lambda *given: signal.SIGINT)
    monkeypatch.setattr(monitor_web, "_has_display", lambda: True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert monitor_web.watch_in_browser(None, port=0, opens=True) == 0
    assert monitor_web.watch_in_browser(None, port=0, opens=False) == 0
    token = (here / "state" / "monitor-token").read_text().strip()
    (address,) = opened
    assert "/#ticket=" in address
    assert token not in address
    said = capsys.readouterr().err
    assert f"/#token={token}\n" in said
    assert said.splitlines()[-1].startswith("the page is gone; trainings go on")
