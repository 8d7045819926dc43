"""How well scores tell right answers from wrong ones: the area under the ROC curve, and how sure it is.

The area is the chance that a right answer scores above a wrong one, ties counting half (Hanley and McNeil 1982). Units
that are drawn again are problems, as the answers to one depend on each other. 10,000 resamples of 1,000 problems with
16 answers each take about 6 s on one x86 core.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlx_finetune.scoring.intervals import Interval, bootstrap, bootstrap_mean, bootstrap_ratio, wilson

CHANCE = 0.5
_CELLS_AT_ONCE = 2**22  # 32 MB a working array

Scores = Sequence[Sequence[float]]
Verdicts = Sequence[Sequence[bool]]


@dataclass(frozen=True, slots=True)
class Area:
    """An area under the curve with its 95 % interval, None where the problems give none (``interval_words``).

    ``num_problems`` have a part in it.
    """

    value: float
    interval: Interval | None
    num_problems: int


def interval_words(low: float | None, high: float | None, num_problems: int) -> str:
    """``0.612 to 0.731`` with what that says beside chance, which is nothing where it is above for sure; or why there
    is no interval. One of width 0, as was kept once, is none: it would claim certainty."""
    if low is None or high is None or low == high:
        why = "too few problems" if low is None else "problems all alike"
        return f"no interval: {'one problem' if num_problems == 1 else why}"
    says = "   below chance: wrong answers score higher" if high < CHANCE else ""
    says = f"   unsure: the interval holds {CHANCE}" if low <= CHANCE <= high else says
    return f"{low:.3f} to {high:.3f}{says}"


def area_over_all(scores: Scores, is_right: Verdicts, *, seed: int) -> Area | None:
    """Over all pairs of a right and a wrong answer, whichever problems they are of; None where there is no pair.

    Some problems are harder than others, so this also asks that scores of different problems can be compared.
    """
    pairs = _Pairs(scores, is_right)
    value = float(pairs.areas(np.ones((1, len(scores))))[0])
    if np.isnan(value):
        return None

    def statistic(chosen: NDArray[np.uint32]) -> NDArray[np.float64]:
        return np.concatenate([pairs.areas(part) for part in _weights(chosen, len(scores), pairs.num_answers)])

    num_telling = min(sum(kind in one for one in is_right) for kind in (True, False))
    return Area(value, _interval(value, bootstrap(len(scores), seed, statistic), num_telling), len(scores))


def area_within(scores: Scores, is_right: Verdicts, *, seed: int) -> Area | None:
    """Over all pairs of a right and a wrong answer to the same problem; None where no problem has both."""
    counted = _counted(scores, is_right)
    if not counted:
        return None
    wins, pairs = [one for one, _ in counted], [count for _, count in counted]
    value = sum(wins) / sum(pairs)
    return Area(value, _interval(value, bootstrap_ratio(wins, pairs, seed=seed), len(counted)), len(counted))


def mean_area(scores: Scores, is_right: Verdicts, *, seed: int) -> Area | None:
    """The mean of the areas of the problems that have both kinds of answers; None where none has."""
    areas = [wins / count for wins, count in _counted(scores, is_right)]
    if not areas:
        return None
    value = sum(areas) / len(areas)
    return Area(value, _interval(value, bootstrap_mean(areas, seed=seed), len(areas)), len(areas))


def _interval(value: float, found: Interval, num_problems: int) -> Interval | None:
    """``found`` by a bootstrap; where every resample gave the same, up to rounding, Wilson's, which is of shares that
    vary more than any others of so many problems. None of one problem."""
    if not math.isclose(found.low, found.high, rel_tol=1e-9, abs_tol=1e-12):
        return found
    return wilson(value * num_problems, num_problems) if num_problems > 1 else None


def _counted(scores: Scores, is_right: Verdicts) -> list[tuple[float, float]]:
    """Of each problem with both kinds: pairs that the right answer wins, a tie half, and all pairs."""
    found: list[tuple[float, float]] = []
    for mine, verdicts in zip(scores, is_right, strict=True):
        good = [score for score, one in zip(mine, verdicts, strict=True) if one]
        bad = [score for score, one in zip(mine, verdicts, strict=True) if not one]
        if good and bad:
            found.append((sum((a > b) + 0.5 * (a == b) for a in good for b in bad), float(len(good) * len(bad))))
    return found


class _Pairs:
    """The answers of all problems in the order of their scores. A score is no NaN; minus infinity is the lowest."""

    def __init__(self, scores: Scores, is_right: Verdicts) -> None:
        flat = np.array([score for mine in scores for score in mine], dtype=np.float64)
        assert not np.isnan(flat).any(), "a score that is not a number"
        order = np.argsort(flat, kind="stable")
        self.num_answers = len(flat)
        self._problem = np.repeat(np.arange(len(scores)), [len(mine) for mine in scores])[order]
        self._is_right = np.array([one for verdicts in is_right for one in verdicts], dtype=np.float64)[order]
        ordered = flat[order]
        self._starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))  # of equal scores

    def areas(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """The area for each row of ``weights`` (resamples, problems); NaN where one kind of answer is missing."""
        each = weights[:, self._problem]
        right = np.add.reduceat(each * self._is_right, self._starts, axis=1)
        wrong = np.add.reduceat(each * (1 - self._is_right), self._starts, axis=1)
        below = np.cumsum(wrong, axis=1) - 0.5 * wrong
        pairs = right.sum(axis=1) * wrong.sum(axis=1)
        with np.errstate(invalid="ignore"):
            return (right * below).sum(axis=1) / pairs


def _weights(chosen: NDArray[np.uint32], num_problems: int, num_answers: int) -> list[NDArray[np.float64]]:
    """How often each problem was drawn, in parts of few enough resamples."""
    at_once = max(1, _CELLS_AT_ONCE // max(num_answers, 1))
    parts: list[NDArray[np.float64]] = []
    for start in range(0, len(chosen), at_once):
        part = chosen[start : start + at_once].astype(np.int64)
        places = part + num_problems * np.arange(len(part))[:, None]
        counts = np.bincount(places.ravel(), minlength=num_problems * len(part))
        parts.append(counts.reshape(len(part), num_problems).astype(np.float64))
    return parts
