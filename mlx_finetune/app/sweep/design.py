"""Which trial of a sweep comes next, as a pure function of those that are done. At most ``MOST_TRIALS``.

Successive halving (Jamieson and Talwalkar; 1810.05934) with a factor of 3 and two rungs: trials of a third of the
steps, the best third of them again with all, and the recipe's own settings beside them: a third of the steps may favour
other rates, and what wins must have beaten the recipe. First the learning rate, ``L``, ``L / 3``, ``3 L``, and one
beyond where the best lies at an end; then half and twice the rank at the best rate, with the same alpha / rank. Each
trial has a schedule of its own length, so that rates have decayed alike when losses are compared.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

MOST_TRIALS = 8
FACTOR = 3
MOST_RANK = 1024

Rung = Literal["learning rate", "rank", "all steps"]
_Wanted = tuple[Rung, float, int | None, int]  # rung, rate, rank, steps


@dataclass(frozen=True, slots=True)
class Base:
    """What the recipe says itself: its rate, its rank (None: every weight is trained) and the steps of a whole run."""

    learning_rate: float
    rank: int | None
    total_steps: int

    @property
    def short_steps(self) -> int:
        """Steps of a trial on the first rung."""
        return max(1, math.ceil(self.total_steps / FACTOR))


@dataclass(frozen=True, slots=True)
class Trial:
    """One run; ``number`` counts from 1."""

    number: int
    rung: Rung
    learning_rate: float
    rank: int | None
    steps: int


@dataclass(frozen=True, slots=True)
class Done:
    """A trial and its validation loss, in nats per target; None where it came to none, and ``failure`` says why."""

    trial: Trial
    loss: float | None
    seconds: float = 0.0
    failure: str = ""


def next_trial(base: Base, done: Sequence[Done]) -> Trial | None:
    """The trial after ``done``; None where the sweep is over, or no trial of the first rung came to a loss."""
    if len(done) >= MOST_TRIALS:
        return None
    for rung, rate, rank, steps in _wanted(base, done):
        if not any(_is(one.trial, rate, rank, steps) for one in done):
            return Trial(len(done) + 1, rung, rate, rank, steps)
    return None


def best_of(done: Sequence[Done]) -> Done | None:
    """The winner: the least validation loss of the trials with most steps."""
    known = [one for one in done if one.loss is not None]
    most = max((one.trial.steps for one in known), default=0)
    return min((one for one in known if one.trial.steps == most), key=_loss, default=None)


def edges_of(done: Sequence[Done]) -> dict[str, str]:
    """What of the winner was the highest or the lowest that was tried, so that a better one may lie beyond it.

    A trial that diverged was tried too: beyond a rate that diverged there is nothing to find.
    """
    best = best_of(done)
    if best is None:
        return {}
    found: dict[str, str] = {}
    for name, value, tried, ends in (
        ("learning rate", best.trial.learning_rate, {one.trial.learning_rate for one in done}, ()),
        ("rank", best.trial.rank or 0, {one.trial.rank or 0 for one in done}, (0, 1, MOST_RANK)),
    ):
        if len(tried) > 1 and value not in ends and value in (min(tried), max(tried)):
            found[name] = "highest" if value == max(tried) else "lowest"
    return found


def _wanted(base: Base, done: Sequence[Done]) -> list[_Wanted]:
    """What is to be tried, as far as ``done`` tells: the first that is not done comes next."""
    short = base.short_steps
    rates = [base.learning_rate, base.learning_rate / FACTOR, base.learning_rate * FACTOR]
    wanted: list[_Wanted] = [("learning rate", rate, base.rank, short) for rate in rates]
    by_rate = [one for one in done if one.trial.rung == "learning rate"]
    if len(by_rate) < len(rates):
        return wanted
    first = min((one for one in by_rate[: len(rates)] if one.loss is not None), key=_loss, default=None)
    if first is None:
        return wanted
    if not math.isclose(first.trial.learning_rate, base.learning_rate):
        beyond = first.trial.learning_rate**2 / base.learning_rate
        wanted.append(("learning rate", beyond, base.rank, short))
        if len(by_rate) == len(rates):
            return wanted
    best = min((one for one in by_rate if one.loss is not None), key=_loss)
    ranks = other_ranks(base.rank)
    for rank in ranks:
        wanted.append(("rank", best.trial.learning_rate, rank, short))
    if sum(one.trial.rung == "rank" for one in done) < len(ranks):
        return wanted
    rung = sorted((one for one in done if one.trial.rung != "all steps" and one.loss is not None), key=_loss)
    finalists = [(one.trial.learning_rate, one.trial.rank) for one in rung[: _num_kept(len(wanted))]]
    finalists.insert(1, (base.learning_rate, base.rank))  # second: a third finalist may be one trial too many
    for rate, rank in finalists:
        wanted.append(("all steps", rate, rank, base.total_steps))
    return wanted


def other_ranks(rank: int | None) -> list[int]:
    """Half and twice the rank, as far as there are such ranks."""
    if rank is None:
        return []
    return [other for other in (rank // 2, 2 * rank) if 1 <= other <= MOST_RANK]


def steps_of(base: Base) -> tuple[int, int]:
    """The least and the most steps of all trials together; one short trial more where the best rate lies at an end."""
    least: list[int] = []
    most: list[int] = []
    for num_short in (len(other_ranks(base.rank)) + count for count in (3, 4)):
        short, num_kept = num_short * base.short_steps, _num_kept(num_short)
        least.append(short + num_kept * base.total_steps)
        most.append(short + min(num_kept + 1, MOST_TRIALS - num_short) * base.total_steps)
    return min(least), max(most)


def _num_kept(num_short: int) -> int:
    return max(1, round(num_short / FACTOR))


def _is(trial: Trial, rate: float, rank: int | None, steps: int) -> bool:
    return math.isclose(trial.learning_rate, rate) and trial.rank == rank and trial.steps == steps


def _loss(done: Done) -> float:
    assert done.loss is not None, "a trial without a loss is not compared"
    return done.loss
