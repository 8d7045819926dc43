"""What people are told that a task counts is what its objective counts."""

import pytest

from mlx_finetune.recipe.learned import learned_by
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.train.objective import Objective, count_targets
from mlx_finetune.train.objectives.registry import OBJECTIVES, build_objective

#: Task -> what one row, pair or answer of a step is called; every other one counts tokens.
ROWS = {
    "classify": "row",
    "reward": "pair",
    "verifier": "answer",
    "grpo": "answer",
    "kto": "answer",
    **dict.fromkeys(("dpo", "cdpo", "rdpo", "ipo", "simpo", "orpo"), "pair"),
}


def objective_of(task: str) -> Objective:
    recipe = {"model": "m", "task": task, "output_dir": "adapters/m", "data": {"path": "d"}}
    return build_objective(Recipe.model_validate(recipe))


@pytest.mark.parametrize("task", OBJECTIVES)
def test_a_speed_counts_what_the_objective_counts(task: str) -> None:
    objective = objective_of(task)
    unit = learned_by(task).unit
    assert unit == ROWS.get(task, "target")
    assert (unit == "target") == (objective.count is count_targets)


@pytest.mark.parametrize("task", OBJECTIVES)
def test_the_metric_that_judges_or_leads_is_one_that_the_objective_has(task: str) -> None:
    objective = objective_of(task)
    learned = learned_by(task)
    judged = {learned.judged.metric} if learned.judged else set()
    assert judged | ({learned.lead} if learned.lead else set()) <= set(objective.metrics)


@pytest.mark.parametrize("task", OBJECTIVES)
def test_only_what_a_language_model_reads_surprises_it(task: str) -> None:
    said = learned_by(task).loss_means("3 rows, on which it was not trained,")
    assert "3 rows, on which it was not trained," in said
    assert ("surprise" in said) == (task in ("sft", "pretrain", "seq2seq"))
