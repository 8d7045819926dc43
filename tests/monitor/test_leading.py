"""Where training and validation loss are no one measure (grpo), the reward leads in every view."""

import dataclasses
import re
from pathlib import Path

import pytest
from journal import STARTED, records, step

from mlx_finetune.events import Evaluated, Event, RunFinished, RunStarted, StepDone, to_json
from mlx_finetune.monitor.ending import finished_lines
from mlx_finetune.monitor.plain import step_line, trend_words
from mlx_finetune.monitor.report.facts import read_facts
from mlx_finetune.monitor.report.page import render
from mlx_finetune.monitor.report.parts.curves import curves
from mlx_finetune.monitor.report.parts.headline import headline
from mlx_finetune.monitor.summary import Summary, summarise
from mlx_finetune.monitor.terminal import frame
from mlx_finetune.monitor.tui.curves import loss_block, loss_parts
from mlx_finetune.monitor.tui.watched import Watched
from mlx_finetune.monitor.web.course import Course, curves_json
from mlx_finetune.rundir import EVENTS, RunDir

GRPO = dataclasses.replace(STARTED, task="grpo")


def drawn(number: int, reward: float) -> StepDone:
    return dataclasses.replace(step(number, -0.001 * number), metrics={"reward": reward, "dropped_groups": 0.25})


def rewarded(number: int, reward: float) -> Evaluated:
    return Evaluated(number, 1.0 - reward, 8, is_best=True, seconds=0.1, metrics={"reward": reward})


def run_of_rewards() -> list[Event]:
    steps = [drawn(number, 0.2 + number / 40) for number in range(1, 21)]
    end = RunFinished(20, "finished", 0.9, 0.25, 20, 0.25, 65.0, 1_280, 10**9, result_step=20)
    return [GRPO, rewarded(0, 0.1), *steps, rewarded(20, 0.75), end]


def written(folder: Path, *events: Event) -> RunDir:
    run = RunDir(folder / "adapters" / "demo")
    run.path.mkdir(parents=True)
    lines = [to_json(event, 1_000_000.0 + place) + "\n" for place, event in enumerate(events)]
    (run.path / EVENTS).write_text("".join(lines), "utf-8")
    return run


@pytest.fixture
def summary() -> Summary:
    return summarise(records(*run_of_rewards()[:-1]))


def test_the_reward_leads_its_average_and_its_trend(summary: Summary) -> None:
    assert summary.lead == summary.lead_name == "reward"
    assert summary.trend() == summary.good_trend == "rising"
    assert 0.4 < (summary.smooth_lead or 0.0) < 0.7
    assert [point.loss for point in summary.losses[:2]] == [-0.001, -0.002]


def test_a_rising_reward_and_a_falling_loss_are_green(summary: Summary) -> None:
    assert trend_words(summary) == ("\u2197 rising", "green")
    falling, rising = ([step(number, 2.0 + sign * number / 9) for number in range(1, 18)] for sign in (-1, 1))
    assert trend_words(summarise(records(STARTED, *falling))) == ("\u2198 falling", "green")
    assert trend_words(summarise(records(STARTED, *rising))) == ("\u2197 rising", "yellow")
    assert trend_words(summarise(records(STARTED, step(1, 2.0)))) == ("", "")


def test_a_run_that_is_taken_up_again_forgets_later_rewards(summary: Summary) -> None:
    for record in records(dataclasses.replace(GRPO, first_step=5), drawn(6, 0.9)):
        summary.add(record)
    assert [point.step for point in summary.leading] == [1, 2, 3, 4, 5, 6]


def test_every_other_task_is_led_by_its_loss_whatever_it_measures() -> None:
    measured = dataclasses.replace(step(1, 2.0), metrics={"reward": 0.5})
    summary = summarise(records(STARTED, measured))
    assert (summary.lead, summary.lead_name, summary.good_trend, summary.smooth_lead) == ("", "loss", "falling", 2.0)
    of_an_older_version = summarise(records(GRPO, step(1, 2.0)))
    assert (of_an_older_version.lead, of_an_older_version.smooth_lead) == ("", 2.0)


def test_lines_and_live_view_name_the_reward_and_count_answers(summary: Summary) -> None:
    assert "800 answers/s" in step_line(summary)
    shown = "\n".join(text.plain for text in frame(summary, 1_000_050.0, width=100, height=20))
    assert " reward 0." in shown
    assert "rising   validation loss 0.2500" in shown
    assert "answers/s" in shown


def test_the_text_interface_draws_the_reward_of_both(tmp_path: Path) -> None:
    watched = Watched(written(tmp_path, *run_of_rewards()))
    while watched.advance(1.0):
        pass
    heading, *chart = loss_block(watched, width=80, height=12)
    assert "reward" in heading.plain
    assert any("\u25c6" in line.plain for line in chart), "rewards of the validation rows"
    assert chart[0].plain.startswith(" 0.75 "), "the axis is that of rewards"
    assert loss_parts(watched.summary)[0].plain.startswith("reward 0.")


def test_the_report_has_a_chart_for_each(tmp_path: Path) -> None:
    facts = read_facts(written(tmp_path, *run_of_rewards()))
    section = curves(facts)
    assert section is not None
    titles = [piece.partition("</b>")[0] for piece in section.text.split("<figcaption><b>")[1:]]
    assert titles[:3] == ["Reward", "Validation loss", "Training loss"]
    assert "Answers a second" in titles
    assert "In the first picture higher is better." in section.text
    assert render(facts).count("<b>Reward</b>") == 1, "not once more among the other metrics"
    head = headline(facts).text
    assert "It learned: the mean reward rose, from 0.100 to 0.750." in head
    assert re.search(r"<dt>reward, mean of the last \d+ logged steps</dt>", head)


def test_the_page_is_told_what_leads(tmp_path: Path) -> None:
    with Course(written(tmp_path, *run_of_rewards())).fresh() as course:
        told = curves_json(course, None, None, 100)
    assert (told["lead"], told["units"]) == ("reward", "answers")
    assert course.curves(most=100)["smooth"][1][-1] == pytest.approx(course.summary.smooth_lead, rel=1e-5)


def test_the_last_words_count_what_the_task_counts() -> None:
    last = RunFinished(20, "finished", 0.9, 0.25, 20, 0.25, 65.0, 1_280, 10**9)
    lines = finished_lines(summarise(records(*run_of_rewards())), last, folder="f", name="demo", width=100)
    assert "  1m 05s of training, 1.3k answers, peak memory 1.0 GB" in lines


def test_a_command_that_measures_is_named_once_where_it_is_the_next_one() -> None:
    last = RunFinished(20, "finished", 0.9, 0.25, 20, 0.25, 65.0, 1_280, 10**9)
    scored = summarise(records(dataclasses.replace(STARTED, task="reward")))
    lines = finished_lines(scored, last, folder="f", name="demo", width=100)
    assert [line for line in lines if "mlxft eval" in line] == ["next: mlxft eval demo"]


def test_a_verifier_is_judged_by_its_verdicts_not_by_the_words_beside_them(tmp_path: Path) -> None:
    def evaluated(number: int, loss: float, verdicts: float) -> Evaluated:
        return Evaluated(number, loss, 8, is_best=True, seconds=0.1, metrics={"verdict_loss": verdicts})

    started = dataclasses.replace(STARTED, task="verifier")
    end = RunFinished(2, "finished", 10.0, 2.7, 2, 2.7, 65.0, 80, 10**9, result_step=2)
    run = written(tmp_path, started, evaluated(0, 10.0, 0.7), step(1), step(2), evaluated(2, 2.7, 0.699), end)
    head = headline(read_facts(run)).text
    assert "It learned little: the loss of its verdicts stayed where it was, from 0.700 to 0.699." in head
    assert "surprise" not in head


@pytest.mark.parametrize(
    ("constant", "title"),
    [
        (0.35, "It is no better than the same answer for every row: the loss of its verdicts fell by 50%"),
        (0.5, "It learned: the loss of its verdicts fell by 50%"),
    ],
)
def test_what_the_same_answer_for_every_row_reaches_is_not_learned(tmp_path: Path, constant: float, title: str) -> None:
    def evaluated(number: int, verdicts: float) -> Evaluated:
        return Evaluated(number, 2.0, 8, is_best=True, seconds=0.1, metrics={"verdict_loss": verdicts})

    started = dataclasses.replace(STARTED, task="verifier", constant_loss=constant, constant_accuracy=0.9)
    end = RunFinished(2, "finished", 2.0, 2.0, 2, 2.0, 65.0, 80, 10**9, result_step=2)
    run = written(tmp_path, started, evaluated(0, 0.7), step(1), step(2), evaluated(2, 0.35), end)
    head = headline(read_facts(run)).text
    assert f"{title}, from 0.700 to 0.350." in head
    assert f"The same answer for every row would come to {constant:.3f}." in head


def test_what_is_learned_of_a_row_is_no_share_of_its_tokens(tmp_path: Path) -> None:
    started = RunStarted("demo", "m", "classify", 0, 2, 2, 4, 80, 110, 100, "CPU", "float32")
    page = render(read_facts(written(tmp_path, started, step(1), step(2))))
    assert "Rows a second" in page
    assert "Rows learned from in a second of a step." in page


def test_a_loss_below_zero_is_lower_where_it_falls() -> None:
    last = RunFinished(20, "finished", -1.0, -2.0, 20, -2.0, 65.0, 1_280, 10**9)
    lines = finished_lines(summarise(records(GRPO)), last, folder="f", name="demo", width=100)
    assert "  validation loss -1.0000 -> -2.0000, 100% lower (best at step 20)" in lines
