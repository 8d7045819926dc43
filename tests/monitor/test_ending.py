"""The last words: what was learned, at what price, where it is, what to type next."""

import dataclasses

import pytest
from journal import FINISHED, HALVED, KILLED, STARTED, records, step, whole_run

from mlx_finetune.events import Sampled
from mlx_finetune.monitor.ending import compared_lines, finished_lines, learned_lines, restarted_lines
from mlx_finetune.monitor.summary import summarise


def test_the_report_of_a_finished_run_word_for_word() -> None:
    lines = finished_lines(summarise(whole_run()), FINISHED, folder="adapters/demo", name="demo", width=60)
    assert lines == [
        "",
        "finished at step 40: all steps done",
        "",
        "  validation loss 2.5000 -> 1.2500, 50% lower (best at step 30; 1.5000 at the end)",
        "",
        "  prompt: Hello?",
        "",
        "  before                       after step 30",
        "  I do not know.               Good day to you.",
        "",
        "  1m 05s of training, 12.3k targets, peak memory 2.0 GB",
        "  adapter in adapters/demo",
        "",
        "what it learned, measured: mlxft eval demo",
        "next: mlxft chat demo",
    ]


def test_a_run_that_got_worse_says_that_it_did_not_learn() -> None:
    worse = dataclasses.replace(FINISHED, first_loss=1.0, best_loss=1.2, best_step=30, last_loss=1.4, result_step=30)
    lines = learned_lines(summarise([]), worse)
    assert lines[0] == "validation loss 1.0000 -> 1.2000, 20% higher (best at step 30; 1.4000 at the end)"
    assert lines[1].startswith("the start was better still: it did not learn what the validation rows ask for;")


def test_losses_that_are_no_numbers_after_the_start_are_not_taken_for_a_missing_validation_set() -> None:
    broken = dataclasses.replace(FINISHED, first_loss=1.0, best_loss=None, best_step=None, last_loss=None)
    assert learned_lines(summarise([]), broken) == [
        "validation loss 1.0000 before training; after a step it was no number"
    ]


@pytest.mark.parametrize(("constant", "num_lines"), [(1.25, 2), (1.4, 1)])
def test_a_result_that_tells_no_rows_apart_is_told(constant: float, num_lines: int) -> None:
    started = dataclasses.replace(STARTED, task="classify", constant_loss=constant, constant_accuracy=0.6)
    lines = learned_lines(summarise(records(started)), FINISHED)
    said = "no better than the same answer for every row: validation loss 1.2500, and 1.2500 with that"
    assert lines[1:] == [said][: num_lines - 1]


def test_a_change_of_less_than_a_percent_is_not_called_none() -> None:
    moved = dataclasses.replace(FINISHED, first_loss=0.5, best_loss=0.5, best_step=0, last_loss=0.50001)
    line = learned_lines(summarise(records()), moved)[0]
    assert line.startswith("validation loss 0.5000 -> 0.5000, less than 1% higher (")


def test_rewards_that_were_all_equal_are_the_reason_why_nothing_was_learned() -> None:
    same = dataclasses.replace(FINISHED, first_loss=1.0, best_loss=1.0, best_step=0, last_loss=1.0)
    blind = [dataclasses.replace(step(number), metrics={"dropped_groups": 1.0}) for number in (1, 2)]
    lines = learned_lines(summarise(records(*blind)), same)
    assert lines[0].startswith("validation loss 1.0000 -> 1.0000, unchanged (")
    assert lines[1].startswith("no step taught it anything: the rewards of every group were all equal")
    some = dataclasses.replace(step(3), metrics={"dropped_groups": 0.5})
    assert "lower learning rate" in learned_lines(summarise(records(*blind, some)), same)[1]


def test_the_loss_is_that_of_the_weights_that_are_the_result() -> None:
    kept_last = dataclasses.replace(FINISHED, result_step=40)
    (line,) = learned_lines(summarise([]), kept_last)
    assert (
        line == "validation loss 2.5000 -> 1.5000, 40% lower (at the end, which is the result; best 1.2500 at step 30)"
    )
    assert kept_last.result_loss == 1.5
    kept_best = dataclasses.replace(FINISHED, result_step=30)
    assert learned_lines(summarise([]), kept_best) == learned_lines(summarise([]), FINISHED)
    assert kept_best.result_loss == FINISHED.result_loss == 1.25
    best_at_the_end = dataclasses.replace(FINISHED, best_step=40, best_loss=1.5, result_step=40)
    (line,) = learned_lines(summarise([]), best_at_the_end)
    assert line == "validation loss 2.5000 -> 1.5000, 40% lower (best at step 40)"


def test_a_verdict_from_few_validation_rows_says_so() -> None:
    one = summarise(records(dataclasses.replace(STARTED, valid_rows=1)))
    more = "a validation file or a larger data.val_split tells more"
    assert learned_lines(one, FINISHED)[-1] == f"1 validation row is few to judge by: {more}"
    few = summarise(records(dataclasses.replace(STARTED, valid_rows=7)))
    assert learned_lines(few, FINISHED)[-1] == f"7 validation rows are few to judge by: {more}"
    assert len(learned_lines(summarise(records(STARTED)), FINISHED)) == 1


def test_the_peak_is_told_once_beside_what_was_planned() -> None:
    planned = "peak memory 2.00 GB of 1.90 GB planned (+5%), 1.5 s a step of 1.4 s planned (+7%)"
    told = dataclasses.replace(FINISHED, planned=planned)
    lines = finished_lines(summarise(whole_run()), told, folder="adapters/demo", name="demo", width=100)
    assert [line for line in lines if "peak" in line] == [f"  {planned}"]
    assert "  1m 05s of training, 12.3k targets" in lines


def test_without_a_validation_set_the_training_loss_is_told() -> None:
    none = dataclasses.replace(FINISHED, first_loss=None, best_loss=None, best_step=None, last_loss=None)
    summary = summarise(records(STARTED, step(1, 2.0)))
    assert learned_lines(summary, none) == ["no validation set; training loss, the last logged step: 2.0000"]


def test_the_first_prompt_whose_answer_changed_is_compared() -> None:
    summary = summarise(
        records(Sampled(0, "a", "same"), Sampled(0, "b", "old"), Sampled(40, "a", "same"), Sampled(40, "b", "new"))
    )
    lines = compared_lines(summary, FINISHED, width=60)
    assert lines[1] == "  prompt: b"
    assert lines[4] == "  old                          new"


def test_nothing_is_compared_without_samples_of_both() -> None:
    assert compared_lines(summarise(records(Sampled(0, "a", "x"))), FINISHED, width=80) == []
    assert compared_lines(summarise(records(Sampled(30, "a", "x"))), FINISHED, width=80) == []


def test_long_answers_are_cut_and_an_empty_one_is_named() -> None:
    summary = summarise(records(Sampled(0, "a", "word " * 200), Sampled(30, "a", " ")))
    lines = compared_lines(summary, FINISHED, width=60)
    assert len(lines) == 4 + 8
    assert lines[4].endswith("(nothing)")
    assert lines[-1] == "  ..."


def test_restarts_are_told_at_the_end_with_their_causes_and_what_they_cost() -> None:
    summary = summarise(records(KILLED, dataclasses.replace(KILLED, step=9), HALVED))
    lines = [
        "restarted twice: the training process was killed (SIGKILL)",
        "restarted once: the GPU ran out of memory",
        "equal to a run without a restart up to rounding, not bit for bit",
    ]
    assert restarted_lines(summary) == lines
    report = finished_lines(summary, FINISHED, folder="adapters/demo", name="demo", width=100)
    assert report[-5:-2] == [f"  {line}" for line in lines]
    assert restarted_lines(summarise(records(KILLED))) == [f"restarted once: {KILLED.message}"]
