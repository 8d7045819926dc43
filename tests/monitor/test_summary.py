"""What a journal adds up to: the same numbers for every view, also after a kill and a resume."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from journal import FINISHED, HALVED, KILLED, STARTED, records, step, whole_run

from mlx_finetune.events import (
    CheckpointSaved,
    Continued,
    Evaluated,
    Event,
    Notice,
    Paused,
    Phase,
    Record,
    RunStarted,
    RunStopped,
    Sampled,
    TimeJump,
    from_json,
    to_json,
)
from mlx_finetune.monitor.summary import Summary, summarise


def test_a_whole_run_keeps_its_first_best_and_last_numbers() -> None:
    summary = summarise(whole_run())
    assert summary.steps_done == 40
    assert summary.total_steps == 40
    assert summary.first_evaluation == Evaluated(0, 2.5, 100, True, 0.1)
    assert summary.best_evaluation == Evaluated(30, 1.25, 100, True, 0.1)
    assert summary.answers(0) == {"Hello?": "I do not know."}
    assert list(summary.sample_steps()) == [0, 30, 40]
    assert summary.outcome == FINISHED
    assert summary.trend() == "falling"


def test_the_best_is_that_of_the_last_measure_where_a_fork_is_measured_otherwise() -> None:
    losses = [(0, 2.5, False), (10, 1.25, True), (20, 1.5, False), (20, 3.5, True), (30, 3.25, True), (40, 3.75, False)]
    happened = [Evaluated(number, loss, 9, is_best, 0.1) for number, loss, is_best in losses]
    bests = [summarise(records(*happened[:count])).best_evaluation for count in range(1, 7)]
    assert [best and best.loss for best in bests] == [2.5, 1.25, 1.25, 3.5, 3.25, 3.25]


def test_the_time_between_a_stop_and_the_start_that_continues_is_not_counted() -> None:
    first: list[tuple[int, Event]] = [
        (0, Phase("read")),
        (1, Phase("load")),
        (2, STARTED),
        (3, step(1, 1.0)),
        (4, Phase("answer")),
        (6, step(2, 1.0)),
    ]
    again: list[tuple[int, Event]] = [
        (500, Notice("info", "goes on")),
        (500, Phase("read")),
        (501, STARTED),
        (504, step(3, 1.0)),
    ]
    summary = summarise([Record(float(time), number, event) for number, (time, event) in enumerate(first)])
    assert summary.took_seconds == 6
    summary = summarise([Record(float(time), number, event) for number, (time, event) in enumerate(first + again)])
    assert summary.took_seconds == 6 + 4
    assert Summary().took_seconds is None


def test_the_loss_is_smoothed_over_about_twenty_steps() -> None:
    ones = [step(number, 1.0) for number in range(1, 61)]
    summary = summarise(records(STARTED, *ones, step(61, 3.0)))
    assert summary.smooth_lead == 1.0 + 2.0 / 20
    assert summarise(records(STARTED, step(1, 2.0), step(2, 4.0))).smooth_lead == 3.0


def test_a_short_run_is_smoothed_over_its_last_third_so_that_its_first_losses_are_forgotten() -> None:
    losses = [6.0, 5.0, 4.0, 3.0, *[2.0] * 26]
    shown = summarise(records(STARTED, *(step(n, loss) for n, loss in enumerate(losses, 1)))).smooth_lead
    assert shown is not None
    assert 2.0 < shown < 2.1 < sum(losses) / len(losses)


def test_what_there_was_at_the_end_does_not_lag_behind_a_loss_that_falls() -> None:
    assert summarise(records(STARTED)).lead_at_end is None
    summary = summarise(records(STARTED, *(step(number, 4.0 / number) for number in range(1, 81))))
    mean = sum(4.0 / number for number in range(71, 81)) / 10
    assert summary.lead_at_end == ("training loss, mean of the last 10 logged steps", pytest.approx(mean))
    assert summary.smooth_lead is not None
    assert summary.smooth_lead > mean


def test_steps_after_the_checkpoint_of_a_resumed_run_are_forgotten() -> None:
    resumed = RunStarted("demo", "tiny-llama", "sft", 2, 40, 20, 80, 8, 1_000, 50_000, "CPU", "float32")
    summary = summarise(
        records(
            Evaluated(0, 2.5, 100, True, 0.1),
            STARTED,
            *(step(number) for number in range(1, 6)),
            Evaluated(5, 0.1, 100, True, 0.1),
            CheckpointSaved(5, "checkpoint-5", 1, 0.1),
            resumed,
            step(3, 9.0),
        )
    )
    assert [point.step for point in summary.losses] == [1, 2, 3]
    assert [one.step for one in summary.evaluations] == [0]
    assert summary.checkpoints == []
    assert summary.steps_done == 3


def test_a_second_run_from_the_start_forgets_the_first() -> None:
    summary = summarise([*whole_run(), *records(Phase("load"), Evaluated(0, 3.0, 9, True, 0.1), STARTED, step(1, 7.0))])
    assert [point.loss for point in summary.losses] == [7.0]
    assert [one.loss for one in summary.evaluations] == [3.0]
    assert summary.outcome is None


def test_a_loss_that_is_not_finite_does_not_spoil_the_average() -> None:
    line = to_json(step(2, float("nan")), 5.0)
    record = from_json(line)
    assert record is not None
    summary = summarise([*records(STARTED, step(1, 2.0)), record])
    assert summary.smooth_lead == 2.0
    assert summary.steps_done == 2


def test_remaining_time_is_the_recent_pace_times_the_steps_left() -> None:
    summary = summarise(records(STARTED, *(step(number) for number in range(1, 21)), seconds=3.0))
    assert summary.remaining_seconds() == 60.0
    assert summarise(records(STARTED)).remaining_seconds() is None


def test_the_trend_needs_a_few_steps_and_a_change_of_one_percent() -> None:
    assert summarise(records(STARTED, step(1), step(2))).trend() == ""
    assert summarise(records(STARTED, *(step(number, 1.0) for number in range(1, 20)))).trend() == "flat"
    assert summarise(records(STARTED, *(step(number, number) for number in range(1, 20)))).trend() == "rising"


def test_progress_of_a_phase_does_not_restart_its_clock() -> None:
    summary = summarise(records(Phase("load", "x", 1, 9), Phase("load", "x", 5, 9), Phase("load", "x", 9, 9)))
    assert summary.phase_time == 1_000_000.0
    assert summary.phase == Phase("load", "x", 9, 9)


def test_a_stopped_run_says_so_until_it_goes_on() -> None:
    stopped = records(STARTED, step(1), RunStopped(1, 2))
    assert summarise(stopped).outcome == RunStopped(1, 2)
    assert summarise([*stopped, *records(Phase("load"))]).outcome is None


def test_answers_of_one_step_are_by_prompt() -> None:
    summary = summarise(records(Sampled(0, "a", "1"), Sampled(0, "b", "2"), Sampled(5, "a", "3")))
    assert summary.answers(0) == {"a": "1", "b": "2"}


LONG = replace(STARTED, total_steps=200)


def steps_with_a_gap(at: int, gap: float, told: Sequence[Event]) -> list[Record]:
    """A step a second; after step ``at`` the clock moves by ``gap``, and ``told`` is reported before the next step."""
    found = records(LONG, *(step(number) for number in range(1, at + 1)))
    told_at = found[-1].time + (gap if isinstance(told[0], Paused) else 0)
    found += [Record(told_at, 0, event) for event in told]
    rest = records(*(step(number) for number in range(at + 1, 101)), start=found[at].time + gap + 1)
    return [*found, *rest]


def remaining_after_each_step(journal: list[Record]) -> list[float]:
    summary, found = Summary(), []
    for record in journal:
        summary.add(record)
        left = summary.remaining_seconds()
        if left is not None and record.event == step(summary.steps_done):
            found.append(left)
    return found


@pytest.mark.parametrize("at", [1, 3, 30])
def test_a_pause_is_not_part_of_the_pace(at: int) -> None:
    pause = [Paused(at, "the battery is at 19%"), Continued(at, 5000.0)]
    left = remaining_after_each_step(steps_with_a_gap(at, 5000.0, pause))
    assert left == [200.0 - number for number in range(1, 101)]


def test_sleep_during_a_pause_is_not_taken_out_twice() -> None:
    told = [Paused(30, "the battery is at 19%"), TimeJump(4000.0, was_asleep=True), Continued(30, 5000.0)]
    journal = steps_with_a_gap(30, 5000.0, told)
    assert remaining_after_each_step(journal) == [200.0 - number for number in range(1, 101)]
    summary = summarise(journal)
    assert (summary.pause_seconds, summary.sleep_seconds) == (5000.0, 4000.0)


def test_a_clock_set_during_a_pause_is_taken_out_as_well() -> None:
    told = [Paused(30, "the battery is at 19%"), TimeJump(-3600.0, was_asleep=False), Continued(30, 5000.0)]
    left = remaining_after_each_step(steps_with_a_gap(30, 5000.0 - 3600.0, told))
    assert left == [200.0 - number for number in range(1, 101)]


def test_the_night_between_a_stop_and_a_resumption_is_not_part_of_the_pace() -> None:
    evening = records(LONG, *(step(number) for number in range(1, 21)))
    morning = records(replace(LONG, first_step=20), *(step(number) for number in range(21, 24)), start=1_030_000.0)
    assert summarise([*evening, *morning]).remaining_seconds() == 177.0


@pytest.mark.parametrize("jump", [TimeJump(3600.0, True), TimeJump(3600.0, False), TimeJump(-3600.0, False)])
@pytest.mark.parametrize("at", [1, 3, 30])
def test_a_jump_of_time_within_a_step_is_not_part_of_the_pace(at: int, jump: TimeJump) -> None:
    """The step reports itself before the jump is told: only that one line may be wrong."""
    journal = records(LONG, *(step(number) for number in range(1, 101)))
    late = [
        Record(record.time + jump.seconds if record.index >= at else record.time, 0, record.event) for record in journal
    ]
    late.insert(at + 1, Record(late[at].time, 0, jump))
    left = remaining_after_each_step(late)
    expected = [200.0 - number for number in range(1, 101)]
    assert left[: at - 1] + left[at:] == pytest.approx(expected[: at - 1] + expected[at:])


@pytest.mark.parametrize("jump", [TimeJump(3600.0, True), TimeJump(3600.0, False), TimeJump(-3600.0, False)])
@pytest.mark.parametrize("at", [1, 3, 30])
def test_a_jump_of_time_after_a_step_is_not_part_of_the_pace(at: int, jump: TimeJump) -> None:
    journal = records(LONG, *(step(number) for number in range(1, 101)))
    late = [
        Record(record.time + jump.seconds if record.index > at else record.time, 0, record.event) for record in journal
    ]
    late.insert(at + 1, Record(late[at].time + jump.seconds, 0, jump))
    assert remaining_after_each_step(late) == pytest.approx([200.0 - number for number in range(1, 101)])


def test_a_run_is_paused_until_it_continues_ends_or_begins_anew() -> None:
    paused = Paused(1, "the battery is at 19%")
    journal = records(STARTED, step(1), paused)
    assert summarise(journal).paused == paused
    for event in (Continued(1, 5.0), RunStopped(1, 15), STARTED):
        assert summarise([*journal, *records(event)]).paused is None


def test_a_restart_is_counted_once_although_the_next_process_reports_it_again() -> None:
    """The second process cut the first one's lines off, with the first restart among them, and reports both."""
    resumed = replace(STARTED, first_step=2)
    seen_live = records(STARTED, step(1), step(2), step(3), KILLED, resumed, step(3), KILLED, HALVED, resumed, step(3))
    assert summarise(seen_live).restarts == [KILLED, HALVED]
    later = replace(KILLED, step=20)
    assert summarise([*seen_live, *records(later, resumed)]).restarts == [KILLED, HALVED, later]
