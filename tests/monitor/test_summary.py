"""What a journal adds up to: the same numbers for every view, also after a kill and a resume."""

import dataclasses

from journal import FINISHED, HALVED, KILLED, STARTED, records, step, whole_run

from mlx_finetune.events import CheckpointSaved, Evaluated, Phase, RunStarted, RunStopped, Sampled, from_json, to_json
from mlx_finetune.monitor.summary import summarise


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


def test_the_loss_is_smoothed_over_about_twenty_steps() -> None:
    ones = [step(number, 1.0) for number in range(1, 61)]
    summary = summarise(records(STARTED, *ones, step(61, 3.0)))
    assert summary.smooth_loss == 1.0 + 2.0 / 20
    assert summarise(records(STARTED, step(1, 2.0), step(2, 4.0))).smooth_loss == 3.0


def test_a_short_run_is_smoothed_over_its_last_third_so_that_its_first_losses_are_forgotten() -> None:
    losses = [6.0, 5.0, 4.0, 3.0, *[2.0] * 26]
    shown = summarise(records(STARTED, *(step(n, loss) for n, loss in enumerate(losses, 1)))).smooth_loss
    assert shown is not None
    assert 2.0 < shown < 2.1 < sum(losses) / len(losses)


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
    assert summary.smooth_loss == 2.0
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


def test_a_restart_is_counted_once_although_the_next_process_reports_it_again() -> None:
    """The second process cut the first one's lines off, with the first restart among them, and reports both."""
    resumed = dataclasses.replace(STARTED, first_step=2)
    seen_live = records(STARTED, step(1), step(2), step(3), KILLED, resumed, step(3), KILLED, HALVED, resumed, step(3))
    assert summarise(seen_live).restarts == [KILLED, HALVED]
    later = dataclasses.replace(KILLED, step=20)
    assert summarise([*seen_live, *records(later, resumed)]).restarts == [KILLED, HALVED, later]
