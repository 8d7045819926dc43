"""Rows to figures with 95 % intervals, and what changed from one side to the other over the same rows.

Rates have Wilson intervals, the change between two of them Newcombe's, and McNemar's exact test; a bootstrap would give
an interval of width 0 where no row differs. A tie is half of a right row in all of them. Means and ratios have
bootstrap intervals over rows and a test that flips the sign of each row's difference (Fisher 1935): under "no change"
either sign was as likely. Its p is exact up to 12 rows, over 10,000 random flips beyond. Rows of two kinds draw each
kind by itself, and their test gives the changes to the kinds at random: under "both kinds changed alike" each share-out
was as likely. All draws are seeded. A bootstrap of one row, or of rows that do not differ, has nothing to draw from:
there is no interval then, since one of width 0 would claim certainty.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mlx_finetune.app.eval.measures import Measure
from mlx_finetune.scoring.intervals import (
    NUM_RESAMPLES,
    Interval,
    bootstrap_gap,
    bootstrap_mean,
    bootstrap_ratio,
    holm,
    mcnemar_exact,
    paired_bootstrap,
    paired_ratio,
    wilson,
)

#: Rows of one measure on one side: number of the row -> its value.
Rows = Mapping[int, tuple[float, ...]]

_EXACT_ROWS = 12
_FLIPS_AT_ONCE = 2**21
#: A p below this, after Holm's correction, is called a change.
ALPHA = 0.05


@dataclass(frozen=True, slots=True)
class Figure:
    """A value with its interval over ``num_rows`` rows, None where they give none; ``num_right`` of a rate.

    A row may be half right, so that ``num_right`` is no whole number.
    """

    value: float
    low: float | None
    high: float | None
    num_rows: int
    num_right: float | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """Second side minus first over the same rows, in the unit of the value; for perplexities the factor between them.

    ``low`` and ``high`` are None where the rows give no interval. ``p`` is that of the test alone, ``p_holm`` after
    correction for the other tests of the evaluation, None where this is none of them.
    """

    value: float
    low: float | None
    high: float | None
    num_rows: int
    p: float
    p_holm: float | None = None
    is_factor: bool = False

    @property
    def is_sure(self) -> bool:
        """Whether the correction leaves it a change."""
        return self.p_holm is not None and self.p_holm < ALPHA


@dataclass(frozen=True, slots=True)
class Result:
    """One measure: a figure for each side, and the change from base to tuned where there are both.

    ``to_shots`` is the change from the base with examples in its prompt to tuned.
    """

    measure: Measure
    figures: Mapping[str, Figure]
    change: Change | None = None
    to_shots: Change | None = None

    @property
    def is_better(self) -> bool:
        """A sure change in the good direction."""
        return self.change is not None and self.change.is_sure and self._is_gain(self.change)

    @property
    def is_worse(self) -> bool:
        """A sure change in the bad direction."""
        return self.change is not None and self.change.is_sure and not self._is_gain(self.change)

    def _is_gain(self, change: Change) -> bool:
        return (change.value > (1 if change.is_factor else 0)) == self.measure.is_higher_better


def figure(measure: Measure, rows: Rows, *, seed: int) -> Figure | None:
    """The figure of one side; None without a row."""
    values = list(rows.values())
    if not values:
        return None
    match measure.kind:
        case "right":
            num_right = _whole(math.fsum(value[0] for value in values))
            interval = wilson(num_right, len(values))
            return Figure(num_right / len(values), interval.low, interval.high, len(values), num_right)
        case "mean":
            scores = [value[0] for value in values]
            low, high = _ends(bootstrap_mean(scores, seed=seed))
            return Figure(math.fsum(scores) / len(scores), low, high, len(values))
        case "ratio":
            sums, counts = [value[0] for value in values], [value[1] for value in values]
            shown = _scaled(measure)
            low, high = _ends(bootstrap_ratio(sums, counts, seed=seed), shown)
            return Figure(shown(math.fsum(sums) / math.fsum(counts)), low, high, len(values))
        case "f1":
            return _f1_figure(values, seed=seed)
        case "gap":
            return _gap_figure(values, seed=seed)


def change(measure: Measure, first: Rows, second: Rows, *, seed: int) -> Change | None:
    """From ``first`` to ``second`` over the rows that both have; None without one, and for macro F1."""
    both = [row for row in first if row in second]
    if not both or measure.kind == "f1":
        return None
    old, new = [first[row] for row in both], [second[row] for row in both]
    before, after = [value[0] for value in old], [value[0] for value in new]
    if measure.kind == "ratio":
        counts = [[value[1] for value in side] for side in (old, new)]
        return _ratio_change(measure, before, after, *counts, seed=seed)
    if measure.kind == "right":
        return _rate_change(before, after, seed=seed)
    if measure.kind == "gap":
        return _gap_change([(now - then, kind) for now, (then, kind) in zip(after, old, strict=True)], seed=seed)
    difference = paired_bootstrap(before, after, seed=seed)
    p = sign_flip(np.subtract(after, before), seed=seed)
    return Change(difference.value, *_ends(difference.interval), len(both), p)


def corrected(results: Sequence[Result]) -> list[Result]:
    """The same with Holm's correction over all tested changes."""
    tested = [one for one in results if one.measure.is_tested and one.change is not None]
    adjusted = holm([one.change.p for one in tested if one.change is not None])
    found = {one.measure.name: p for one, p in zip(tested, adjusted, strict=True)}
    return [
        replace(one, change=replace(one.change, p_holm=found[one.measure.name]))
        if one.change is not None and one.measure.name in found
        else one
        for one in results
    ]


def sign_flip(differences: NDArray[np.float64], *, seed: int) -> float:
    """Two-sided p of ``sum(differences)`` under random signs; ``(1 + hits) / (1 + 10,000)`` where signs are drawn."""
    num_rows = len(differences)
    scale = float(np.abs(differences).max(initial=0.0))
    if scale == 0:
        return 1.0
    unit = differences / scale
    seen = abs(float(unit.sum())) - 1e-9 * num_rows  # equal sums must not differ by rounding
    if num_rows <= _EXACT_ROWS:
        bits = (np.arange(2**num_rows)[:, None] >> np.arange(num_rows)) & 1
        return float(np.mean(np.abs((1 - 2 * bits) @ unit) >= seen))
    source, hits = np.random.Philox(key=seed), 0
    at_once = max(1, _FLIPS_AT_ONCE // num_rows)
    for start in range(0, NUM_RESAMPLES, at_once):
        count = min(at_once, NUM_RESAMPLES - start)
        words = np.asarray(source.random_raw(-(-count * num_rows // 64)), dtype=np.uint64)
        bits = np.unpackbits(words.view(np.uint8), count=count * num_rows).reshape(count, num_rows)
        hits += int(np.count_nonzero(np.abs((1.0 - 2.0 * bits) @ unit) >= seen))
    return (1 + hits) / (1 + NUM_RESAMPLES)


def paired_rates(both: float, only_old: float, only_new: float, neither: float) -> Interval:
    """Interval of ``(only_new - only_old) / n``, the change of a rate over the same rows (Newcombe 1998, method 10).

    Wilson's intervals of the two rates, joined by squares with the correlation of the rows: it never leaves -1 to 1,
    and no row that differs still leaves room for one. 20, 2, 12, 16: 0.056 to 0.329.
    """
    total = round(both + only_old + only_new + neither)
    old, new = (both + only_old) / total, (both + only_new) / total
    low_old, low_new = wilson(both + only_old, total).low, wilson(both + only_new, total).low
    high_old, high_new = wilson(both + only_old, total).high, wilson(both + only_new, total).high
    product = (both + only_old) * (only_new + neither) * (both + only_new) * (only_old + neither)
    cross = both * neither - only_old * only_new
    if cross > total / 2:
        cross -= total / 2  # Newcombe's correction for continuity of a positive correlation
    elif cross >= 0:
        cross = 0
    phi = cross / math.sqrt(product) if product else 0.0
    down, up = new - low_new, high_old - old
    left = math.sqrt(max(0.0, down**2 - 2 * phi * down * up + up**2))
    up_new, down_old = high_new - new, old - low_old
    right = math.sqrt(max(0.0, up_new**2 - 2 * phi * up_new * down_old + down_old**2))
    return Interval(new - old - left, new - old + right)


def _rate_change(before: Sequence[float], after: Sequence[float], *, seed: int) -> Change:
    """Of rows that are right, wrong or half right; one that became half right is half of one that changed.

    McNemar's test knows no halves: where rows changed by one half, signs of differences are flipped in its place.
    """
    pairs = list(zip(before, after, strict=True))
    only_old, only_new = (math.fsum(max(0.0, way * (old - new)) for old, new in pairs) for way in (1, -1))
    both = math.fsum(map(min, before, after))
    interval = paired_rates(both, only_old, only_new, len(pairs) - both - only_old - only_new)
    differences = np.subtract(after, before)
    is_whole = bool((differences == np.round(differences)).all())
    p = mcnemar_exact(round(only_old), round(only_new)) if is_whole else sign_flip(differences, seed=seed)
    return Change((only_new - only_old) / len(pairs), interval.low, interval.high, len(pairs), p)


def _whole(count: float) -> float:
    """A count of halves, an int where there is none left over."""
    return int(count) if count == int(count) else count


def _ratio_change(
    measure: Measure,
    before: Sequence[float],
    after: Sequence[float],
    counts: Sequence[float],
    new_counts: Sequence[float],
    *,
    seed: int,
) -> Change:
    """Two tokenizers do not count the very same bytes of a text: the new sums are brought to the old count first."""
    sums = np.multiply(after, math.fsum(counts) / math.fsum(new_counts))
    difference = paired_ratio(before, sums, counts, seed=seed)
    p = sign_flip(sums - before, seed=seed)
    shown = _scaled(measure)
    low, high = _ends(difference.interval, shown)
    return Change(shown(difference.value), low, high, len(before), p, is_factor=measure.scale == "exp")


def _gap_figure(values: Sequence[tuple[float, ...]], *, seed: int) -> Figure | None:
    """Mean of the rows of kind 1 plus that of kind -1, whose values bear their sign; None without one of either."""
    good, bad = (np.array([value for value, kind in values if kind == sign]) for sign in (1, -1))
    if not len(good) or not len(bad):
        return None
    low, high = _ends(bootstrap_gap(good, bad, seed=seed))
    return Figure(float(good.mean() + bad.mean()), low, high, len(values))


def _gap_change(moved: Sequence[tuple[float, float]], *, seed: int) -> Change | None:
    """From how far each row has moved, with its sign, and its kind."""
    found = _gap_figure(moved, seed=seed)
    if found is None:
        return None
    values, is_good = np.array([value * kind for value, kind in moved]), np.array([kind > 0 for _, kind in moved])
    p = shuffle_kinds(values, is_good, seed=seed)
    return Change(found.value, found.low, found.high, found.num_rows, p)


def shuffle_kinds(values: NDArray[np.float64], is_good: NDArray[np.bool_], *, seed: int) -> float:
    """Two-sided p of the difference of two means when ``values`` are given to the kinds at random, over 10,000 draws:
    ``(1 + hits) / (1 + 10,000)``."""
    num_rows, num_good = len(values), int(is_good.sum())
    centred = values - values.mean()  # the difference of the means is the sum over good ones, times a constant
    slack = 1e-9 * num_rows * float(np.abs(values).max(initial=0.0))
    seen = abs(float(centred[is_good].sum())) - slack
    source, hits = np.random.Philox(key=seed), 0
    at_once = max(1, _FLIPS_AT_ONCE // num_rows)
    for start in range(0, NUM_RESAMPLES, at_once):
        count = min(at_once, NUM_RESAMPLES - start)
        raw = np.asarray(source.random_raw(count * num_rows)).reshape(count, num_rows)
        chosen = np.argsort(raw, axis=1)[:, :num_good]
        hits += int(np.count_nonzero(np.abs(centred[chosen].sum(axis=1)) >= seen))
    return (1 + hits) / (1 + NUM_RESAMPLES)


def _ends(interval: Interval, shown: Callable[[float], float] = float) -> tuple[float, float] | tuple[None, None]:
    """Both ends as they are shown; None where every resample gave the same, up to rounding."""
    low, high = interval.low, interval.high
    if math.isclose(low, high, rel_tol=1e-9, abs_tol=1e-12):
        return None, None
    return shown(low), shown(high)


def _exp(nats: float) -> float:
    """``exp``, of at most 700: beyond, a float has no room, and nobody reads such a perplexity."""
    return math.exp(min(nats, 700.0))


def _scaled(measure: Measure) -> Callable[[float], float]:
    if measure.scale == "exp":
        return _exp
    return (lambda nats: nats / math.log(2)) if measure.scale == "bits" else (lambda nats: nats)


def _f1_figure(values: Sequence[tuple[float, ...]], *, seed: int) -> Figure:
    """Macro F1 with a bootstrap over rows, from counts of (right class, named class); class 0 is "none"."""
    pairs = np.array(values, dtype=np.int64) + 1
    size, num_rows = int(pairs.max()) + 1, len(pairs)
    cells = pairs[:, 0] * size + pairs[:, 1]
    source, found = np.random.Philox(key=seed), list[NDArray[np.float64]]()
    at_once = max(1, _FLIPS_AT_ONCE // max(num_rows, size * size))
    for start in range(0, NUM_RESAMPLES, at_once):
        count = min(at_once, NUM_RESAMPLES - start)
        raw = np.asarray(source.random_raw(count * num_rows)) >> np.uint64(32)
        drawn = cells[((raw * np.uint64(num_rows)) >> np.uint64(32)).astype(np.int64)].reshape(count, num_rows)
        places = (np.arange(count)[:, None] * size * size + drawn).ravel()
        found.append(_macro_f1(np.bincount(places, minlength=count * size * size).reshape(count, size, size)))
    low, high = np.quantile(np.concatenate(found), [0.025, 0.975])
    value = _macro_f1(np.bincount(cells, minlength=size * size).reshape(1, size, size))
    return Figure(float(value[0]), *_ends(Interval(float(low), float(high))), num_rows)


def _macro_f1(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean of ``2 tp / (2 tp + fp + fn)`` over the classes that occur, for each of ``counts[:, right, named]``."""
    hits = np.diagonal(counts, axis1=1, axis2=2)[:, 1:]  # (resamples, classes)
    seen = counts.sum(axis=2)[:, 1:] + counts.sum(axis=1)[:, 1:]
    scores = 2 * hits / np.maximum(seen, 1)
    return scores.sum(axis=1) / np.maximum((seen > 0).sum(axis=1), 1)
