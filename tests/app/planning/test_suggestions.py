"""What a plan suggests, rule by rule: each appears where its reason holds, and not where it does not."""

from typing import Any

import numpy as np
import pytest

from mlx_finetune.app.planning.suggestions import suggest
from mlx_finetune.hardware.limits import Machine
from mlx_finetune.hardware.planning.auto import Resolved, resolve_auto
from mlx_finetune.hardware.planning.facts import Facts
from mlx_finetune.hardware.planning.shapes import guess_shape
from mlx_finetune.recipe.overrides import apply_overrides, parse_overrides
from mlx_finetune.recipe.schema import Recipe

CPU = Machine(on_gpu=False, memory_bytes=64 * 10**9, working_set_bytes=0, chip="x86_64")


def suggested(
    num_rows: int,
    *settings: str,
    longest: int = 0,
    num_valid: int = 50,
    target_share: float | None = 0.5,
    num_parameters: int = 135 * 10**6,
) -> dict[str, str]:
    """Key to value of what is suggested for so many rows of 100 tokens, one of them perhaps longer."""
    values: dict[str, Any] = {
        "model": "m",
        "output_dir": "o",
        "data": {"path": "rows.jsonl"},
        "lora": {"rank": 16},
        "training": {"batch_size": 4, "gradient_accumulation_steps": 4, "epochs": 3, "evals_per_epoch": 2},
    }
    if num_rows >= 1000:
        values["training"]["epochs"] = 2
    apply_overrides(values, parse_overrides(settings)[0])
    recipe = Recipe.model_validate({key: value for key, value in values.items() if value is not None})
    lengths = np.full(num_rows, 100)
    lengths[0] = longest or 100
    resolved: Resolved = resolve_auto(recipe, Facts(lengths, guess_shape(num_parameters), CPU))
    found = suggest(
        recipe,
        resolved,
        lengths,
        num_rows=num_rows,
        num_valid=num_valid,
        target_share=target_share,
        num_parameters=num_parameters,
    )
    assert all(one.reason and one.key in one.sentence for one in found)
    return {one.key: one.value for one in found}


@pytest.mark.parametrize("num_rows", [400, 5000])
def test_usual_settings_are_left_alone(num_rows: int) -> None:
    assert suggested(num_rows) == {}


@pytest.mark.parametrize(
    ("num_rows", "setting", "expected"),
    [
        (400, "training.epochs=1", {"training.epochs": "3"}),
        (5000, "training.epochs=1", {}),
        (5000, "training.epochs=5", {"training.epochs": "2"}),
        (400, "training.epochs=5", {}),
        (400, "lora.rank=32", {"lora.rank": "16"}),
        (400, "lora.rank=8", {}),
        (5000, "lora.rank=8", {"lora.rank": "16"}),
        (5000, "lora.rank=64", {"lora.use_rslora": "true"}),
        (5000, "training.learning_rate=1e-5", {"training.learning_rate": "0.0002"}),
        (5000, "training.learning_rate=1e-4", {}),
        (400, "training.gradient_accumulation_steps=1", {"training.gradient_accumulation_steps": "4"}),
        (400, "training.gradient_accumulation_steps=3", {}),
        (400, "training.eval_steps=50", {"training.evals_per_epoch": "2"}),
        (5000, "training.eval_steps=1000", {}),
    ],
)
def test_each_rule(num_rows: int, setting: str, expected: dict[str, str]) -> None:
    assert suggested(num_rows, setting) == expected


def test_full_fine_tuning_has_a_lower_rate() -> None:
    assert suggested(5000, "lora=", "training.learning_rate=2e-4") == {"training.learning_rate": "1e-05"}
    assert suggested(5000, "lora=", "training.learning_rate=1e-5") == {}


def test_full_training_of_a_small_model_has_a_higher_rate() -> None:
    small = 130_000
    assert suggested(5000, "lora=", "training.learning_rate=2e-3", num_parameters=small) == {}
    found = suggested(5000, "lora=", "training.learning_rate=1e-5", num_parameters=small)
    assert found == {"training.learning_rate": "0.0005"}


def test_a_few_long_rows_are_told() -> None:
    assert suggested(400, longest=1500) == {"data.max_seq_length": "128"}
    assert suggested(400, "data.max_seq_length=128", longest=120) == {}


def test_without_validation_rows_no_evaluation_is_suggested() -> None:
    assert suggested(400, "training.eval_steps=50", num_valid=0) == {}


def test_answers_of_a_word_are_counted_as_right_or_wrong() -> None:
    assert suggested(400, target_share=0.02) == {"eval.tasks": '["labels", "loss"]'}
    assert suggested(400, target_share=0.06) == {}
    assert suggested(400, target_share=None) == {}
    assert suggested(400, 'eval.tasks=["rouge"]', target_share=0.02) == {}


def test_other_tasks_have_no_rules_of_thumb() -> None:
    assert suggested(400, "task=pretrain", "training.epochs=1", "lora.rank=64") == {}
