"""What learning from its own answers costs: sequences of a group, the longest answer in every row, time to say them."""

import numpy as np
import pytest

from mlx_finetune.dataset.token_rows import rows_of
from mlx_finetune.dataset.tokens import Tokens
from mlx_finetune.hardware.limits import Machine
from mlx_finetune.hardware.planning.answering import answer_bytes
from mlx_finetune.hardware.planning.auto import Facts, Resolved, resolve_auto
from mlx_finetune.hardware.planning.forecast import Forecast
from mlx_finetune.hardware.planning.ranges import Range
from mlx_finetune.hardware.planning.rollouts import add_rollouts, plan_rollouts
from mlx_finetune.hardware.planning.row_lengths import planned_lengths
from mlx_finetune.hardware.planning.shapes import guess_shape
from mlx_finetune.recipe.schema import Recipe

MACHINE = Machine(False, 64 * 10**9, 48 * 10**9, "a CPU")


def recipe_of(task: str = "grpo", **grpo: object) -> Recipe:
    values = {"model": "m", "output_dir": "o", "task": task, "lora": {}, "data": {"path": "d"}}
    sections = {"grpo": {"max_tokens": 20, "group_size": 4} | grpo} if task == "grpo" else {}
    return Recipe.model_validate(values | sections | {"training": {"batch_size": 4, "max_steps": 10}})


def resolved_of(recipe: Recipe) -> Resolved:
    return resolve_auto(recipe, Facts(np.array([30, 40, 50, 60]), guess_shape(135_000_000), MACHINE))


def test_a_row_is_planned_with_the_longest_answer_behind_its_problem():
    rows = rows_of([Tokens(np.arange(9, dtype=np.int32), np.arange(9) >= 6, "r", 1)])
    assert planned_lengths(rows, recipe_of(), "llama").tolist() == [6 + 20]
    assert planned_lengths(rows, recipe_of("sft"), "llama").tolist() == [9]


def test_a_step_has_a_group_for_each_problem():
    plan = plan_rollouts(resolved_of(recipe_of()), on_gpu=False)
    assert plan is not None
    assert (plan.num_answers, plan.num_passes) == (16, 20)
    assert plan_rollouts(resolved_of(recipe_of("sft")), on_gpu=False) is None


def test_several_updates_share_a_drawing_and_count_as_steps_of_an_epoch():
    recipe, once = recipe_of(updates=3), recipe_of()
    assert resolved_of(recipe).steps_per_epoch == 3 * resolved_of(once).steps_per_epoch
    before = Forecast("measured", Range(1, 1, 1), Range(1, 1, 1), Range(1, 1, 1), Range(12, 12, 12), None)
    silent, spoken = (add_rollouts(before, resolved_of(recipe), by, 0, 0, on_gpu=False) for by in (None, 0.1))
    assert silent.step_seconds is not None
    assert spoken.step_seconds is not None
    assert silent.finish_seconds is not None
    assert spoken.finish_seconds is not None
    said = 20 * 0.6 * 0.1 * (1 + 0.08 * 15)
    assert spoken.step_seconds.expected - silent.step_seconds.expected == pytest.approx(said / 3)
    assert spoken.finish_seconds.expected - silent.finish_seconds.expected == pytest.approx(4 * said)  # of 10 steps


def test_the_time_is_that_of_all_answers_and_of_saying_them():
    before = Forecast("measured", Range(1, 1, 1), Range(1, 1, 1), Range(1, 1, 1), Range(12, 12, 12), None)
    resolved = resolved_of(recipe_of())
    silent = add_rollouts(before, resolved, None, 0, 0, on_gpu=False)
    assert silent.step_seconds is not None
    assert silent.finish_seconds is not None
    assert (silent.step_seconds.expected, silent.finish_seconds.expected) == (4, 12 + 10 * 3)
    spoken = add_rollouts(before, resolved, 0.1, 16, 2, on_gpu=False)
    assert spoken.step_seconds is not None
    assert spoken.finish_seconds is not None
    said = 20 * 0.6 * 0.1 * (1 + 0.08 * 15)
    assert spoken.step_seconds.expected == pytest.approx(4 + said)
    assert spoken.finish_seconds.expected == pytest.approx(42 + (10 + 2) * said)
    assert add_rollouts(before, resolved_of(recipe_of("sft")), 0.1, 16, 2, on_gpu=False) == before


def test_memory_holds_the_keys_and_values_of_all_answers():
    shape = guess_shape(135_000_000)
    small, large = (answer_bytes(shape, length, value_bytes=4, on_gpu=False) for length in (256, 2048))
    each = 2 * shape.num_layers * shape.key_width * 4 * 256
    assert large - small == 16 * (7 * each + 2 * shape.key_width * 4 * 1792)
    plain = resolved_of(recipe_of("sft"))
    long = resolve_auto(recipe_of(), Facts(np.array([30_000] * 4), shape, MACHINE))
    assert long.memory.activations + long.memory.logits >= answer_bytes(shape, 30_000, value_bytes=4, on_gpu=False)
    assert long.memory.total > plain.memory.total


def test_a_small_rate_is_the_default():
    assert resolved_of(recipe_of()).recipe.training.learning_rate == 1e-5
