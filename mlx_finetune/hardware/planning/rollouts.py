"""What a run that learns from its own answers (grpo) costs beside its steps: saying them is nearly all of the time.

One forward pass gives each of some answers its next token. It takes longer than one for a single answer: on two
x86 cores SmolLM2-135M says 14 tokens a second alone, 77 in batches of 8 and about 100 in batches of 16 (2026-11-26).
"""

import math
from dataclasses import dataclass, replace

from mlx_finetune.hardware.planning.answering import CPU_AT_ONCE, GPU_AT_ONCE
from mlx_finetune.hardware.planning.auto import Resolved
from mlx_finetune.hardware.planning.forecast import Forecast
from mlx_finetune.hardware.planning.ranges import Range

_PER_ANSWER_CPU, _PER_ANSWER_GPU = 0.08, 0.01  # of the time of one alone, for each answer more
_SHARE = (0.1, 0.6, 1.3)  # of the longest answer before one ends by itself
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

    def passes_for(self, num_answers: int) -> int:
        """The same for an evaluation, of one answer to each problem."""
        return math.ceil(num_answers / self.at_once) * self.max_tokens


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
    answer_seconds: float | None,
    num_valid: int,
    num_evaluations: int,
    *,
    on_gpu: bool,
    score_seconds: tuple[float, float] | None = None,
) -> Forecast:
    """``forecast`` of steps on one answer a problem, with all answers of each group and the time to say them.

    ``answer_seconds`` is what a token of one answer takes; without it that time is not in it. An evaluation says one
    answer to each of ``num_valid`` problems. ``score_seconds`` go by while runs score one answer, a short and the
    longest one. Other tasks stay as they are.
    """
    plan = plan_rollouts(resolved, on_gpu=on_gpu)
    if plan is None or forecast.step_seconds is None or forecast.finish_seconds is None:
        return forecast
    total = resolved.total_steps
    step = forecast.step_seconds * plan.group_size
    finish = forecast.finish_seconds + forecast.step_seconds * (total * (plan.group_size - 1))
    if answer_seconds is not None:
        grows = _PER_ANSWER_GPU if on_gpu else _PER_ANSWER_CPU
        low, usual, high = _SHARE
        each = Range(low, usual, high) * (answer_seconds * (1 + grows * (plan.at_once - 1)))
        step = step + each * (plan.num_passes / plan.updates)
        drawn = math.ceil(total / plan.updates) * plan.num_passes
        finish = finish + each * (drawn + num_evaluations * plan.passes_for(num_valid))
    if score_seconds is not None:
        scored = _score_range(*score_seconds)
        step = step + scored * (plan.num_answers / plan.updates)
        finish = finish + scored * (math.ceil(total / plan.updates) * plan.num_answers + num_evaluations * num_valid)
    return replace(forecast, step_seconds=step, finish_seconds=finish)


def _score_range(short: float, long: float) -> Range:
    """Seconds to score an answer of a length that nobody knows yet."""
    low, usual, high = (short + share * (long - short) for share in _SHARE)
    return Range(_DISTINCT * low, usual, high)
