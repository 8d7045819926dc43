"""What a run that learns from its own answers (grpo) costs beside its steps: saying them is often most of the time.

One forward pass gives each of some answers its next token; what that takes is measured (``train.measure``), or assumed:
a pass reads all weights and what it keeps of earlier tokens once, at the speed of the memory.
"""

import math
from dataclasses import dataclass, replace

from mlx_finetune.hardware.planning.answering import CPU_AT_ONCE, GPU_AT_ONCE
from mlx_finetune.hardware.planning.auto import Resolved
from mlx_finetune.hardware.planning.chips import find_chip
from mlx_finetune.hardware.planning.facts import Facts
from mlx_finetune.hardware.planning.forecast import AnswerTimes, Forecast
from mlx_finetune.hardware.planning.measured import Measured
from mlx_finetune.hardware.planning.memory import weight_bytes
from mlx_finetune.hardware.planning.ranges import Range

ANSWER_SHARE = (0.1, 0.6, 1.3)  # of the longest answer before one ends by itself
LEARNED_SHARE = (0.1, 0.7, 1.0)  # of the groups have rewards that differ; the others are left out of the update
CPU_BANDWIDTH = 10e9  # bytes a second that a pass reads where nobody has measured: two channels, other programs
GPU_BANDWIDTH_SHARE = 0.7  # of what the chip table says
BLOCK_SECONDS = 0.001  # of a pass on a CPU beside what it reads: Python and small arrays
ASSUMED = (0.4, 1.0, 2.5)  # the truth beside what is assumed of a machine
_DISTINCT = 0.3  # of the answers at least, of which equal ones to a problem are scored once


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """``num_answers`` of a drawing, of at most ``max_tokens``, ``at_once`` together; ``group_size`` to each problem.

    ``updates`` steps learn from each drawing.
    """

    num_answers: int
    group_size: int
    max_tokens: int
    at_once: int
    updates: int = 1

    @property
    def num_passes(self) -> int:
        """Forward passes of a drawing where every answer is as long as it may be."""
        return math.ceil(self.num_answers / self.at_once) * self.max_tokens

    def seconds(self, num_answers: int, first: float, later: float) -> Range:
        """To say ``num_answers``, where some at once take ``first`` for their first token and ``later`` for each more.

        How long they will be nobody knows.
        """
        low, usual, high = ANSWER_SHARE
        more = Range(low, usual, high) * ((self.max_tokens - 1) * later)
        return (Range(first, first, first) + more) * math.ceil(num_answers / self.at_once)


def plan_rollouts(resolved: Resolved, *, on_gpu: bool) -> RolloutPlan | None:
    """None for a task that says nothing itself."""
    recipe = resolved.recipe
    if recipe.task != "grpo":
        return None
    problems = resolved.batch_size * recipe.training.gradient_accumulation_steps
    grpo = recipe.grpo
    at_once = GPU_AT_ONCE if on_gpu else CPU_AT_ONCE
    return RolloutPlan(problems * grpo.group_size, grpo.group_size, grpo.max_tokens, at_once, grpo.updates)


def assume_drawing(resolved: Resolved, facts: Facts, step: Range) -> tuple[float, float] | None:
    """Seconds of the first tokens of as many answers as grow together, their prompts read, and of each later token.

    By arithmetic, for a ``step`` that learns one answer a problem: reading a position takes a third of learning it.
    None for a GPU of which the table does not tell how fast its memory is.
    """
    on_gpu, shape, recipe = facts.machine.on_gpu, facts.shape, resolved.recipe
    plan, chip = plan_rollouts(resolved, on_gpu=on_gpu), find_chip(facts.machine.chip)
    if plan is None or (on_gpu and chip is None):
        return None
    bandwidth = GPU_BANDWIDTH_SHARE * chip.gigabytes_per_second * 1e9 if on_gpu and chip else CPU_BANDWIDTH
    value_bytes = 2 if on_gpu and recipe.hardware.compute_dtype != "float32" else 4
    bits = (recipe.quantize or facts.stored_bits) if on_gpu else None
    together, mean = min(plan.num_answers, plan.at_once), float(facts.lengths.mean())
    kept = 2 * shape.num_layers * shape.key_width * value_bytes * together * mean
    read = (weight_bytes(shape, value_bytes=value_bytes, stored_bits=bits) + kept) / bandwidth
    rows = resolved.batch_size * recipe.training.gradient_accumulation_steps
    position = step.expected / (rows * mean) / 3
    later = max(read, together * position) + (0.0 if on_gpu else shape.num_layers * BLOCK_SECONDS)
    return together * max(1.0, mean - plan.max_tokens) * position + later, later


def add_rollouts(
    forecast: Forecast,
    resolved: Resolved,
    measured: Measured | None,
    num_valid: int,
    num_evaluations: int,
    *,
    on_gpu: bool,
    assumed: tuple[float, float] | None = None,
) -> Forecast:
    """``forecast`` of steps on one answer a problem, with the answers of each group and the time to say them.

    Without ``measured`` that time is as ``assumed``, else not in it. An evaluation says one answer to each of
    ``num_valid`` problems. Other tasks stay as they are.
    """
    plan = plan_rollouts(resolved, on_gpu=on_gpu)
    if plan is None or forecast.step_seconds is None or forecast.finish_seconds is None:
        return forecast
    total, drawings = resolved.total_steps, math.ceil(resolved.total_steps / plan.updates)
    before, saying = forecast.step_seconds, None
    update_seconds = measured.update_seconds if measured else 0.0
    step = _with_groups(before, plan.group_size, update_seconds)
    exact = Range(before.expected, before.expected, before.expected)
    learning = _with_groups(exact, plan.group_size, update_seconds)
    more = Range(step.low - before.low, step.expected - before.expected, step.high - before.high)
    finish = forecast.finish_seconds + more * total
    drawing = measured.drawing_seconds if measured is not None else assumed
    if drawing is not None:
        wide = ASSUMED if measured is None else (1.0, 1.0, 1.0)
        said = _widened(plan.seconds(plan.num_answers, *drawing), wide)
        evaluated = _widened(plan.seconds(num_valid, *drawing), wide)
        saying = said * (1 / plan.updates)
        step = step + saying
        finish = finish + said * drawings + evaluated * num_evaluations
    if measured is not None and measured.score_seconds is not None:
        scored = _score_range(*measured.score_seconds)
        step = step + scored * (plan.num_answers / plan.updates)
        finish = finish + scored * (drawings * plan.num_answers + num_evaluations * num_valid)
    answers = AnswerTimes(saying, learning, measured is None)
    return replace(forecast, step_seconds=step, finish_seconds=finish, answers=answers)


def _widened(seconds: Range, by: tuple[float, float, float]) -> Range:
    low, usual, high = by
    return Range(low * seconds.low, usual * seconds.expected, high * seconds.high)


def _with_groups(step: Range, group_size: int, update_seconds: float) -> Range:
    """A step that learns from the answers of its groups and not from one row each; it has one update all the same.

    Where all groups are left out there still is a microbatch.
    """

    def grown(seconds: float, share: float) -> float:
        update = min(update_seconds, seconds)
        return max(seconds, update + (seconds - update) * group_size * share)

    low, usual, high = LEARNED_SHARE
    return Range(grown(step.low, low), grown(step.expected, usual), grown(step.high, high))


def _score_range(short: float, long: float) -> Range:
    """Seconds to score an answer of a length that nobody knows yet."""
    low, usual, high = (short + share * (long - short) for share in ANSWER_SHARE)
    return Range(_DISTINCT * low, usual, high)
