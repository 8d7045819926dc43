"""The rules behind every automatic choice: what they decide, at which border, and that they say why."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapes_of_models import SMOLLM2_135M

from mlx_finetune.dataset.stream import Stream
from mlx_finetune.dataset.tokens import Tokens
from mlx_finetune.hardware.limits import GIB, Machine, memory_limit, plan_limits
from mlx_finetune.hardware.planning.auto import Resolved, resolve_auto
from mlx_finetune.hardware.planning.cadence import steps_in_epoch, total_steps
from mlx_finetune.hardware.planning.facts import Facts
from mlx_finetune.hardware.planning.layout import choose_layout, count_sequences, longest_padded
from mlx_finetune.hardware.planning.memory import Layout, MemoryPlan, plan_memory
from mlx_finetune.hardware.planning.shapes import read_shape
from mlx_finetune.recipe.schema import HardwareRecipe, LoraRecipe, Recipe

CPU = Machine(on_gpu=False, memory_bytes=24 * 10**9, working_set_bytes=16 * 10**9, chip="x86_64")
M2 = Machine(on_gpu=True, memory_bytes=16 * 10**9, working_set_bytes=10_560_000_000, chip="Apple M2")
M4 = Machine(on_gpu=True, memory_bytes=64 * 10**9, working_set_bytes=51_840_000_000, chip="Apple M4 Max")
SMOLLM2 = read_shape(SMOLLM2_135M)


def recipe(*, with_lora: bool = True, training: dict[str, object] | None = None, **more: object) -> Recipe:
    values: dict[str, object] = {"model": "m", "output_dir": "adapters/x", "data": {"path": "data"}, **more}
    values = {"lora": {}} | values | {"training": training or {}}
    if not with_lora:
        del values["lora"]
    return Recipe.model_validate(values)


def facts(lengths: list[int] | None = None, machine: Machine = CPU, **more: object) -> Facts:
    return Facts(np.array(lengths or [100] * 400), SMOLLM2, machine, **more)  # pyright: ignore[reportArgumentType]


def resolved(lengths: list[int] | None = None, machine: Machine = CPU, **values: object) -> Resolved:
    return resolve_auto(recipe(**values), facts(lengths, machine))  # pyright: ignore[reportArgumentType]


def test_nothing_numeric_is_left_automatic_and_every_choice_has_its_reason() -> None:
    result = resolved()
    training, hardware = result.recipe.training, result.recipe.hardware
    decided = {
        "data.packing": result.recipe.data.packing,
        "training.batch_size": training.batch_size,
        "training.gradient_checkpointing": training.gradient_checkpointing,
        "training.learning_rate": training.learning_rate,
        "training.epochs": training.epochs,
        "training.warmup_steps": training.warmup_steps,
        "training.eval_steps": training.eval_steps,
        "training.save_steps": training.save_steps,
        "hardware.compute_dtype": hardware.compute_dtype,
        "hardware.memory_limit": hardware.memory_limit,
        "hardware.cache_limit": hardware.cache_limit,
    }
    assert "auto" not in decided.values()
    assert None not in decided.values()
    assert decided.keys() <= result.reasons.keys()
    assert all(result.reasons.values())


def test_what_the_recipe_fixes_is_kept_and_has_no_reason() -> None:
    fixed: dict[str, object] = {
        "batch_size": 3,
        "learning_rate": 5e-4,
        "max_steps": 77,
        "warmup_steps": 5,
        "eval_steps": 9,
        "save_steps": 11,
        "gradient_checkpointing": True,
        "reuse_frozen_layers": False,
    }
    result = resolve_auto(recipe(training=fixed), facts())
    assert {name: getattr(result.recipe.training, name) for name in fixed} == fixed
    assert result.total_steps == 77
    assert not [name for name in result.reasons if name.startswith("training.")]


def test_fewer_targets_need_fewer_logits() -> None:
    few = recipe(training={"batch_size": 2, "max_steps": 2, "gradient_checkpointing": True}, lora={"num_layers": 1})

    def total(most_targets: int | None) -> int:
        return resolve_auto(few, facts([100] * 8, most_targets=most_targets)).memory.total

    assert total(8) < total(None)
    assert total(None) == total(500)


def test_learning_rate_is_ten_times_lower_and_more_without_an_adapter() -> None:
    assert resolved().recipe.training.learning_rate == 2e-4
    assert resolved(with_lora=False).recipe.training.learning_rate == 1e-5


def test_warm_up_is_three_percent_and_at_most_a_hundred_steps() -> None:
    def warmup(steps: int) -> int | None:
        return resolve_auto(recipe(training={"max_steps": steps}), facts()).recipe.training.warmup_steps

    assert [warmup(1), warmup(100), warmup(101), warmup(100_000)] == [1, 3, 4, 100]


def test_a_warm_up_ratio_becomes_steps() -> None:
    result = resolve_auto(recipe(training={"max_steps": 200, "warmup_ratio": 0.1}), facts())
    assert (result.recipe.training.warmup_steps, result.recipe.training.warmup_ratio) == (20, None)


def test_ten_evaluations_in_a_run_and_a_checkpoint_with_each() -> None:
    result = resolve_auto(recipe(training={"max_steps": 95}), facts())
    assert (result.recipe.training.eval_steps, result.recipe.training.save_steps) == (10, 10)


def test_evaluations_in_an_epoch_become_steps() -> None:
    result = resolve_auto(recipe(training={"batch_size": 4, "evals_per_epoch": 5}, data=NO_PACKING), facts())
    assert (result.steps_per_epoch, result.recipe.training.eval_steps) == (100, 20)


NO_PACKING = {"path": "data", "packing": False}


def test_a_gpt2_is_never_packed() -> None:
    result = resolve_auto(recipe(), facts([20] * 100, unpackable="gpt2 has learned positions"))
    assert result.packed_length is None
    assert result.recipe.data.packing is False
    assert result.reasons["data.packing"] == "gpt2 has learned positions"


def test_rows_of_one_length_are_not_packed_into_long_sequences_on_a_cpu() -> None:
    assert resolved([513] * 100).packed_length is None


def test_rows_that_waste_padding_are_packed_on_a_gpu() -> None:
    lengths = np.random.default_rng(0).integers(8, 400, 500)
    packed = choose_layout(lengths, SMOLLM2, batch_size=16, max_length=2048, on_gpu=True, wanted="auto", unpackable="")
    few = choose_layout(
        np.array([12, 400, 12, 12]), SMOLLM2, batch_size=4, max_length=2048, on_gpu=True, wanted="auto", unpackable=""
    )
    assert few.packed_length is not None
    assert packed.packed_length is None or packed.packed_length >= 400


def test_packing_that_is_asked_for_holds_the_longest_row() -> None:
    result = resolve_auto(recipe(data={"path": "data", "packing": True}), facts([300, 40, 41, 90] * 20))
    assert result.packed_length is not None
    assert result.packed_length + 1 >= 300


def test_fewer_rows_than_the_default_batch_make_a_smaller_one() -> None:
    result = resolve_auto(recipe(data=NO_PACKING), facts([30, 40]))
    assert (result.batch_size, result.total_steps) == (2, 1)


def test_recomputation_is_switched_on_only_where_the_plan_exceeds_the_limit() -> None:
    roomy = resolve_auto(recipe(data=NO_PACKING), facts([500] * 50))
    assert roomy.recipe.training.gradient_checkpointing is False
    tight = resolve_auto(recipe(data=NO_PACKING, hardware={"memory_limit": "2 GB"}), facts([500] * 50))
    assert tight.recipe.training.gradient_checkpointing is True
    assert "more than the limit of 2.0 GB" in tight.reasons["training.gradient_checkpointing"]


def test_the_automatic_batch_shrinks_until_the_plan_fits() -> None:
    result = resolve_auto(recipe(data=NO_PACKING, hardware={"memory_limit": "1100 MB"}), facts([1000] * 50))
    assert result.batch_size < 4
    assert result.memory.total <= 1_100_000_000
    assert "limit 1.1 GB" in result.reasons["training.batch_size"]


def test_the_compute_type_follows_the_chip() -> None:
    assert resolved(machine=CPU).recipe.hardware.compute_dtype == "float32"
    assert resolved(machine=M2).recipe.hardware.compute_dtype == "float16"
    assert resolved(machine=M4).recipe.hardware.compute_dtype == "bfloat16"
    assert resolved(machine=M2, with_lora=False).recipe.hardware.compute_dtype == "bfloat16"


def test_limits_on_macs_are_those_of_the_table() -> None:
    assert memory_limit(M2) == M2.working_set_bytes
    assert memory_limit(M4) == M4.working_set_bytes
    small = Machine(on_gpu=True, memory_bytes=8 * GIB, working_set_bytes=round(5.33 * GIB), chip="Apple M1")
    assert memory_limit(small) == 4 * GIB
    limits = plan_limits(HardwareRecipe.model_validate({}), M4, 10 * GIB, {})
    assert (limits.wired_bytes, limits.cache_bytes) == (12 * GIB, 2 * GIB)
    assert plan_limits(HardwareRecipe.model_validate({}), M4, 100 * GIB, {}).wired_bytes == round(
        0.9 * M4.working_set_bytes
    )


def test_a_cpu_may_use_four_fifths_of_its_memory_and_wires_nothing() -> None:
    limits = plan_limits(HardwareRecipe.model_validate({}), CPU, 10 * GIB, {})
    assert (limits.memory_bytes, limits.wired_bytes) == (round(0.8 * CPU.memory_bytes), 0)
    assert limits.cache_bytes == 32 * 10**6


@given(
    lengths=st.lists(st.integers(2, 60), min_size=1, max_size=40),
    batch_size=st.integers(1, 5),
    accumulation=st.integers(1, 3),
    packed=st.booleans(),
    epochs=st.sampled_from([0.3, 1.0, 1.5, 3.0]),
)
def test_steps_are_counted_as_the_stream_makes_them(
    lengths: list[int], batch_size: int, accumulation: int, packed: bool, epochs: float
) -> None:
    rows = [Tokens(np.ones(n, np.int32), np.ones(n, np.bool_), "x", i) for i, n in enumerate(lengths, 1)]
    packed_length = 64 if packed else None
    stream = Stream(rows, batch_size=batch_size, accumulation=accumulation, packed_length=packed_length, seed=3)
    per_epoch = steps_in_epoch(count_sequences(np.array(lengths), packed_length), batch_size, accumulation)
    assert per_epoch == stream.steps_in_epoch(0)
    assert total_steps(per_epoch, epochs) == stream.total_steps(epochs)


@given(batch=st.integers(1, 8), length=st.integers(8, 2048), rank=st.integers(1, 64), recompute=st.booleans())
def test_the_plan_grows_with_batch_length_and_rank(batch: int, length: int, rank: int, recompute: bool) -> None:
    def plan(batch: int, length: int, rank: int) -> MemoryPlan:
        lora = LoraRecipe.model_validate({"rank": rank})
        return plan_memory(SMOLLM2, lora, Layout(batch, length), value_bytes=4, stored_bits=None, recompute=recompute)

    here = plan(batch, length, rank)
    for more in (plan(batch + 1, length, rank), plan(batch, length + 8, rank)):
        assert more.activations > here.activations
        assert more.total >= here.total  # logits alone do not: they exist a chunk at a time
    assert plan(batch, length, rank + 1).total > here.total


def test_the_longest_batch_is_planned_as_the_stream_pads_it() -> None:
    assert longest_padded(np.array([9, 1000])) == 1024
    assert longest_padded(np.array([9])) == 8


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="no training rows"):
        resolve_auto(recipe(), Facts(np.array([], np.int64), SMOLLM2, CPU))


def test_nothing_here_loads_mlx() -> None:
    import subprocess
    import sys

    code = "import sys, mlx_finetune.hardware.planning.auto; print(bool({'mlx.core', 'transformers'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"


ROOT = Path(__file__).resolve().parents[3]
