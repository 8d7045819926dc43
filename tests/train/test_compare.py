"""After a run: the plan beside what happened, in one line and in the profile."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from shapes_of_models import TINYLLAMA

from mlx_finetune.events import Event, Notice
from mlx_finetune.hardware.limits import Machine
from mlx_finetune.hardware.planning.auto import resolve_auto
from mlx_finetune.hardware.planning.facts import Facts
from mlx_finetune.hardware.planning.shapes import read_shape
from mlx_finetune.hardware.profile import (
    Corrections,
    Happened,
    Planned,
    machine_key,
    read_profile,
    record_run,
    remember_plan,
)
from mlx_finetune.hardware.profile import plan_key as key_of
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.train.checkpoints.state import RunState
from mlx_finetune.train.compare import Comparison, compare_run, expect_run, profile_path, with_profile

CPU = Machine(on_gpu=False, memory_bytes=64 * 10**9, working_set_bytes=0, chip="some processor")
ASKED = Recipe.model_validate(
    {
        "model": "m",
        "output_dir": "o",
        "lora": {},
        "data": {"path": "d", "packing": False},
        "training": {"max_steps": 40},
    }
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLXFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def emitted() -> list[Event]:
    return []


def facts() -> Facts:
    return Facts(np.array([65] * 40), read_shape(TINYLLAMA), CPU)


def finished(*, steps: int = 40, seconds: float = 80.0, peak: int = 7 * 10**9) -> RunState:
    state = RunState()
    state.step, state.train_seconds, state.peak_memory_bytes = steps, seconds, peak
    return state


def test_the_plan_of_the_same_recipe_is_found_and_forgotten(emitted: list[Event]) -> None:
    planned = Planned(6.5e9, 1.9, is_measured=True)
    remember_plan(profile_path(), key_of(ASKED, machine_key(CPU)), planned)
    expected = expect_run(ASKED, facts(), resolve_auto(ASKED, facts()), emitted.append)
    assert expected.planned == planned
    compared = compare_run(expected, finished(), emitted.append)
    assert compared is not None
    assert compared.sentence == ("peak memory 7.00 GB of 6.50 GB planned (+8%), 2.00 s a step of 1.90 s planned (+5%)")
    profile = read_profile(profile_path())
    assert profile.plans == {}
    assert profile.of(machine_key(CPU)).time_ratios == pytest.approx([2.0 / 1.9])
    assert emitted == []


def test_without_a_plan_the_arithmetic_is_compared_and_after_a_run_its_speed_too(emitted: list[Event]) -> None:
    resolved = resolve_auto(ASKED, facts())
    first = expect_run(ASKED, facts(), resolved, emitted.append)
    assert (first.planned.is_measured, first.planned.step_seconds) == (False, None)
    compared = compare_run(first, finished(), emitted.append)
    assert compared is not None
    assert "a step" not in compared.sentence
    again = expect_run(ASKED, facts(), resolved, emitted.append)
    assert again.planned.step_seconds == pytest.approx(2.0)  # the speed of the run before, on the same rows


def test_a_run_of_steps_that_compile_says_nothing_about_the_time_of_the_next(emitted: list[Event]) -> None:
    resolved = resolve_auto(ASKED, facts())
    remember_plan(profile_path(), key_of(ASKED, machine_key(CPU)), Planned(6.5e9, 1.9, is_measured=True))
    expected = expect_run(ASKED, facts(), resolved, emitted.append)
    assert compare_run(expected, finished(steps=3, seconds=106.0), emitted.append) is not None
    known = read_profile(profile_path()).of(machine_key(CPU))
    assert (known.time_ratios, known.flops_per_second) == ((), ())
    assert expect_run(ASKED, facts(), resolved, emitted.append).planned.step_seconds is None


def test_the_next_run_decides_with_what_the_last_one_took(emitted: list[Event]) -> None:
    resolved = resolve_auto(ASKED, facts())
    expected = expect_run(ASKED, facts(), resolved, emitted.append)
    compare_run(expected, finished(peak=resolved.memory.corrected(2.0)), emitted.append)
    corrected = with_profile(facts(), ASKED)
    assert corrected.memory_factor == pytest.approx(2 ** (1 / 5))
    weights, beyond = resolved.memory.weights, resolved.memory.total - resolved.memory.weights
    assert weights > 0
    assert resolve_auto(ASKED, corrected).peak_bytes == weights + round(beyond * 2 ** (1 / 5))


@pytest.mark.parametrize(("steps", "processes", "is_learned"), [(9, 1, False), (10, 1, True), (10, 2, False)])
def test_a_short_run_and_one_of_several_processes_do_not_make_the_next_plan_smaller(
    steps: int, processes: int, is_learned: bool, emitted: list[Event]
) -> None:
    known = replace(facts(), num_processes=processes)
    resolved = resolve_auto(ASKED, known)
    assert resolved.steps_per_epoch == 10
    state = finished(peak=resolved.memory.corrected(0.6))
    state.step = steps
    compare_run(expect_run(ASKED, known, resolved, emitted.append), state, emitted.append)
    assert (with_profile(facts(), ASKED).memory_factor < 1) == is_learned


def test_batch_and_recomputation_that_are_automatic_use_the_correction() -> None:
    tight = Facts(np.array([513] * 40), read_shape(TINYLLAMA), Machine(False, 22 * 10**9, 0, "x"))
    plain = resolve_auto(ASKED, tight)
    assert (plain.batch_size, plain.recipe.training.gradient_checkpointing) == (4, False)
    worse = Facts(tight.lengths, tight.shape, tight.machine, memory_factor=3.0)
    corrected = resolve_auto(ASKED, worse)
    assert corrected.recipe.training.gradient_checkpointing is True
    assert corrected.peak_bytes <= corrected.limits.memory_bytes


def test_a_profile_that_cannot_be_read_is_a_warning_and_one_that_cannot_be_written_a_notice(
    cache: Path, emitted: list[Event]
) -> None:
    (cache / "profile.json").mkdir(parents=True)
    expected = expect_run(ASKED, facts(), resolve_auto(ASKED, facts()), emitted.append)
    assert compare_run(expected, finished(), emitted.append) is not None
    assert [one.level for one in emitted if isinstance(one, Notice)] == ["warning", "info"]


def test_a_run_without_a_step_is_not_compared(emitted: list[Event]) -> None:
    expected = expect_run(ASKED, facts(), resolve_auto(ASKED, facts()), emitted.append)
    assert compare_run(expected, RunState(), emitted.append) is None
    assert read_profile(profile_path()).of(machine_key(CPU)) == Corrections()


def test_the_comparison_as_values_has_both_sides() -> None:
    compared = Comparison(Planned(2e9, 1.5, is_measured=True), Happened(10**9, 3.0, 1e12, 1.0))
    assert compared.to_json() == {
        "is_measured": True,
        "planned_peak_bytes": 2_000_000_000,
        "peak_bytes": 1_000_000_000,
        "planned_step_seconds": 1.5,
        "step_seconds": 3.0,
    }
    assert compared.sentence == "peak memory 1.00 GB of 2.00 GB planned (-50%), 3.00 s a step of 1.50 s planned (+100%)"


def test_a_run_writes_the_comparison_into_its_metrics(tmp_path: Path, tiny_model: Callable[..., Path]) -> None:
    import json

    from small_runs import train, write_recipe

    run = train(write_recipe(tmp_path, tiny_model("llama")))
    metrics = json.loads((run.path / "training_metrics.json").read_text())
    assert metrics["plan"]["peak_bytes"] == metrics["peak_memory_bytes"]
    assert metrics["plan"]["is_measured"] is False


@pytest.mark.parametrize("is_planned", [True, False])
def test_a_run_that_says_answers_is_compared_with_its_plan_and_teaches_nothing_of_the_machine(
    emitted: list[Event], is_planned: bool
) -> None:
    """By arithmetic the time to say them is not known, so there only the memory is compared."""
    asked = Recipe.model_validate(ASKED.model_dump(exclude_unset=True) | {"task": "grpo"})
    if is_planned:
        remember_plan(profile_path(), key_of(asked, machine_key(CPU)), Planned(6.5e9, 1.9, is_measured=True))
    record_run(profile_path(), machine_key(CPU), "", None, Happened(10**9, 1.0, 1e10, 1.0, is_whole=True))
    before = read_profile(profile_path()).of(machine_key(CPU))
    expected = expect_run(asked, facts(), resolve_auto(asked, facts()), emitted.append)
    compared = compare_run(expected, finished(), emitted.append)
    assert compared is not None
    assert ("2.00 s a step of 1.90 s planned (+5%)" in compared.sentence) == is_planned
    assert "peak memory 7.00 GB of " in compared.sentence
    assert read_profile(profile_path()).of(machine_key(CPU)) == before
