"""When each category was learned: the first checkpoint from which on most of its held-out probes are right.

Right is a probe whose right answer is more probable than every wrong one. Most are right where Wilson's 95 % interval
of the share lies above one half, there and at every later checkpoint. What was known before training is said apart, and
so are categories with too few probes to show that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mlx_finetune.app.trace.journal import StepResult
from mlx_finetune.app.trace.probes import Probe
from mlx_finetune.scoring.intervals import bootstrap_mean, wilson
from mlx_finetune.units import counted

MOST = 0.5
Outcome = Literal["known before", "learned", "not learned", "too few", "no answers"]


@dataclass(frozen=True, slots=True)
class Point:
    """A category at one step. ``loss`` is nats a target; the others are None where probes have no wrong answers.

    ``rank`` is the mean place of the right answer among its candidates, ``token_rank`` the median place of its first
    own token among all tokens. Intervals are 95 %: Wilson's of the share right, a bootstrap over probes of the margin.
    """

    step: int
    loss: float
    token_rank: float
    num_right: int | None
    low: float | None
    high: float | None
    rank: float | None
    margin: float | None
    margin_low: float | None
    margin_high: float | None


@dataclass(frozen=True, slots=True)
class Category:
    """Its course, and what it comes to. ``step`` is where it was learned, ``before`` the checkpoint before that."""

    name: str
    num_probes: int
    chance: float
    course: tuple[Point, ...]
    outcome: Outcome
    step: int | None
    before: int | None
    sentence: str


def describe_categories(results: Sequence[StepResult], probes: Sequence[Probe], *, seed: int) -> list[Category]:
    """Every category by name, with all steps of ``results``, whose replies are in the order of ``probes``."""
    found: list[Category] = []
    for name in sorted({probe.category for probe in probes}):
        places = [place for place, probe in enumerate(probes) if probe.category == name]
        course = tuple(_point(result, places, seed) for result in results)
        chance = float(np.mean([probes[place].chance for place in places]))
        found.append(_judge(name, len(places), chance, course))
    return found


def _point(result: StepResult, places: Sequence[int], seed: int) -> Point:
    replies = [result.replies[place] for place in places]
    loss = sum(reply.loss_sum for reply in replies) / max(1, sum(reply.num_targets for reply in replies))
    token_rank = float(np.median([reply.token_rank for reply in replies]))
    margins = [margin for reply in replies if (margin := reply.margin) is not None]
    ranks = [rank for reply in replies if (rank := reply.rank) is not None]
    if len(margins) < len(replies):
        return Point(result.step, loss, token_rank, None, None, None, None, None, None, None)
    num_right = sum(margin > 0 for margin in margins)
    share, margin = wilson(num_right, len(margins)), bootstrap_mean(margins, seed=seed)
    return Point(
        step=result.step,
        loss=loss,
        token_rank=token_rank,
        num_right=num_right,
        low=share.low,
        high=share.high,
        rank=float(np.mean(ranks)),
        margin=float(np.mean(margins)),
        margin_low=margin.low,
        margin_high=margin.high,
    )


def _judge(name: str, count: int, chance: float, course: tuple[Point, ...]) -> Category:
    if any(point.num_right is None for point in course):
        what = f"{name}: no wrong answers to compare with; probe loss {course[0].loss:.2f} -> {course[-1].loss:.2f}"
        return Category(name, count, chance, course, "no answers", None, None, what)
    place = len(course)
    while place and (course[place - 1].low or 0.0) > MOST:
        place -= 1
    probes = f"{counted(count, 'held-out probe')}, chance {chance:.0%}"
    if count < _fewest():
        share = f"{_share(course[-1], count)} at the last step"
        text = f"{name}: too few probes to say; {share} ({probes}; ask at least {_fewest()})"
        return Category(name, count, chance, course, "too few", None, None, text)
    if place == len(course):
        text = f"{name}: not learned; {_share(course[-1], count)} at the last step ({probes})"
        return Category(name, count, chance, course, "not learned", None, None, text)
    if place == 0:
        text = f"{name}: known before training: {_share(course[0], count)} at step {course[0].step} ({probes})"
        return Category(name, count, chance, course, "known before", course[0].step, None, text)
    here, before = course[place], course[place - 1]
    text = (
        f"{name}: learned between step {before.step} ({_share(before, count)}) and step {here.step} "
        f"({_share(here, count)}); {probes}"
    )
    return Category(name, count, chance, course, "learned", here.step, before.step, text)


def _fewest() -> int:
    """The probes of which most are surely right where all are."""
    return next(count for count in range(1, 100) if wilson(count, count).low > MOST)


def _share(point: Point, count: int) -> str:
    """``92 % right, 79 to 98``."""
    low, high = (round(100 * (end or 0.0)) for end in (point.low, point.high))
    return f"{(point.num_right or 0) / count:.0%} right, {low} to {high}"
