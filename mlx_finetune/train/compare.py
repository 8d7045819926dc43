"""After a run: what was planned beside what happened, and the profile of this machine corrected by it.

The plan is the one that ``mlxft plan`` made of the same recipe, where there was one, else the arithmetic that the run
itself was started with. Nothing here can fail a run: a profile that cannot be written is a notice.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from mlx_finetune.errors import RunError
from mlx_finetune.events import Notice
from mlx_finetune.hardware.planning.auto import Resolved
from mlx_finetune.hardware.planning.chips import flops_per_token
from mlx_finetune.hardware.planning.facts import Facts
from mlx_finetune.hardware.planning.forecast import forecast_arithmetic, overhead_of
from mlx_finetune.hardware.planning.layout import epoch_positions
from mlx_finetune.hardware.planning.memory import MemoryPlan
from mlx_finetune.hardware.planning.overhead import operations_per_second
from mlx_finetune.hardware.planning.ranges import Range
from mlx_finetune.hardware.profile import (
    FEWEST_STEPS,
    FILE_NAME,
    Happened,
    Planned,
    machine_key,
    plan_key,
    read_profile,
    record_run,
    tuned_settings,
)
from mlx_finetune.hardware.tuned import NOTHING_TUNED
from mlx_finetune.model.sources.catalogue import cache_folder
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.train.checkpoints.state import RunState
from mlx_finetune.train.start.rows import Emit
from mlx_finetune.units import format_bytes, format_step


@dataclass(frozen=True, slots=True)
class Expected:
    """What a run will be compared with. ``step_flops`` are the operations of a step, padding included, and
    ``step_overhead`` the seconds beside them.

    ``memory`` is the arithmetic; a run of ``whole_steps`` has seen all rows (None: others compute a part of each step).
    A run that ``says_answers`` to learn from teaches the profile nothing: how long these are is not the machine's.
    """

    machine: str
    key: str
    planned: Planned
    memory: MemoryPlan
    whole_steps: int | None
    step_flops: float
    step_overhead: float
    says_answers: bool = False


@dataclass(frozen=True, slots=True)
class Comparison:
    """Planned and actual peak memory and seconds of a step; no seconds where none were planned."""

    planned: Planned
    happened: Happened

    @property
    def sentence(self) -> str:
        """One line for a person."""
        peak = f"peak memory {format_bytes(self.happened.peak_bytes, 2)} of {format_bytes(self.planned.peak_bytes, 2)}"
        words = f"{peak} planned ({_miss(self.happened.peak_bytes, self.planned.peak_bytes)})"
        seconds = self.happened.step_seconds
        if self.planned.step_seconds:
            planned = self.planned.step_seconds
            words += f", {format_step(seconds)} a step of {format_step(planned)} planned ({_miss(seconds, planned)})"
        return words

    def to_json(self) -> dict[str, object]:
        """Plain values for training_metrics.json."""
        return {
            "is_measured": self.planned.is_measured,
            "planned_peak_bytes": round(self.planned.peak_bytes),
            "peak_bytes": self.happened.peak_bytes,
            "planned_step_seconds": self.planned.step_seconds,
            "step_seconds": round(self.happened.step_seconds, 6),
        }


def _miss(actual: float, planned: float) -> str:
    return f"{actual / planned - 1:+.0%}"


def profile_path() -> Path:
    """The profile of this user's machines."""
    return cache_folder() / FILE_NAME


def with_profile(facts: Facts, recipe: Recipe, *, uses_tuned: bool = True) -> Facts:
    """``facts`` with what earlier runs on this machine taught about its memory, and what ``mlxft tune`` about speed."""
    profile = read_profile(profile_path())
    known = profile.of(machine_key(facts.machine))
    tuned = tuned_settings(profile, facts.machine, recipe) if uses_tuned else NOTHING_TUNED
    return replace(facts, memory_factor=known.memory_factor, tuned=tuned)


def expect_run(asked: Recipe, facts: Facts, resolved: Resolved, emit: Emit) -> Expected:
    """What ``mlxft plan`` said of this recipe on this machine, or says now by arithmetic."""
    machine = machine_key(facts.machine)
    profile = read_profile(profile_path())
    if profile.warning:
        emit(Notice("warning", profile.warning))
    key = plan_key(asked, machine)
    per_step = epoch_positions(facts.lengths, resolved.packed_length, resolved.batch_size) / resolved.steps_per_epoch
    recompute = resolved.recipe.training.gradient_checkpointing is True
    planned, says_answers = profile.plans.get(key), asked.task == "grpo"
    if planned is None:
        forecast = forecast_arithmetic(
            resolved,
            facts.shape,
            per_step * resolved.total_steps,
            profile.of(machine),
            on_gpu=facts.machine.on_gpu,
            disk_bytes=Range(0.0, 0.0, 0.0),
        )
        step = None if says_answers else forecast.step_seconds  # in which the time to say them is not
        seconds = step.expected if step else None
        planned = Planned(forecast.peak_bytes.expected, seconds, is_measured=False)
    num_reused = resolved.kept.num_blocks if resolved.kept else 0
    each = flops_per_token(facts.shape, resolved.recipe.lora, recompute=recompute, num_reused=num_reused)
    whole_steps = resolved.steps_per_epoch if facts.num_processes == 1 else None
    overhead = overhead_of(resolved, facts.shape, per_step, on_gpu=facts.machine.on_gpu)
    flops = per_step * each
    return Expected(machine, key, planned, resolved.memory, whole_steps, flops, overhead, says_answers=says_answers)


def compare_run(expected: Expected, state: RunState, emit: Emit) -> Comparison | None:
    """The comparison of a run that has finished, which also corrects the profile; None for a run without a step."""
    if not state.step or state.train_seconds <= 0 or not state.peak_memory_bytes:
        return None
    seconds = state.train_seconds / state.step
    happened = Happened(
        peak_bytes=state.peak_memory_bytes,
        step_seconds=seconds,
        flops_per_second=operations_per_second(expected.step_flops, seconds, expected.step_overhead),
        memory_ratio=expected.memory.factor(state.peak_memory_bytes),
        is_whole=expected.whole_steps is not None and state.step >= expected.whole_steps,
        is_warm=state.step >= FEWEST_STEPS,
    )
    assert math.isfinite(happened.flops_per_second), "a step took some time"
    if expected.says_answers:
        return Comparison(expected.planned, happened)
    try:
        record_run(profile_path(), expected.machine, expected.key, expected.planned, happened)
    except (OSError, RunError) as error:
        emit(Notice("info", f"the profile of this machine was not corrected: {error}"))
    return Comparison(expected.planned, happened)
