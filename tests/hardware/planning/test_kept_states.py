"""When what leaves the frozen blocks is kept, where, and what the plan says of it."""

from dataclasses import replace

import numpy as np
import pytest
from shapes_of_models import SMOLLM2_135M

from mlx_finetune.errors import RecipeError
from mlx_finetune.hardware.limits import Machine
from mlx_finetune.hardware.planning.auto import resolve_auto
from mlx_finetune.hardware.planning.chips import flops_per_token
from mlx_finetune.hardware.planning.facts import Facts
from mlx_finetune.hardware.planning.shapes import read_shape
from mlx_finetune.recipe.schema import Recipe

SHAPE = read_shape(SMOLLM2_135M)
CPU = Machine(False, 24 * 10**9, 0, "CPU")
FACTS = Facts(np.array([101] * 400), SHAPE, CPU, train_positions=40_000, valid_positions=4_000)


def recipe(*, layers: object = 16, **training: object) -> Recipe:
    lora = {"num_layers": layers} if layers is not None else None
    fields = {"model": "m", "output_dir": "out", "lora": lora, "data": {"path": "p"}, "training": training}
    return Recipe.model_validate({name: value for name, value in fields.items() if value is not None})


def decided(asked: Recipe, facts: Facts = FACTS) -> tuple[bool, str]:
    result = resolve_auto(asked, facts)
    assert result.recipe.training.reuse_frozen_layers is (result.kept is not None)
    return result.kept is not None, result.reasons.get("training.reuse_frozen_layers", "")


def test_it_is_kept_in_memory_where_it_is_small_and_the_plan_says_how_much() -> None:
    result = resolve_auto(recipe(epochs=2), FACTS)
    assert result.kept is not None
    assert (result.kept.num_blocks, result.kept.num_positions) == (14, 44_000)
    assert result.kept.num_bytes == 44_000 * 576 * 4
    assert result.kept.in_memory
    reason = result.reasons["training.reuse_frozen_layers"]
    assert "14 blocks learn nothing" in reason
    assert "101.4 MB kept in memory" in reason


def test_what_is_large_for_the_memory_goes_to_the_disk_and_what_is_large_for_both_is_left() -> None:
    large = replace(FACTS, train_positions=3_000_000, lengths=np.array([101] * 30_000))
    result = resolve_auto(recipe(epochs=2), replace(large, free_disk_bytes=100 * 10**9))
    assert result.kept is not None
    assert not result.kept.in_memory
    assert "in a file of the run folder" in result.kept.sentence
    kept, reason = decided(recipe(epochs=2), replace(large, free_disk_bytes=10 * 10**9))
    assert not kept
    assert "too much for the memory and for the disk" in reason


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (recipe(epochs=1), "seen 1.00 times"),
        (recipe(epochs=2, layers="all"), "every block has an adapter"),
        (recipe(epochs=2, layers=None), "every weight is trained"),
        (recipe(epochs=2, neftune_alpha=5.0), "neftune_alpha"),
    ],
)
def test_auto_leaves_it_where_it_does_not_pay_or_cannot_be(asked: Recipe, words: str) -> None:
    kept, reason = decided(asked)
    assert not kept
    assert words in reason


def test_several_processes_do_not_keep_it() -> None:
    assert "2 processes" in decided(recipe(epochs=2), replace(FACTS, num_processes=2))[1]


def test_rows_with_small_weights_are_seen_less_often_than_there_are_epochs() -> None:
    half = replace(FACTS, lengths=FACTS.lengths[:200])
    assert not decided(recipe(epochs=2), half)[0]
    assert decided(recipe(epochs=4), half)[0]


def test_false_is_taken_as_it_is_and_true_needs_no_second_epoch_but_a_frozen_block() -> None:
    assert decided(recipe(epochs=9, reuse_frozen_layers=False)) == (False, "")
    assert decided(recipe(epochs=1, reuse_frozen_layers=True))[0]
    with pytest.raises(RecipeError, match="reuse_frozen_layers = true: every block has an adapter") as error:
        resolve_auto(recipe(layers="all", reuse_frozen_layers=True), FACTS)
    assert "auto" in error.value.hint
    assert "lora.num_layers" in error.value.hint


def test_a_resolved_recipe_decides_the_same_again() -> None:
    first = resolve_auto(recipe(epochs=2), FACTS)
    again = resolve_auto(first.recipe, FACTS)
    assert again.kept == first.kept
    assert again.recipe == first.recipe


def test_reused_blocks_cost_no_operations_in_a_step() -> None:
    lora = recipe().lora
    whole, reused = (flops_per_token(SHAPE, lora, recompute=False, num_reused=n) for n in (0, 14))
    assert reused / whole == pytest.approx((2 * 16) / (30 + 16))
