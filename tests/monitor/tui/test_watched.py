"""A run that is followed: read in slices, its curves short with their extremes, its state in words."""

import dataclasses
import math
import os
from pathlib import Path

import pytest
from golden_screens import at_work
from screen_runs import KILLED, READING, START, STARTED, append, at_pace, step, working_run, write_run

from mlx_finetune.events import Evaluated, Event, Paused, Phase, RunFailed, RunFinished, RunStopped
from mlx_finetune.monitor.tui.happened import checkpoints_lines
from mlx_finetune.monitor.tui.watched import MOST_POINTS, Series, Watched
from mlx_finetune.monitor.tui.words import machine_parts, seconds_left, share_done, state_of
from mlx_finetune.rundir import EVENTS, SUPERVISOR, RunDir, take_lock

FINISHED = RunFinished(1, "finished", 2.5, 1.25, 1, 1.25, 80.0, 16_000, 10**9, "", 1)


def loaded(run: RunDir) -> Watched:
    watched = Watched(run)
    while watched.is_loading:
        watched.advance(1.0)
    return watched


def test_a_long_curve_keeps_its_spikes_its_ends_and_few_points() -> None:
    series = Series()
    for start in range(0, 100_000, 777):
        xs = range(start, min(start + 777, 100_000))
        series.extend(xs, [100.0 if x == 33_333 else -100.0 if x == 77_777 else math.sin(x) for x in xs])
    assert len(series.xs) <= 2 * MOST_POINTS
    assert (33_333, 100.0) in zip(series.xs, series.ys, strict=True)
    assert (77_777, -100.0) in zip(series.xs, series.ys, strict=True)
    assert (series.xs[0], series.xs[-1]) == (0, 99_999)
    thin = series.points(100)
    assert len(thin) <= 100
    assert (33_333, 100.0) in thin
    assert series.points(100, since=50_000)[0][0] >= 50_000


def test_what_is_not_a_number_is_no_point() -> None:
    series = Series()
    series.extend([1, 2, 3], [None, math.nan, 0.0])
    assert series.points(10) == [(3, 0.0)]


def test_a_long_journal_is_read_in_slices_and_shown_meanwhile(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", working_run())
    watched = Watched(run)
    assert watched.advance(0.0)
    assert watched.is_loading
    assert state_of(watched).word == "reading"
    slices = 1
    while watched.is_loading:
        watched.advance(0.0)
        slices += 1
    assert slices > 300
    assert watched.summary.steps_done == 320
    assert len(watched.curves["lead"].xs) == 320
    assert len(watched.curves["gpu"].xs) == 64


def test_curves_go_back_with_a_run_that_is_resumed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", working_run(steps=50))
    watched = loaded(run)
    append(run, at_pace([dataclasses.replace(STARTED, first_step=20), step(21), step(22)], start=START + 200))
    while watched.advance(1.0):
        pass
    for name in ("lead", "smooth", "learning_rate", "speed"):
        assert watched.curves[name].xs == [*range(1, 21), 21, 22], name
    assert watched.curves["gpu"].xs == [5, 10, 15, 20]


def test_a_restart_that_the_new_process_repeats_is_listed_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", at_pace([STARTED, step(1), KILLED, KILLED, STARTED]))
    assert [one.event for one in loaded(run).records].count(KILLED) == 1


@pytest.mark.parametrize(
    ("events", "at_work", "word", "more"),
    [
        ([Phase("load", "tiny", 1, 4, "files")], True, "preparing", "load tiny 1 of 4 files"),
        ([STARTED], True, "training", "validation loss of the base model"),
        ([STARTED, Evaluated(0, 2.5, 10, True, 0.1)], True, "training", "the first step, which compiles the model"),
        ([STARTED, step(1)], True, "training", ""),
        ([STARTED, step(1), Phase("answer", "Hi?", 0, 2, "prompts")], True, "training", "answer Hi? 0 of 2 prompts"),
        ([STARTED, step(1), Paused(1, "the battery is at 19%")], True, "paused", "the battery is at 19%"),
        ([STARTED, step(1), RunStopped(1, 15)], True, "stopping", "everything up to there is saved"),
        ([STARTED, step(1), RunStopped(1, 15)], False, "stopped", "everything up to there is saved"),
        ([STARTED, step(1), RunFailed("no\nmemory", "", 1)], False, "failed", "no memory"),
        ([STARTED, step(1), RunFailed("no memory", "", 1)], True, "starting again", ""),
        ([STARTED, step(1), FINISHED], True, "finished", ""),
        ([STARTED, step(1)], False, "gone", "without a word"),
        ([], False, "not started", "its journal is empty"),
        ([], True, "preparing", "starting ..."),
    ],
)
def test_the_state_of_a_run_is_a_word(tmp_path: Path, events: list[Event], at_work: bool, word: str, more: str) -> None:
    run = write_run(tmp_path / "run", at_pace(events))
    lock = take_lock(run.file(SUPERVISOR)) if at_work else None
    try:
        state = state_of(loaded(run))
    finally:
        if lock is not None:
            os.close(lock)
    assert (state.word, state.more) == (word, more)


def test_a_stopped_run_that_is_taken_up_again_is_not_stopping(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", at_pace([STARTED, step(1), RunStopped(1, 15)]))
    watched = loaded(run)
    assert state_of(watched).word == "stopped"
    with at_work(run):
        watched._next_look = 0.0
        watched.advance(1.0)
        state = state_of(watched)
    assert (state.word, state.more) == ("preparing", "to go on from step 1")


def test_the_time_left_is_told_only_while_steps_are_taken(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", working_run())
    assert seconds_left(loaded(run), START + 640) is None
    with at_work(run):
        watched = loaded(run)
        left = seconds_left(watched, watched.summary.last_time)
        assert left is not None
        assert left == pytest.approx(160.0, rel=0.02)
        assert seconds_left(watched, watched.summary.last_time + 10) == pytest.approx(left - 10)
        assert seconds_left(watched, watched.summary.last_time + 200) is None
        assert share_done(watched) == 0.8
        append(run, at_pace([Paused(320, "power")], start=START + 700))
        watched.advance(1.0)
        assert seconds_left(watched, START + 640) is None


def test_a_folder_that_goes_away_leaves_what_was_read(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", working_run(steps=5))
    watched = loaded(run)
    run.path.rename(tmp_path / "away")
    watched._next_look = 0.0
    assert watched.advance(1.0)
    assert (watched.is_gone, watched.summary.steps_done) == (True, 5)
    assert state_of(watched).word == "deleted"
    (tmp_path / "away").rename(run.path)
    run.file(EVENTS).unlink()
    watched._next_look = 0.0
    watched.advance(1.0)
    assert (watched.is_gone, watched.summary.steps_done) == (False, 0)


def test_what_the_machine_does_not_tell_is_left_out_of_the_short_line() -> None:
    assert machine_parts(None) == []
    reading = dataclasses.replace(READING, gpu_percent=None, throttled="the GPU, by heat")
    assert machine_parts(reading) == ["CPU 34%", "21 W", "120 GB of disk free", "slowed down: the GPU, by heat"]


def test_a_checkpoint_is_offered_only_where_one_can_be_saved(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", working_run()[:3])
    assert checkpoints_lines(loaded(run), START, width=60)[0].plain == " no checkpoint was saved"
    with at_work(run):
        assert checkpoints_lines(loaded(run), START, width=60)[0].plain == " no checkpoint so far; c saves one now"
