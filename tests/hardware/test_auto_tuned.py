"""What was tuned answers "auto" and nothing else, and the plan says since when."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from shapes_of_models import SMOLLM2_135M

from mlx_finetune.dataset.stream import count_parts
from mlx_finetune.hardware.limits import Machine
from mlx_finetune.hardware.planning.auto import Resolved, resolve_auto
from mlx_finetune.hardware.planning.facts import Facts
from mlx_finetune.hardware.planning.shapes import read_shape
from mlx_finetune.hardware.tuned import KEYS, NOTHING_TUNED, TunedSettings
from mlx_finetune.recipe.schema import Recipe

GB = 10**9
CPU = Machine(on_gpu=False, memory_bytes=24 * GB, working_set_bytes=0, chip="x86_64")
M4 = Machine(on_gpu=True, memory_bytes=64 * GB, working_set_bytes=51 * GB, chip="Apple M4 Max")
SMALL_M4 = Machine(on_gpu=True, memory_bytes=8 * GB, working_set_bytes=5 * GB, chip="Apple M4")
SHAPE = read_shape(SMOLLM2_135M)
WHY = "mlxft tune, 26 Nov 2026: 1.13 times as fast as the default"


def resolved(
    tuned: TunedSettings = NOTHING_TUNED, machine: Machine = CPU, *, num_processes: int = 1, **recipe: Any
) -> Resolved:
    values = {"model": "m", "output_dir": "o", "lora": {}, "data": {"path": "d", "packing": False}, **recipe}
    values = {name: value for name, value in values.items() if value is not None}
    tuned = replace(tuned, reasons=dict.fromkeys(KEYS.values(), WHY))
    facts = Facts(np.array([400] * 200), SHAPE, machine, tuned=tuned, num_processes=num_processes)
    return resolve_auto(Recipe.model_validate(values), facts)


def test_without_tuning_everything_goes_through_at_once_in_two_halves() -> None:
    found = resolved()
    assert (found.microbatch, found.batch_size) == (4, 4)
    assert (found.recipe.hardware.microbatch, found.recipe.hardware.num_threads) == (4, "halves")
    assert found.reasons["hardware.microbatch"] == "batch_size at once"


def test_what_was_tuned_answers_auto_with_its_reason() -> None:
    found = resolved(TunedSettings(num_threads=2, batch_size=1, gradient_checkpointing=True))
    hardware, training = found.recipe.hardware, found.recipe.training
    assert (hardware.num_threads, hardware.microbatch, training.gradient_checkpointing) == (2, 1, True)
    assert (found.batch_size, found.microbatch) == (4, 1)
    tuned = ("hardware.num_threads", "hardware.microbatch", "training.gradient_checkpointing")
    assert {found.reasons[key] for key in tuned} == {WHY}


def test_what_the_recipe_says_counts() -> None:
    tuned = TunedSettings(num_threads=2, batch_size=1, gradient_checkpointing=True, compute_dtype="float16")
    hardware = {"num_threads": "halves", "microbatch": 3, "compute_dtype": "float32"}
    found = resolved(tuned, hardware=hardware, training={"gradient_checkpointing": False})
    assert {name: getattr(found.recipe.hardware, name) for name in hardware} == hardware
    assert found.recipe.training.gradient_checkpointing is False
    assert not set(KEYS.values()) & set(found.reasons)


def test_rows_and_steps_are_what_they_were() -> None:
    plain = resolved(training={"epochs": 2, "gradient_accumulation_steps": 2})
    for size in (1, 2, 8, 4096):
        tuned = resolved(TunedSettings(batch_size=size), training={"epochs": 2, "gradient_accumulation_steps": 2})
        assert (tuned.total_steps, tuned.steps_per_epoch, tuned.batch_size) == (
            plain.total_steps,
            plain.steps_per_epoch,
            plain.batch_size,
        )
        assert tuned.microbatch == min(size, 8)


def test_fewer_rows_at_once_need_less_memory_and_so_does_the_plan_say() -> None:
    assert resolved(TunedSettings(batch_size=1)).peak_bytes < resolved().peak_bytes
    joined = resolved(TunedSettings(batch_size=8), training={"gradient_accumulation_steps": 2})
    assert joined.peak_bytes > resolved(training={"gradient_accumulation_steps": 2}).peak_bytes


def test_joined_rows_that_would_not_fit_are_not_joined() -> None:
    training = {"gradient_accumulation_steps": 16, "gradient_checkpointing": False}
    limit = resolved(training=training).peak_bytes * 2
    hardware = {"memory_limit": limit}
    found = resolved(TunedSettings(batch_size=64), training=training, hardware=hardware)
    assert found.microbatch == 4
    assert found.reasons["hardware.microbatch"] == "batch_size at once, as 64 would not fit"


def test_recomputation_that_memory_asks_for_stays_whatever_was_faster() -> None:
    limit = round(resolved(training={"gradient_checkpointing": False}).peak_bytes * 0.8)
    found = resolved(TunedSettings(gradient_checkpointing=False), hardware={"memory_limit": limit})
    assert found.recipe.training.gradient_checkpointing is True
    fewer = resolved(TunedSettings(gradient_checkpointing=False, batch_size=1), hardware={"memory_limit": limit})
    assert fewer.recipe.training.gradient_checkpointing is False


def test_several_processes_and_another_kind_of_machine_use_neither_threads_nor_rows() -> None:
    tuned = TunedSettings(num_threads=2, batch_size=1)
    found = resolved(tuned, num_processes=2)
    assert (found.recipe.hardware.num_threads, found.microbatch) == ("halves", 4)
    assert resolved(tuned, M4).recipe.hardware.num_threads == "auto"


def test_float16_is_for_adapters_alone() -> None:
    tuned = TunedSettings(compute_dtype="float16")
    assert resolved(tuned, M4).recipe.hardware.compute_dtype == "float16"
    assert resolved(tuned, M4).reasons["hardware.compute_dtype"] == WHY
    assert resolved(tuned, M4, lora=None).recipe.hardware.compute_dtype == "bfloat16"


def test_buffer_sizes_are_a_gpus_and_the_recipes_come_first() -> None:
    tuned = TunedSettings(max_ops_per_buffer=100, max_mb_per_buffer=25)
    found = resolved(tuned, M4, hardware={"max_mb_per_buffer": 7})
    assert (found.recipe.hardware.max_ops_per_buffer, found.recipe.hardware.max_mb_per_buffer) == (100, 7)
    assert found.reasons["hardware.max_ops_per_buffer"] == WHY
    assert "hardware.max_mb_per_buffer" not in found.reasons
    assert resolved(tuned, CPU).recipe.hardware.max_ops_per_buffer == "auto"


def test_a_whole_microbatch_is_planned_as_one_piece() -> None:
    """Of accumulated steps: in two halves each has gradients of its own; in a single step the update is larger."""
    steps = {"gradient_accumulation_steps": 3}
    whole, halves = (resolved(tuned, training=steps).memory for tuned in (TunedSettings(num_threads=2), NOTHING_TUNED))
    assert whole.update < halves.update


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "microbatch", "parts"),
    [(4, 1, 4, 1), (4, 1, 2, 2), (4, 1, 3, 2), (4, 3, 2, 6), (1, 16, 4, 4), (1, 16, 5, 4), (6, 3, 12, 2)],
)
def test_the_microbatches_of_a_step_are_counted(
    batch_size: int, accumulation: int, microbatch: int, parts: int
) -> None:
    assert count_parts(batch_size, accumulation, microbatch) == parts
