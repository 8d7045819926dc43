"""What a run that learns from its own answers (grpo) costs beside its steps: saying them is often most of the time.

One forward pass gives each of some answers its next token; what that takes is measured (``train.measure``).
"""

import math
from dataclasses import dataclass, replace

from mlx_finetune.hardware.planning.answering import CPU_AT_ONCE, GPU_AT_ONCE
from mlx_finetune.hardware.planning.auto import Resolved
from mlx_finetune.hardware.planning.forecast import Forecast
from mlx_finetune.hardware.planning.measured import Measured
from mlx_finetune.hardware.planning.ranges import Range

_SHARE = (0.1, 0.6, 1.3)  # of the longest answer before one ends by itself
_LEARNED = (0.1, 0.7, 1.0)  # of the groups have rewards that differ; the others are left out of the update
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
        low, usual, high = _SHARE
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


def add_rollouts(
    forecast: Forecast,
    resolved: Resolved,
    measured: Measured | None,
    num_valid: int,
    num_evaluations: int,
    *,
    on_gpu: bool,
) -> Forecast:
    """``forecast`` of steps on one answer a problem, with the answers of each group and the time to say them.

    Without ``measured`` that time is not in it. An evaluation says one answer to each of ``num_valid`` problems. Other
    tasks stay as they are.
    """
    plan = plan_rollouts(resolved, on_gpu=on_gpu)
    if plan is None or forecast.step_seconds is None or forecast.finish_seconds is None:
        return forecast
    total, drawings = resolved.total_steps, math.ceil(resolved.total_steps / plan.updates)
    step = _with_groups(forecast.step_seconds, plan.group_size, measured.update_seconds if measured else 0.0)
    before = forecast.step_seconds
    more = Range(step.low - before.low, step.expected - before.expected, step.high - before.high)
    finish = forecast.finish_seconds + more * total
    if measured is not None and measured.drawing_seconds is not None:
        said = plan.seconds(plan.num_answers, *measured.drawing_seconds)
        evaluated = plan.seconds(num_valid, *measured.drawing_seconds)
        step = step + said * (1 / plan.updates)
        finish = finish + said * drawings + evaluated * num_evaluations
    if measured is not None and measured.score_seconds is not None:
        scored = _score_range(*measured.score_seconds)
        step = step + scored * (plan.num_answers / plan.updates)
        finish = finish + scored * (drawings * plan.num_answers + num_evaluations * num_valid)
    return replace(forecast, step_seconds=step, finish_seconds=finish)


def _with_groups(step: Range, group_size: int, update_seconds: float) -> Range:
    """A step that learns from the answers of its groups and not from one row each; it has one update all the same.

    Where all groups are left out there still is a microbatch.
    """

    def grown(seconds: float, share: float) -> float:
        update = min(update_seconds, seconds)
        return max(seconds, update + (seconds - update) * group_size * share)

    low, usual, high = _LEARNED
    return Range(grown(step.low, low), grown(step.expected, usual), grown(step.high, high))


def _score_range(short: float, long: float) -> Range:
    """Seconds to score an answer of a length that nobody knows yet."""
    low, usual, high = (short + share * (long - short) for share in _SHARE)
    return Range(_DISTINCT * low, usual, high)
