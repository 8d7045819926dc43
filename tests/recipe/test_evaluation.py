"""The words of [eval]: tasks, checks and gates are read before a training, and slips are sentences."""

from pathlib import Path

import click
import pytest

from mlx_finetune.app.eval.measures import measures_of
from mlx_finetune.commands.eval import command
from mlx_finetune.errors import RecipeError, UsageError
from mlx_finetune.recipe.evaluation import (
    EvalRecipe,
    Gate,
    change_recipe,
    gate_problem,
    parse_gate,
    split_task,
    task_problem,
)
from mlx_finetune.recipe.load import load_recipe
from mlx_finetune.recipe.measured import CHECKS, MEASURES, TASKS
from mlx_finetune.recipe.reference import reference_text

GOOD = 'model = "m"\noutput_dir = "o"\n[data]\npath = "d"\n[lora]\n'


@pytest.mark.parametrize("task", [*TASKS, "regex:^a;b$", "contains:a: b", "max_length:280"])
def test_every_task_and_check_is_known(task: str) -> None:
    assert task_problem(task) == ""


def test_every_task_and_measure_stands_in_help_and_reference() -> None:
    option = next(one for one in command.params if one.name == "tasks")
    assert isinstance(option, click.Option)
    assert option.help is not None
    described = str(EvalRecipe.model_fields["tasks"].description)
    for name in (*TASKS, *CHECKS):
        assert f" {name}" in option.help
        assert f" {name}" in described
    table = reference_text().partition("## What eval measures")[2]
    assert all(f"`{measure}`" in table for measure in MEASURES)
    assert "| `preference` | " in table


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ("los", "there is no task `los`; did you mean loss? tasks are loss, "),
        ("json:x", "the task `json` takes nothing behind a colon; write json"),
        ("regex:", "the task `regex:` needs a pattern behind the colon; write for instance regex:^Aye"),
        ("regex", "the task `regex` needs a pattern behind the colon; write for instance regex:^Aye"),
        ("regex:(", "the pattern of `regex:(` cannot be read: "),
        ("max_length:x", "the task `max_length:x` needs a number of characters; write for instance max_length:280"),
        ("max_length:0", "needs a number of characters"),
        ("a\nb", "there is no task `a\\nb`; "),
    ],
)
def test_slips_in_tasks_say_what_is_meant(task: str, says: str) -> None:
    assert says in task_problem(task)
    assert "\n" not in task_problem(task)


@pytest.mark.parametrize(
    ("text", "gate"),
    [
        ("json_valid >= 0.95", Gate("json_valid", ">=", 0.95)),
        (" loss<1.5e0 ", Gate("loss", "<", 1.5)),
        ("regex:^a >= b$ > 0.5", Gate("regex:^a >= b$", ">", 0.5)),
        ("general_perplexity <= 30", Gate("general_perplexity", "<=", 30.0)),
    ],
)
def test_a_gate_is_a_measure_a_sign_and_a_number(text: str, gate: Gate) -> None:
    assert parse_gate(text) == gate
    assert gate_problem(text) == ""
    assert parse_gate(str(gate)) == gate


@pytest.mark.parametrize("text", ["json_valid", "json_valid = 1", ">= 1", "json_vald >= 1", "loss > x"])
def test_slips_in_gates_are_found(text: str) -> None:
    assert gate_problem(text).startswith(f"the gate `{text}` ")


def test_a_gate_is_met_on_its_side_of_the_bound() -> None:
    assert Gate("loss", "<=", 1.0).is_met(1.0)
    assert not Gate("loss", "<", 1.0).is_met(1.0)
    assert not any(Gate("loss", sign, 1.0).is_met(float("nan")) for sign in (">=", "<=", ">", "<"))


def test_every_measure_of_every_task_can_have_a_gate() -> None:
    kinds = [measures_of(TASKS, has_schema=True, kind=kind) for kind in ("answers", "text", "pairs", "marked")]
    found = {measure.name: measure.task for measures in kinds for measure in measures}
    assert found == MEASURES
    assert [split_task(f"{check}:1") for check in CHECKS] == [(check, "1") for check in CHECKS]


def test_a_recipe_names_every_slip_at_once(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(GOOD + '[eval]\ntasks = ["los", "loss"]\ngates = ["lss > 1"]\n')
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    messages = [problem.message for problem in caught.value.problems]
    assert messages == ["[eval] `tasks`: there is no task `los`", "[eval] `gates`: the gate `lss > 1` names no measure"]
    assert [problem.hint for problem in caught.value.problems][1] == "did you mean loss?"
    assert caught.value.problems[0].where == f"{path}:7"


def test_the_command_line_changes_keys_with_the_same_checks() -> None:
    recipe = EvalRecipe.model_validate({"tasks": ["loss"], "schema": "s.json"})
    changed = change_recipe(recipe, {"max_rows": 3})
    assert (changed.tasks, changed.max_rows, changed.schema) == (("loss",), 3, "s.json")
    with pytest.raises(UsageError) as caught:
        change_recipe(recipe, {"tasks": ("los",)})
    assert caught.value.message == "there is no task `los`"
    assert caught.value.hint.startswith("did you mean loss?")
