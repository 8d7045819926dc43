"""What learning from its own answers costs: sequences of a group, the longest answer in every row, time to say them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlx_finetune import durable
from mlx_finetune.dataset.token_rows import rows_of
from mlx_finetune.dataset.tokens import Tokens
from mlx_finetune.hardware.limits import Machine
from mlx_finetune.hardware.planning.answering import answer_bytes, kept_answers_bytes
from mlx_finetune.hardware.planning.auto import Resolved, resolve_auto
from mlx_finetune.hardware.planning.disk import DiskPlan, plan_run_disk
from mlx_finetune.hardware.planning.facts import Facts
from mlx_finetune.hardware.planning.forecast import Forecast, disk_at_end, plan_beside
from mlx_finetune.hardware.planning.measured import Measured
from mlx_finetune.hardware.planning.memory import trainable_bytes, weight_bytes
from mlx_finetune.hardware.planning.ranges import Range
from mlx_finetune.hardware.planning.rollouts import (
    BLOCK_SECONDS,
    CPU_BANDWIDTH,
    add_rollouts,
    assume_drawing,
    plan_rollouts,
)
from mlx_finetune.hardware.planning.row_lengths import planned_lengths
from mlx_finetune.hardware.planning.run_memory import drawing_bytes
from mlx_finetune.hardware.planning.shapes import guess_shape
from mlx_finetune.recipe.schema import Recipe

MEASURED = Measured(
    startup_seconds=1.0,
    load_peak_bytes=1,
    peak_bytes=1,
    process_bytes=1,
    microbatches=(),
    update_seconds=0.0,
    validation=(),
    answer_seconds=None,
    shapes=(),
    valid_shapes=(),
    total_steps=10,
    others_share=0.0,
    own_share=1.0,
    watts=None,
    seconds=1.0,
    is_cut_short=False,
)
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


def test_earlier_answers_of_a_conversation_are_a_part_of_its_problem():
    """Targets 2, 3 and 6 to 8 of 10 tokens: the last token is written by the template behind the answer."""
    rows = rows_of([Tokens(np.arange(10, dtype=np.int32), np.isin(np.arange(10), [2, 3, 6, 7, 8]), "r", 1)])
    assert planned_lengths(rows, recipe_of(), "llama").tolist() == [6 + 20]


def test_a_step_has_a_group_for_each_problem():
    plan = plan_rollouts(resolved_of(recipe_of()), on_gpu=False)
    assert plan is not None
    assert (plan.num_answers, plan.num_passes) == (16, 20)
    assert plan_rollouts(resolved_of(recipe_of("sft")), on_gpu=False) is None


def forecast_of(step: float, finish: float) -> Forecast:
    return Forecast("measured", Range(1, 1, 1), Range(1, 1, 1), Range(step, step, step), Range(*[finish] * 3), None)


def times(forecast: Forecast) -> tuple[float, float]:
    assert forecast.step_seconds is not None
    assert forecast.finish_seconds is not None
    return forecast.step_seconds.expected, forecast.finish_seconds.expected


def said_in(seconds: float) -> Measured:
    """16 answers grow together: half a second for their first tokens, ``seconds`` for each more of at most 20."""
    return replace(MEASURED, update_seconds=0.2, drawing_seconds=(0.5, seconds))


def test_a_step_learns_from_the_groups_that_teach_something_and_updates_once():
    """A step of 1 s, 0.2 s of it the update; answers that are said before it come on top of it."""
    before, resolved = forecast_of(1, 12), resolved_of(recipe_of())
    learned = 0.2 + 0.8 * 4 * 0.7
    silent = add_rollouts(before, resolved, replace(MEASURED, update_seconds=0.2), 0, 0, on_gpu=False)
    assert times(silent) == pytest.approx((learned, 12 + 10 * (learned - 1)))
    assert silent.step_seconds is not None
    assert silent.step_seconds.low == 1, "one microbatch is learned also where all groups are left out"
    spoken = add_rollouts(before, resolved, said_in(0.1), 17, 2, on_gpu=False)
    said = 0.5 + 0.6 * 19 * 0.1
    assert times(spoken) == pytest.approx((learned + said, times(silent)[1] + (10 + 2 * 2) * said))
    assert add_rollouts(before, resolved_of(recipe_of("sft")), said_in(0.1), 16, 2, on_gpu=False) == before


def test_without_measuring_an_answer_is_assumed_to_take_what_reading_the_weights_does():
    """Of 16 answers together, each at most 20 tokens behind problems of 25 on average."""
    shape = guess_shape(135_000_000)
    facts = Facts(np.array([30, 40, 50, 60]), shape, MACHINE)
    resolved = resolve_auto(recipe_of(), facts)
    step = forecast_of(0.18, 12).step_seconds
    assert step is not None
    first, later = assume_drawing(resolved, facts, step) or (0.0, 0.0)
    weights = weight_bytes(shape, value_bytes=4, stored_bits=None)
    caches = 2 * shape.num_layers * shape.key_width * 4 * 16 * 45
    assert later == pytest.approx((weights + caches) / CPU_BANDWIDTH + shape.num_layers * BLOCK_SECONDS)
    assert first == pytest.approx(later + 16 * 25 * 0.18 / (4 * 45) / 3)
    mac = Machine(True, 64 * 10**9, 48 * 10**9, "Apple M4 Max")
    quick = assume_drawing(resolved, replace(facts, machine=mac), step * 0.1)
    assert quick is not None
    assert quick[1] < later / 10
    assert assume_drawing(resolved, replace(facts, machine=replace(mac, chip="another")), step) is None
    silent = add_rollouts(forecast_of(1, 12), resolved, None, 0, 0, on_gpu=False)
    told = add_rollouts(forecast_of(1, 12), resolved, None, 0, 0, on_gpu=False, assumed=(0.5, 0.1))
    said = 0.5 + 0.6 * 19 * 0.1
    assert times(told) == pytest.approx((times(silent)[0] + said, times(silent)[1] + 10 * said))
    assert told.answers is not None
    assert told.answers.saying is not None
    assert (told.answers.saying.low, told.answers.saying.high) == pytest.approx((0.4 * 0.69, 2.5 * 2.97))
    assert (told.answers.learning, told.answers.is_assumed) == (Range(1, 2.8, 4), True)


def test_several_updates_share_a_drawing_and_count_as_steps_of_an_epoch():
    recipe, once = recipe_of(updates=3), recipe_of()
    assert resolved_of(recipe).steps_per_epoch == 3 * resolved_of(once).steps_per_epoch
    found = [
        times(add_rollouts(forecast_of(1, 12), resolved_of(recipe), by, 0, 0, on_gpu=False))
        for by in (replace(MEASURED, update_seconds=0.2), said_in(0.1))
    ]
    said = 0.5 + 0.6 * 19 * 0.1
    assert found[1][0] - found[0][0] == pytest.approx(said / 3)
    assert found[1][1] - found[0][1] == pytest.approx(4 * said)  # of 10 steps


def test_the_time_has_the_scores_of_all_answers_and_of_those_of_evaluations():
    for updates, drawings in ((1, 10), (3, 4)):
        plain, scored = (
            add_rollouts(
                forecast_of(1, 12),
                resolved_of(recipe_of(updates=updates)),
                replace(said_in(0.1), score_seconds=by),
                8,
                2,
                on_gpu=False,
            )
            for by in (None, (0.2, 0.7))
        )
        each = 0.2 + 0.6 * 0.5  # of an answer as long as they usually are
        assert times(scored)[0] - times(plain)[0] == pytest.approx(16 * each / updates)
        assert times(scored)[1] - times(plain)[1] == pytest.approx((drawings * 16 + 2 * 8) * each)
        assert plain.finish_seconds is not None
        assert scored.finish_seconds is not None
        assert scored.finish_seconds.low - plain.finish_seconds.low < scored.finish_seconds.high


def test_memory_holds_the_keys_and_values_of_all_answers():
    shape = guess_shape(135_000_000)
    small, large = (answer_bytes(shape, 20, longest, 16, value_bytes=4, on_gpu=False) for longest in (250, 2048))
    a_position = 2 * (shape.num_layers + 1) * shape.key_width * 4
    assert large - small == 16 * (2048 - 256) * a_position
    assert small > 16 * 256 * a_position + 16 * 4 * shape.vocab_size


def test_the_peak_is_the_larger_of_drawing_and_update():
    """Of a model that is small beside its answers: gradients that are held in a step are gone while it says them."""
    shape = guess_shape(300_000)
    recipe = recipe_of(max_tokens=400).model_copy(update={"lora": None})
    facts = Facts(np.array([401] * 4), shape, MACHINE, num_valid=16)
    memory = resolve_auto(recipe, facts).memory
    step = max(memory.activations + memory.logits, memory.update)
    assert memory.total == memory.weights + memory.trainable + max(step, memory.drawing)
    held = memory.trainable - trainable_bytes(shape.num_parameters, accumulation=1)
    assert held > 0
    said = answer_bytes(shape, 1, 401, 16, value_bytes=4, on_gpu=False)
    assert memory.drawing == said + 4 * shape.num_parameters - held


def test_few_answers_take_less_than_as_many_as_can_grow_together():
    facts = Facts(np.array([420]), guess_shape(135_000_000), MACHINE)
    few, many = (
        drawing_bytes(recipe_of(max_tokens=400), seen, count, value_bytes=4)
        for seen, count in ((facts, 2), (replace(facts, num_valid=100), 2))
    )
    assert 6 < many / few < 8
    assert many == drawing_bytes(recipe_of(max_tokens=400), facts, 64, value_bytes=4)


def resolved_recipe(updates: int = 1) -> Recipe:
    return resolved_of(recipe_of(updates=updates)).recipe


def test_a_checkpoint_between_updates_holds_the_answers_of_a_drawing():
    """16 answers with every number as long as it may be; one that ends early takes less."""
    ids, values = [49_151] * 60, [-1.1920928955078125e-07] * (6 + 20)
    file = durable.encode_json({"first_step": 998, "shares": [[[123_456, 40, ids, values]] * 16]})
    planned = kept_answers_bytes(resolved_recipe(updates=3), 60, 49_152)
    assert len(file) < planned < 1.25 * len(file)
    assert kept_answers_bytes(resolved_recipe(), 60, 49_152) == 0
    assert kept_answers_bytes(resolved_of(recipe_of("sft")).recipe, 60, 49_152) == 0


def test_the_disk_of_a_run_has_room_for_them_in_every_checkpoint(tmp_path: Path):
    shape = guess_shape(135_000_000)
    once, often = (
        plan_run_disk(resolved_recipe(updates=updates), shape, np.array([60]), 10, tmp_path, beside=0)
        for updates in (1, 3)
    )
    assert (once.answers, often.checkpoint) == (0, once.checkpoint)
    assert often.needed - once.needed == 5 * often.answers > 0  # keep_checkpoints + 2
    assert often.largest == often.checkpoint + often.answers


def test_the_folder_at_the_end_counts_those_of_the_checkpoints_that_stay():
    made = resolved_of(recipe_of(updates=3))  # saved at 5 and 10 of 10 steps, both between two updates
    made = replace(made, recipe=overridden(made.recipe, save_steps=5, eval_steps=5))
    beside = plan_beside(made, made.recipe.eval, 100)
    assert beside.num_with_answers == 2
    without, with_answers = (disk_at_end(made, DiskPlan(10, 100, 1000, 10**9, answers), beside) for answers in (0, 7))
    assert with_answers.low == without.low
    assert with_answers.expected - without.expected == pytest.approx(2 * 7)
    assert with_answers.high > without.high


def overridden(recipe: Recipe, **training: object) -> Recipe:
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=training)})


def test_a_small_rate_is_the_default():
    assert resolved_of(recipe_of()).recipe.training.learning_rate == 1e-5
