"""What stands in a report: the golden page, and the sentences of runs that went otherwise."""

import json
import re
from dataclasses import replace
from pathlib import Path

import golden_report
import pytest
from reported_runs import STARTED, events, step, words, write_events, write_run

from mlx_finetune.events import (
    Evaluated,
    Event,
    Paused,
    RunFailed,
    RunFinished,
    RunStarted,
    RunStopped,
    Sampled,
    TimeJump,
)
from mlx_finetune.monitor.report.choices import Choice, read_choices
from mlx_finetune.monitor.report.facts import Wait, read_facts
from mlx_finetune.monitor.report.page import render
from mlx_finetune.recipe.resolve import flatten_recipe, render_resolved
from mlx_finetune.recipe.schema import Recipe, section_names
from mlx_finetune.rundir import METRICS, RunDir


def page_of(folder: Path, *listed: Event) -> str:
    run = RunDir(folder / "adapters" / "demo")
    run.path.mkdir(parents=True)
    write_events(run, list(listed))
    return words(render(read_facts(run)))


def test_the_golden_page(tmp_path: Path) -> None:
    assert golden_report.page(tmp_path) == golden_report.GOLDEN.read_text("utf-8")


def test_every_part_is_there_and_can_be_reached_from_the_top(tmp_path: Path) -> None:
    page = golden_report.page(tmp_path)
    anchors = re.findall(r'<a href="#(\w+)">', page)
    assert anchors == re.findall(r'<section id="(\w+)">', page)
    assert anchors == [
        *("answers", "curves", "evaluation", "tokens", "data"),
        *("recipe", "machine", "history", "reproduce", "files"),
    ]


def test_the_newest_evaluation_has_the_word(tmp_path: Path) -> None:
    page = words(golden_report.page(tmp_path))
    head = page.partition("Answers before")[0]
    assert "Newest evaluation, test : It learned it: 40 of 50 right, was 10 of 50." in head
    assert page.count("Interrupted: the figures are of what was measured so far.") == 1


def test_an_evaluation_of_weights_that_are_gone_says_so_and_is_not_the_newest(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    test = run.path / "eval" / "test.json"
    test.write_text(json.dumps(json.loads(test.read_text()) | {"step": 20}))
    run.file(METRICS).write_text('{"result_step": 40}')
    page = words(render(read_facts(run)))
    assert "Newest evaluation, older : " in page
    assert page.count("Of step 20, while the run's weights are of step 40.") == 1
    (run.path / "eval" / "older.json").unlink()
    assert "The weights of now are not evaluated yet." in words(render(read_facts(run)))


def ended(*listed: Event, first: float | None = 2.0, last: float = 1.0) -> list[Event]:
    before = [] if first is None else [Evaluated(0, first, 100, is_best=True, seconds=0.1)]
    return [STARTED, *before, step(1), step(2), Evaluated(2, last, 100, is_best=True, seconds=0.1), *listed]


@pytest.mark.parametrize(
    ("first", "last", "said"),
    [
        (2.0, 1.0, "It learned: validation loss fell by 50%, from 2.000 to 1.000."),
        (2.0, 2.5, "It did not learn what was asked: validation loss rose by 25%, from 2.000 to 2.500."),
        (2.0, 1.995, "It learned little: validation loss stayed where it was, from 2.000 to 1.995."),
        (None, 1.0, "Not measured yet. "),
    ],
)
def test_the_headline_says_whether_validation_loss_improved(
    first: float | None, last: float, said: str, tmp_path: Path
) -> None:
    assert said in page_of(tmp_path, *ended(first=first, last=last))


def test_the_validation_loss_of_grpo_is_said_to_come_from_rewards(tmp_path: Path) -> None:
    _, *others = ended()
    started = RunStarted("demo", "m", "grpo", 0, 2, 2, 4, 80, 110, 100, "CPU", "float32")
    page = page_of(tmp_path, started, *others)
    assert "lack to the largest reward" in page
    assert "surprise the model" not in page
    assert "(100.0%)" in page  # a new head beside every weight


def test_without_validation_rows_nothing_is_claimed(tmp_path: Path) -> None:
    started = RunStarted("demo", "m", "sft", 0, 2, 2, 4, 0, 10, 100, "CPU", "float32")
    assert "Nothing tells whether it learned." in page_of(tmp_path, started, step(1), step(2))


@pytest.mark.parametrize(
    ("last", "said"),
    [
        (RunStopped(2, 15), "It was stopped after step 2. Everything up to there is saved."),
        (RunFailed("the loss is not finite", "a lower rate", 1), "It failed: the loss is not finite . a lower rate"),
        (RunFinished(2, "max_minutes", 2.0, 1.0, 2, 1.0, 9.0, 800, 10**9), "It ended early: its time was up."),
        (step(3), "It ended without a word after step 3. Nothing was saved."),
    ],
)
def test_the_headline_says_how_a_run_ended(last: Event, said: str, tmp_path: Path) -> None:
    assert said in page_of(tmp_path, *ended(last))


@pytest.mark.parametrize(
    ("epoch", "said"),
    [
        (0.5714, " steps (57% of the steps of one pass through the data)"),
        (1.52, " steps (1.5 times through the data)"),
    ],
)
def test_how_far_a_run_came_is_said_in_steps_of_a_pass(epoch: float, said: str, tmp_path: Path) -> None:
    """12 of 21 steps are 57 %, also where they had 48 of 82 rows."""
    assert said in page_of(tmp_path, STARTED, step(1), replace(step(2), epoch=epoch))


def test_what_was_not_measured_is_called_so(tmp_path: Path) -> None:
    page = page_of(tmp_path, *ended())
    assert "Machine and energy Not measured in this run." in page
    assert "Wh" not in page
    with_machine = words(golden_report.page(tmp_path / "full"))
    assert "Not measured: GPU busy, memory of the GPU, swapped out" in with_machine


def test_losses_that_are_not_finite_leave_a_gap_and_no_report_fails(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    lines = run.file("events.jsonl").read_text("utf-8")
    lines = re.sub(r'"(loss|grad_norm|targets_per_second)": [\d.]+', r'"\1": null', lines)
    run.file("events.jsonl").write_text(lines, "utf-8")
    page = render(read_facts(run))
    assert "not finite" in words(page)
    assert re.search(r"\b(nan|inf|None)\b", words(page)) is None
    assert re.search(r'd="[^"]*(nan|inf|None)', page) is None


def test_one_step_makes_no_curve_and_one_answer_no_slider(tmp_path: Path) -> None:
    page = page_of(tmp_path, STARTED, Sampled(0, "Hello?", "Yes."), step(1))
    assert "How the training went" not in page
    assert "answered once" in page
    assert "Answer at" not in page


def test_pauses_and_sleep_are_listed_with_their_reasons(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    assert read_facts(run).waits == (Wait(25, "the battery is low", 120.0), Wait(25, "the machine was asleep", 600.0))
    write_events(run, [STARTED, step(1), Paused(1, "the battery is low")])
    assert read_facts(run).waits == (Wait(1, "the battery is low", None),)
    asleep_in_a_pause = [STARTED, step(1), Paused(1, "low"), TimeJump(5.0, was_asleep=True)]
    write_events(run, asleep_in_a_pause)
    assert len(read_facts(run).waits) == 1


def test_restarts_say_that_the_result_is_equal_up_to_rounding_only(tmp_path: Path) -> None:
    page = words(golden_report.page(tmp_path))
    assert "give the same weights, here up to rounding." in page
    bitwise = [one for one in events() if type(one).__name__ != "Restarted"]
    run = write_run(tmp_path / "other")
    write_events(run, bitwise)
    assert "give the same weights." in words(render(read_facts(run))).replace(" .", ".")


def test_a_run_without_a_card_tells_the_rows_that_its_journal_knows(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    run.file("data_card.json").unlink()
    assert "80 rows trained on, 12 for validation." in words(render(read_facts(run)))


RESOLVED = """model = "m"
# revision is not set  # none was given
seed = 7

[data]
path = "a # b  # c"  # found  # twice
packing = false  # on a CPU padding is cut off
# valid is not set

[training]
learning_rate = 0.001
epochs = 2.0
# [lora] is left out: every weight is trained
"""


def test_choices_are_read_with_their_reasons_and_where_they_come_from() -> None:
    recipe = 'model = "m"\n[training]\nlearning_rate = 0.1\n'
    assert read_choices(RESOLVED, recipe, ["training.epochs=2"]) == [
        Choice("", "model", '"m"', "", "asked"),
        Choice("", "revision", "", "none was given", "chosen"),
        Choice("", "seed", "7", "", "default"),
        Choice("data", "path", '"a # b  # c"', "found  # twice", "chosen"),
        Choice("data", "packing", "false", "on a CPU padding is cut off", "chosen"),
        Choice("data", "valid", "", "", "default"),
        Choice("training", "learning_rate", "0.001", "", "asked"),
        Choice("training", "epochs", "2.0", "", "asked"),
    ]


def test_choices_of_a_whole_resolved_recipe_come_back() -> None:
    values = {"model": "m # x", "output_dir": "adapters/x", "data": {"path": "d"}, "lora": {"rank": 4}}
    recipe = Recipe.model_validate(values)
    reasons = {"data.path": 'because of "this"  # and that', "training.epochs": "few rows"}
    found = read_choices(render_resolved(recipe, reasons), "", [])
    flat = flatten_recipe(recipe)
    written = [key for key in flat if key not in section_names()]  # a section that is left out has no keys
    assert [f"{one.section}.{one.key}".lstrip(".") for one in found] == written
    told = {f"{one.section}.{one.key}".lstrip("."): one.reason for one in found if one.reason}
    assert told == reasons
    assert json.loads(next(one.value for one in found if one.key == "model")) == "m # x"


def test_a_change_for_sure_has_the_digits_that_show_it(tmp_path: Path) -> None:
    def measured(title: str, base: float, tuned: float, change: float, *, is_factor: bool) -> dict[str, object]:
        sides = {name: {"value": one, "low": one, "high": one, "num_rows": 40} for name, one in
                 (("base", base), ("tuned", tuned))}  # fmt: skip
        same = 1.0 if is_factor else 0.0
        low, high = sorted(same + (change - same) * share for share in (0.9, 1.1))
        changed = {"value": change, "low": low, "high": high, "num_rows": 40, "p": 1e-4, "p_holm": 1e-4}
        return {"name": title, "title": title, "sides": sides, "change": changed | {"is_factor": is_factor},
                "is_shown": True, "is_tested": True, "is_higher_better": False, "is_better": change < same,
                "is_worse": change > same}  # fmt: skip

    run = write_run(tmp_path)
    path = run.path / "eval" / "test.json"
    fields = json.loads(path.read_text("utf-8"))
    fields["measures"] = [
        measured("loss", 0.6702, 0.6669, -0.0033, is_factor=False),
        measured("perplexity", 1264.12, 1264.31, 1.00015, is_factor=True),
        measured("bits", 0.67, 0.67 - 1e-7, -1e-7, is_factor=False),
    ]
    path.write_text(json.dumps(fields), "utf-8")
    page = words(render(read_facts(run)))
    assert "loss 0.670 0.667 -0.003 -0.004 to -0.003 better" in page
    assert "perplexity 1,264.1 1,264.3 \u00d7 1.0002 \u00d7 1.0001 to 1.0002 worse" in page
    assert "bits 0.67 0.67 -0.0000 -0.0000 to -0.0000 no change that shows" in page
