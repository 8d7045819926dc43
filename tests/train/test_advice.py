"""What an objective says about metrics: once, and of steps only where enough in a row are alike."""

from dataclasses import replace

from mlx_finetune.events import Event, Notice, StepDone
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.train.advice import STEPS, with_advice
from mlx_finetune.train.objectives.grpo.policy import grpo

RECIPE = Recipe.model_validate({"model": "m", "output_dir": "o", "task": "grpo", "lora": {}, "data": {"path": "d"}})
STEP = StepDone(1, 0.1, 0.0, 1e-5, 0.0, 8, 80, 0.0, 0.1, 80.0, 0, 0, {"reward": 0.0, "dropped_groups": 1.0})


def said(shares: list[float]) -> list[Notice]:
    """What is said in a run whose steps leave out these shares of their groups."""
    heard: list[Event] = []
    emit = with_advice(grpo(RECIPE), heard.append)
    for step, share in enumerate(shares, start=1):
        emit(replace(STEP, step=step, metrics=dict(STEP.metrics) | {"dropped_groups": share}))
    return [one for one in heard if isinstance(one, Notice)]


def test_steps_that_teach_nothing_for_a_while_are_said_once() -> None:
    (notice,) = said([0.0, *[1.0] * (2 * STEPS)])
    assert notice.level == "warning"
    assert notice.message.startswith(f"step {STEPS + 1}: the last {STEPS} steps taught it nothing")
    assert "grpo.group_size" in notice.hint


def test_nothing_is_said_while_some_groups_teach() -> None:
    assert said([*[1.0] * (STEPS - 1), 0.9, *[1.0] * (STEPS - 1)]) == []
