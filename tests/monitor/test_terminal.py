"""The live view: what stands at the bottom at each moment, and that a terminal is left as it was found."""

import dataclasses
import io
import os
import pty
import re
import select
import termios
from collections.abc import Iterator

import pytest
from journal import HALVED, KILLED, STARTED, records, step, whole_run

from mlx_finetune.events import Continued, Evaluated, Event, Notice, Paused, Phase, RunStopped, TimeJump
from mlx_finetune.monitor.region import Region, can_draw
from mlx_finetune.monitor.summary import Summary, summarise
from mlx_finetune.monitor.terminal import LiveView, frame

NOW = 1_000_050.0


def lines(summary: Summary, *, width: int = 100, height: int = 20, now: float = NOW) -> list[str]:
    return [text.plain for text in frame(summary, now, width=width, height=height)]


def test_a_phase_before_step_one_shows_its_sizes_and_its_time() -> None:
    (line,) = lines(summarise(records(Phase("download", "tiny", 10**7, 2 * 10**7, "bytes"))), now=1_000_003.0)
    assert line.startswith(" download tiny  ")
    assert line.endswith("10.0 MB of 20.0 MB  3.0 s")
    assert line.count("\u2501") == line.count("\u2500") == 15


def test_nothing_looks_hung_before_the_first_event_and_the_first_step() -> None:
    assert lines(Summary()) == [" starting ..."]
    assert lines(summarise(records(STARTED)), now=1_000_002.0) == [" validation loss of the base model  2.0 s"]
    measured = summarise(records(STARTED, Evaluated(0, 2.5, 100, True, 0.1)))
    assert lines(measured, now=1_000_002.0) == [" first step, which compiles the model  2.0 s"]


def test_the_numbers_of_a_running_training_are_all_there() -> None:
    run = whole_run()[:-3]
    text = "\n".join(lines(summarise(run)))
    for part in (
        "step 40/40",
        "100%  epoch 2.00",
        "loss 1.",
        "\u2198 falling",
        "validation 1.2500 \u2605 best",
        "lr 2.00e-04",
        "norm 0.50",
        "800 targets/s",
        "padding 6%",
        "memory 2.0 GB of 8.0 GB",
        "saved 30",
    ):
        assert part in text, part


def test_the_best_loss_stays_marked_when_the_last_is_worse() -> None:
    text = "\n".join(lines(summarise(whole_run()[:-1])))
    assert "validation 1.5000   \u2605 best 1.2500 at step 30" in text


def test_the_end_is_told_as_a_clock_time_and_as_what_is_left() -> None:
    running = summarise(records(STARTED, *(step(number) for number in range(1, 11))))
    text = "\n".join(lines(running, now=1_000_010.0))
    assert re.search(r"done \d\d:\d\d \(30\.0 s left\)", text)


def test_a_paused_run_shows_why_and_no_end() -> None:
    paused = Paused(10, "the battery is at 19%")
    steps = [step(number) for number in range(1, 11)]
    text = "\n".join(lines(summarise(records(STARTED, *steps, paused))))
    assert "epoch 0.50  paused: the battery is at 19%\n" in text
    assert "left)" not in text
    assert "left)" in "\n".join(lines(summarise(records(STARTED, *steps, paused, Continued(10, 1.0)))))
    assert lines(summarise(records(STARTED, Paused(0, "one")))) == [" paused: one"]


@pytest.mark.parametrize("width", [30, 60, 100])
@pytest.mark.parametrize("height", [1, 3, 30])
def test_a_frame_never_exceeds_the_terminals_height(width: int, height: int) -> None:
    assert len(lines(summarise(whole_run()), width=width, height=height)) <= height


@pytest.fixture
def terminal() -> Iterator[tuple[int, io.TextIOWrapper]]:
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    stream = os.fdopen(slave, "w", encoding="utf-8")
    yield master, stream
    stream.close()
    os.close(master)


def read_frames(master: int, count: int, *, end: str = "\x1b[?2026l") -> str:
    """What the terminal was sent, up to the ``count``-th ``end`` of a frame; a pty hands it out in pieces."""
    text = ""
    while text.count(end) < count:
        assert select.select([master], [], [], 10)[0], f"the terminal fell silent after {text!r}"
        text += os.read(master, 100_000).decode()
    return text


def test_warnings_scroll_above_the_frame_and_the_cursor_comes_back(terminal: tuple[int, io.TextIOWrapper]) -> None:
    master, stream = terminal
    view = LiveView(stream, Summary())
    events: list[Event] = [Phase("load", "tiny"), Notice("warning", "rows left out", "look"), STARTED, step(1)]
    events += [Paused(1, "no power"), TimeJump(90.0, was_asleep=True), Continued(1, 100.0)]
    view.say(KILLED.sentence)
    for record in records(*events, KILLED, HALVED):
        view.show(record)
        view.tick(record.time)
    view.say("finishing the step")
    view.close()
    text = re.sub(r"\x1b\[[0-9;]*m", "", read_frames(master, 1, end="\x1b[?25h"))
    assert text.index("\x1b[?25l") < text.index("warning: rows left out") < text.index("step 1/40")
    assert text.count("warning: rows left out") == 1
    assert text.count("load tiny in 2.0 s") == 1
    for sentence in ("paused, no power", "asleep for 1m 30s", "again after a pause of 1m 40s"):
        assert text.count(sentence) == 1
    assert text.count(KILLED.message) == text.count(HALVED.message) == 1
    assert "finishing the step" in text
    assert text.rstrip().endswith("\x1b[?25h")


def test_a_continued_run_shows_its_phases_and_not_the_old_steps(terminal: tuple[int, io.TextIOWrapper]) -> None:
    again: list[Event] = [STARTED, step(1), KILLED, Phase("load", "tiny"), Phase("compute frozen blocks", "rows")]
    (line,) = lines(summarise(records(*again)))
    assert line.startswith(" compute frozen blocks rows ")
    master, stream = terminal
    view = LiveView(stream, summarise(records(*again[:3])))
    for record in records(*again[3:], dataclasses.replace(STARTED, first_step=1), step(2), start=1_000_010.0):
        view.show(record)
        view.tick(record.time)
    view.close()
    text = re.sub(r"\x1b\[[0-9;]*m", "", read_frames(master, 1, end="\x1b[?25h"))
    assert text.count("load tiny in 1.0 s") == text.count("compute frozen blocks rows in 1.0 s") == 1


def test_a_phase_that_was_left_is_not_said_to_be_done(terminal: tuple[int, io.TextIOWrapper]) -> None:
    master, stream = terminal
    view = LiveView(stream, Summary())
    for record in records(Phase("read", "rows"), Phase("load", "tiny"), RunStopped(0, 2)):
        view.show(record)
        view.tick(record.time)
    view.close()
    text = re.sub(r"\x1b\[[0-9;]*m", "", read_frames(master, 1, end="\x1b[?25h"))
    assert "read rows in 1.0 s" in text
    assert "load tiny in" not in text


def test_a_narrower_terminal_erases_the_rows_that_were_wrapped(terminal: tuple[int, io.TextIOWrapper]) -> None:
    master, stream = terminal
    region = Region(stream)
    region.draw(["x" * 70, "y"], [70, 1])
    termios.tcsetwinsize(stream.fileno(), (24, 40))
    region.draw(["z"], [1])
    second = read_frames(master, 2).split("\x1b[?2026h")[2]
    assert second == "\r\x1b[2A\x1b[Jz\x1b[?2026l"
    region.close()


def test_a_file_is_not_a_terminal() -> None:
    assert not can_draw(io.StringIO())
