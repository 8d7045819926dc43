import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from doctor_facts import TYPED

from mlx_finetune.app.doctor.finding import Finding
from mlx_finetune.app.doctor.runs import (
    NUM_RUNS,
    RECENT_SECONDS,
    Crash,
    RunEnd,
    newest_runs,
    read_crash,
    read_crashes,
    read_ends,
    run_problems,
)
from mlx_finetune.app.running.endings import Ended, read_ending
from mlx_finetune.events import Event, Restarted, RunFailed, RunFinished, RunStarted, RunStopped, StepDone
from mlx_finetune.journal import EventWriter
from mlx_finetune.rundir import EVENTS, LOCK, RunDir, take_lock

NOW = 1_800_000_000.0
STARTED = RunStarted("r", "m", "sft", 0, 100, 10, 10, 1, 1, 2, "CPU", "float32")
STEP = StepDone(7, 0.7, 2.0, 1e-4, 1.0, 10, 12, 0.0, 1.0, 10.0, 1, 1)
FINISHED = RunFinished(100, "max_steps", 2.0, 1.0, 100, 1.0, 60.0, 1000, 1)
WATCHDOG = "macOS ended the training process because its work on the GPU held up the display"
FAILED = RunFailed(WATCHDOG, "let the display sleep while it trains: pmset displaysleepnow", 1)
RESTARTED = Restarted(5, 1, "gpu_timeout", "a piece of work took too long", "batches of 1", is_bitwise=True)


def run_with(base: Path, name: str, events: Sequence[Event], age: float = 60.0) -> RunDir:
    run = RunDir(base / "adapters" / name)
    run.path.mkdir(parents=True)
    writer = EventWriter(run.file(EVENTS), clock=lambda: NOW - age)
    for event in events:
        writer(event)
    writer.close()
    os.utime(run.file(EVENTS), (NOW - age, NOW - age))
    return run


def ends(base: Path) -> list[RunEnd]:
    return list(read_ends(base, NOW, lambda run: [f"to go on: mlxft train recipes/{run.path.name}.toml --resume"]))


def problems(*found: RunEnd, crashes: Sequence[Crash] = ()) -> list[Finding]:
    return list(run_problems(found, crashes, TYPED))


@pytest.mark.parametrize(
    ("events", "kind", "message"),
    [
        ([STARTED, STEP, FINISHED], None, ""),
        ([STARTED, STEP, RunStopped(7, 2)], None, ""),
        ([STARTED, STEP, FAILED], "failed", WATCHDOG),
        ([STARTED, STEP], "lost", ""),
        ([STARTED], None, ""),
        ([], None, ""),
        ([STARTED, STEP, FAILED, STARTED, STEP], "lost", ""),
        ([STARTED, STEP, FAILED, STARTED, STEP, FINISHED], None, ""),
        ([STARTED, STEP, RESTARTED, STARTED, STEP, FINISHED], "restarted", RESTARTED.sentence),
    ],
)
def test_how_the_last_run_ended_is_read_from_its_journal(
    tmp_path: Path, events: Sequence[Event], kind: str | None, message: str
):
    run_with(tmp_path, "mine", events)
    found = ends(tmp_path)
    assert [(end.name, end.kind, end.step, end.message) for end in found] == (
        [("mine", kind, 7, message)] if kind else []
    )


def test_a_run_at_work_is_left_alone(tmp_path: Path):
    run = run_with(tmp_path, "mine", [STARTED, STEP])
    descriptor = take_lock(run.file(LOCK))
    assert descriptor is not None
    assert ends(tmp_path) == []
    os.close(descriptor)
    assert len(ends(tmp_path)) == 1


def test_only_the_last_runs_of_the_last_days_are_told_the_newest_first(tmp_path: Path):
    for number in range(NUM_RUNS + 2):
        run_with(tmp_path, f"run-{number}", [STARTED, STEP, FAILED], age=1000.0 - number)
    run_with(tmp_path, "old", [STARTED, STEP, FAILED], age=RECENT_SECONDS + 1)
    assert [end.name for end in ends(tmp_path)] == ["run-4", "run-3", "run-2"]
    assert [run.path.name for run in newest_runs(tmp_path, NOW)][:1] == ["run-4"]
    assert newest_runs(tmp_path / "nothing", NOW) == []


def test_a_journal_of_another_kind_is_no_reason_to_fail(tmp_path: Path):
    run = run_with(tmp_path, "mine", [STARTED, STEP, FAILED])
    run.file(EVENTS).write_bytes(b"\x00\xff" * 100_000 + b"\n{}\n[1]\n")
    os.utime(run.file(EVENTS), (NOW, NOW))
    assert ends(tmp_path) == []


def test_a_long_journal_is_read_from_its_end(tmp_path: Path):
    run_with(tmp_path, "mine", [STARTED, *[STEP] * 1000, FAILED])
    assert [end.kind for end in ends(tmp_path)] == ["failed"]


def test_a_failed_run_is_told_with_its_hint_and_the_command_that_goes_on():
    end = RunEnd("mine", "failed", 7, FAILED.message, FAILED.hint, "mlxft train mine.toml --resume")
    (finding,) = problems(end)
    assert finding.level == "warning"
    assert finding.message == f"the run mine failed: {WATCHDOG}; {FAILED.hint}"
    assert finding.command == "./launchers/mlxft train mine.toml --resume"


def test_a_lost_run_and_a_restarted_one_are_told():
    (lost,) = problems(RunEnd("my run", "lost", 7, "", "", ""))
    assert (lost.level, lost.command) == ("warning", "./launchers/mlxft runs show 'my run'")
    assert "went away after step 7 without a word" in lost.message
    (again,) = problems(RunEnd("mine", "restarted", 7, RESTARTED.sentence, "", ""))
    assert (again.level, again.command) == ("note", "./launchers/mlxft runs show mine")


@pytest.mark.parametrize(
    "name",
    [
        "gpu_oom",
        "max_buffer",
        "no_metal_device",
        "resource_limit",
        "watchdog_interactivity",
        "watchdog_timeout",
        "wired_limit_too_high",
    ],
)
def test_what_mlx_says_before_it_dies_is_told_with_what_to_do(tmp_path: Path, shared: Callable[..., Path], name: str):
    """The supervisor puts the meaning of these texts into the journal; the doctor tells it days later."""
    text = shared("macos-fixtures", "errors", f"{name}.txt").read_text("utf-8").strip()
    ending = read_ending(Ended(1, log_tail=(text,)))
    run_with(tmp_path, "mine", [STARTED, STEP, RunFailed(ending.message, ending.hint, 1)])
    (finding,) = problems(*ends(tmp_path))
    assert ending.hint
    assert f"{ending.message}; {ending.hint}" in finding.message
    report = read_crash("python3.12-2026-11-26.ips", f'{{"bug_type":"309"}}\n{{"asi": {{"libc": ["{text}"]}}}}')
    assert report is not None
    assert (report.message, report.hint, report.command) == (ending.message, ending.hint, "mlxft runs list")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("kernel_panic_watchdogd", "its watchdog got no answer"),
        ("kernel_panic_iogpu", "an error in its own GPU driver"),
    ],
)
def test_a_restart_of_the_mac_is_named(tmp_path: Path, shared: Callable[..., Path], name: str, says: str):
    panic = shared("macos-fixtures", "errors", f"{name}.txt").read_text("utf-8")
    (tmp_path / "panic-full-2026.panic").write_text(f'{{"panicString" : "{panic}"}}')
    (tmp_path / "Finder-2026.ips").write_text(panic.replace("watchdogd", "x"))
    os.utime(tmp_path / "panic-full-2026.panic", (NOW, NOW))
    os.utime(tmp_path / "Finder-2026.ips", (NOW, NOW))
    found = [crash for crash in read_crashes([str(tmp_path), str(tmp_path / "gone")], NOW) if "panic" in crash.file]
    (finding,) = problems(crashes=found)
    assert finding.level == "warning"
    assert says in finding.message
    assert "{" not in finding.command
    assert list(read_crashes([str(tmp_path)], NOW + RECENT_SECONDS + 1)) == []


def test_memory_that_ran_out_is_told_only_where_a_python_had_most_of_it():
    text = '{"bug_type":"298"}\n{"largestProcess" : "python3.12"}'
    report = read_crash("JetsamEvent-2026-11-26.ips", text)
    assert report is not None
    assert "python3.12 had the most of it" in report.message
    assert read_crash("JetsamEvent-2026-11-26.ips", text.replace("python3.12", "Xcode")) is None
    assert read_crash("Finder-2026.ips", text) is None
    assert read_crash("python3.12-2026.ips", "{}") is None


def test_a_crash_that_a_run_tells_about_is_not_told_twice():
    crash = Crash("python.ips", WATCHDOG, "let it sleep", "mlxft runs list")
    end = RunEnd("mine", "failed", 7, WATCHDOG, "", "")
    assert len(problems(end, crashes=[crash, crash])) == 1
    (alone,) = problems(crashes=[crash, crash])
    assert alone.message == f"in the last days {WATCHDOG}; let it sleep"
    assert alone.command == "./launchers/mlxft runs list"
    assert len(problems(replace(end, message="another"), crashes=[crash])) == 2


def test_words_that_a_run_left_cannot_move_the_cursor(tmp_path: Path):
    run_with(tmp_path, "mine", [STARTED, STEP, RunFailed("bad\x1b[2J" + "x" * 2000, "\x07", 1)])
    (end,) = ends(tmp_path)
    assert "\x1b" not in end.message + end.hint
    assert len(end.message) <= 300
