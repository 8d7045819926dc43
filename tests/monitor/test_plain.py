"""Plain lines: readable in a file, one thing a line, nothing hidden and not too much."""

import dataclasses
import io

import pytest
from journal import HALVED, KILLED, STARTED, records, step, whole_run

from mlx_finetune.events import Continued, Event, Notice, Paused, Phase, Sampled, TimeJump
from mlx_finetune.monitor.plain import PlainView, amount_done, number, one_line, started_lines, state_lines
from mlx_finetune.monitor.summary import Summary, summarise


def shown(*events: Event, seconds: float = 1.0) -> list[str]:
    stream = io.StringIO()
    view = PlainView(stream, Summary())
    for record in records(*events, seconds=seconds):
        view.show(record)
    view.close()
    return stream.getvalue().splitlines()


def test_a_whole_run_reads_from_the_first_download_to_the_last_sample() -> None:
    stream = io.StringIO()
    view = PlainView(stream, Summary())
    for record in whole_run():
        view.show(record)
    lines = stream.getvalue().splitlines()
    assert lines[7].startswith("step 1/40  loss 2.4750  lr 2.00e-04  norm 0.50  800 targets/s  memory 2.0 GB  done ")
    assert lines[:7] == [
        "download: tiny-llama (10.0 MB of 20.0 MB)",
        "warning: train: 3 of 83 rows are too long",
        "hint: mlxft data check RECIPE",
        "demo: sft of tiny-llama on CPU, float32; trains 1.0k of 50.0k parameters (2.0%)",
        "40 steps, 20 in an epoch; 80 training rows, 8 for validation",
        "step 0/40  validation loss 2.5000 (before training)",
        "step 0/40  Hello? -> I do not know.",
    ]
    assert "step 30/40  validation loss 1.2500 * best so far" in lines
    assert "step 30/40  checkpoint saved, 4.0 MB in 0.2 s" in lines
    assert "step 40/40  validation loss 1.5000 (best 1.2500 at step 30)" in lines
    assert len([line for line in lines if "  loss " in line]) == 40


def test_a_long_run_has_about_a_hundred_step_lines_and_always_the_last() -> None:
    long = STARTED.__class__("demo", "m", "sft", 0, 5000, 100, 8, 8, 1, 2, "CPU", "float32")
    lines = shown(long, *(step(number) for number in range(1, 5001)))
    steps = [line for line in lines if "  loss " in line]
    assert 95 <= len(steps) <= 105
    assert steps[-1].startswith("step 5000/5000")


def test_an_answer_is_printed_again_only_when_it_changes() -> None:
    lines = shown(STARTED, Sampled(0, "q", "a"), Sampled(5, "q", "a"), Sampled(10, "q", "b"))
    assert lines[2:] == ["step 0/40  q -> a", "step 10/40  q -> b"]


def test_a_phase_is_named_once_and_its_progress_every_ten_seconds() -> None:
    progress = [Phase("load", "x", done, 100) for done in range(0, 100, 4)]
    assert shown(*progress) == [
        "load: x (0 of 100)",
        "load: x (40 of 100)",
        "load: x (80 of 100)",
    ]


def test_a_continued_run_shows_its_phases_like_a_new_one() -> None:
    before: list[Event] = [Phase("load", "x"), STARTED, step(1), KILLED]
    again: list[Event] = [Phase("read", "x"), Phase("load", "x"), Phase("compute frozen blocks", "training rows", 0, 9)]
    resumed = dataclasses.replace(STARTED, first_step=1)
    at_work: list[Event] = [step(2), Phase("answer", "Hello?", 0, 1)]
    lines = shown(*before, *again, resumed, *at_work)
    assert [line for line in lines if line.startswith(("read", "load", "compute", "answer"))] == [
        "load: x",
        "read: x",
        "load: x",
        "compute frozen blocks: training rows (0 of 9)",
    ]


def test_one_step_on_one_row_is_not_many() -> None:
    one = dataclasses.replace(STARTED, total_steps=1, steps_per_epoch=1, train_rows=1, valid_rows=0)
    assert shown(one)[1] == "1 step, 1 in an epoch; 1 training row, 0 for validation"


def test_sequences_are_named_where_they_are_more_than_the_rows() -> None:
    rows = "80 training rows, 8 for validation"
    same = dataclasses.replace(STARTED, train_sequences=80, valid_sequences=8)
    assert shown(same)[1] == f"40 steps, 20 in an epoch; {rows}"
    more = dataclasses.replace(STARTED, train_sequences=131, valid_sequences=8)
    assert shown(more)[1] == f"40 steps, 20 in an epoch; {rows}; 131 and 8 sequences made of them"


def test_control_characters_of_an_answer_never_reach_the_terminal() -> None:
    (line,) = shown(Sampled(0, "q", "a\x1b[2Jb\x07\nc"))
    assert line == "step 0  q -> a [2Jb c"


def test_a_note_has_no_second_line_without_a_hint() -> None:
    assert shown(Notice("info", "one")) == ["note: one"]


def test_a_stream_that_is_closed_does_not_end_the_run() -> None:
    class Closed(io.StringIO):
        def write(self, s: str) -> int:
            raise BrokenPipeError

    view = PlainView(Closed(), Summary())
    view.say("one")
    view.say("two")


@pytest.mark.parametrize(
    ("phase", "text"),
    [
        (Phase("a"), ""),
        (Phase("a", "", 1, 3, "rows"), "1 of 3 rows"),
        (Phase("a", "", None, 1500, "rows"), "1,500 rows"),
        (Phase("a", "", 12_300_000, 98_000_000, "bytes"), "12.3 MB of 98.0 MB"),
    ],
)
def test_progress_is_shown_in_its_own_unit(phase: Phase, text: str) -> None:
    assert amount_done(phase) == text


def test_a_number_that_is_null_is_called_not_finite() -> None:
    assert number(None, 4) == "not finite"
    assert number(0.00018, 2, scientific=True) == "1.80e-04"


def test_long_text_is_cut_with_dots() -> None:
    assert one_line("a " * 50, 11) == "a a a a..."


def test_pauses_and_jumps_of_time_are_a_sentence_each() -> None:
    lines = shown(
        STARTED,
        Paused(3, "the battery is at 19%"),
        TimeJump(29_000.0, was_asleep=True),
        Continued(3, 3725.0),
        TimeJump(3600.0, was_asleep=False),
        TimeJump(-65.0, was_asleep=False),
    )
    assert lines[2:] == [
        "step 3/40  paused, the battery is at 19%; what is done is saved, it goes on by itself",
        "note: the machine was asleep for 8h 03m; training goes on where it was",
        "step 3/40  training again after a pause of 1h 02m",
        "note: the clock was set forward by 1h 00m; training takes no notice",
        "note: the clock was set back by 1m 05s; training takes no notice",
    ]


def test_a_restart_is_told_once_also_where_the_supervisor_has_said_it_before() -> None:
    assert shown(HALVED) == [
        "the GPU ran out of memory; it goes on from step 2, now more carefully: half of a microbatch at a time "
        "(equal up to rounding, no longer bit for bit)"
    ]
    stream = io.StringIO()
    view = PlainView(stream, Summary())
    view.say(KILLED.sentence)
    for record in records(KILLED, HALVED, KILLED, HALVED):
        view.show(record)
    assert stream.getvalue().splitlines() == [KILLED.sentence, HALVED.sentence]


def test_who_begins_to_look_on_is_told_where_the_run_is() -> None:
    begin = state_lines(summarise([*records(STARTED, KILLED), *whole_run()[4:-1]]))
    assert begin[:2] == shown(STARTED)
    assert begin[2] == KILLED.sentence
    assert begin[3].startswith("step 40/40  validation loss 1.5")
    assert begin[4].startswith("step 40/40  loss ")
    assert state_lines(summarise(records(Phase("load", "x", 1, 9)))) == ["load: x (1 of 9)"]
    assert state_lines(Summary()) == []


def test_a_head_that_is_trained_too_is_no_more_than_everything() -> None:
    started = dataclasses.replace(STARTED, trainable_parameters=1_100, total_parameters=1_000)
    assert "trains 1.1k of 1.1k parameters (100.0%)" in started_lines(started)[0]
