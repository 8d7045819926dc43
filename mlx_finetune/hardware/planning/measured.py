"""What a plan measures on the machine itself, and the time of a whole run that follows from it. No mlx here.

A microbatch of ``B`` sequences of ``T`` positions takes ``a + b B T + c B T^2`` seconds; the three are fitted to the
microbatches that were timed and summed over those that the run will see, so a run with other lengths than the timed
ones is still right. What is not in it: other programs, which come and go (``forecast`` widens the bar for them).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import mean, median
from typing import Self

import numpy as np
from numpy.typing import NDArray

FIRST_WEIGHT = 0.4  # of the first microbatch of a shape, in which memory is asked for or a function compiled
_MIN_SPREAD = 0.01  # two timings of one microbatch that agree better than this agreed by chance


@dataclass(frozen=True, slots=True)
class Timed:
    """One microbatch that was timed; ``is_first`` of its shape, so that compiling or warming up is in it."""

    rows: int
    length: int
    seconds: float
    is_first: bool = False


@dataclass(frozen=True, slots=True)
class ShapeCount:
    """``count`` microbatches of the run have ``rows`` sequences of ``length`` positions."""

    rows: int
    length: int
    count: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What the measuring process found. Times in seconds, sizes in bytes.

    ``startup_seconds`` from the start of the process to the first step; ``load_peak_bytes`` until there; ``peak_bytes``
    after the longest step; ``process_bytes`` the largest resident size of the process. ``answer_seconds`` for one token
    of an answer, None where the recipe has no prompts. ``others_share`` of the processors was used by other programs;
    ``own_share`` is the processor time of this process over the time that went by, 1 and more where it was not held up.
    ``pass_seconds`` go by before step 1 to compute what leaves the frozen blocks, where that is kept.
    ``is_cut_short``: the time allowed for measuring ended it before all was timed that was meant to be; without
    ``has_longest`` even before the longest rows, so that nothing of it tells what a run will take. ``score_seconds``
    are those in which all runs that rewards name score one answer: of a word, and of the longest; None without such.
    ``drawing_seconds`` is what the first tokens of answers that grow together take, their prompts read, and each
    token more of all of them; None for a task that says none to learn from.
    """

    startup_seconds: float
    load_peak_bytes: int
    peak_bytes: int
    process_bytes: int
    microbatches: tuple[Timed, ...]
    update_seconds: float
    validation: tuple[Timed, ...]
    answer_seconds: float | None
    shapes: tuple[ShapeCount, ...]
    valid_shapes: tuple[ShapeCount, ...]
    total_steps: int
    others_share: float
    own_share: float
    watts: float | None
    seconds: float
    is_cut_short: bool
    pass_seconds: float = 0.0
    has_longest: bool = True
    score_seconds: tuple[float, float] | None = None
    drawing_seconds: tuple[float, float] | None = None

    def to_json(self) -> dict[str, object]:
        """Plain values, one key per field."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, object]) -> Self:
        """The inverse of ``to_json``. Raises ``TypeError`` or ``KeyError`` for anything else."""
        values = dict(fields)
        for name, kind in (("microbatches", Timed), ("validation", Timed)):
            values[name] = tuple(kind(**one) for one in fields[name])  # pyright: ignore[reportGeneralTypeIssues]
        for name in ("shapes", "valid_shapes"):
            values[name] = tuple(ShapeCount(**one) for one in fields[name])  # pyright: ignore[reportGeneralTypeIssues]
        for name in ("score_seconds", "drawing_seconds"):
            if values.get(name) is not None:
                values[name] = tuple(fields[name])  # pyright: ignore[reportArgumentType]
        return cls(**values)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, slots=True)
class Fit:
    """Seconds of a microbatch: ``constant + per_position B T + per_score B T^2``; a first one of its shape takes
    ``first_extra`` more, the very first ``cold_extra``. ``spread`` is the standard deviation of timings around it, as a
    share."""

    constant: float
    per_position: float
    per_score: float
    first_extra: float
    cold_extra: float
    spread: float

    def seconds(self, rows: int, length: int) -> float:
        """One microbatch whose shape was seen before."""
        positions = rows * length
        return self.constant + self.per_position * positions + self.per_score * positions * length

    def total(self, shapes: Sequence[ShapeCount]) -> float:
        """All microbatches of a run."""
        once = sum(one.count * self.seconds(one.rows, one.length) for one in shapes)
        return once + self.first_extra * len(shapes) + self.cold_extra


def fit_times(timed: Sequence[Timed]) -> Fit:
    """The fit to ``timed``, of which there is at least one: of all subsets of the three terms the one that misses the
    timings least for its number of terms, none of them negative. The very first is only warming up, if it is not alone.
    """
    assert timed, "nothing was timed"
    cold, rest = timed[0], timed[1:] or timed
    extra = _first_extra(rest)
    again = {(one.rows, one.length) for one in rest if not one.is_first}
    warm = [one for one in rest if not (one.is_first and (one.rows, one.length) in again)]
    seconds = np.array([max(one.seconds - extra * one.is_first, 0.2 * one.seconds) for one in warm])
    positions = np.array([float(one.rows * one.length) for one in warm])
    lengths = np.array([float(one.length) for one in warm])
    terms = np.stack([np.ones_like(positions), positions, positions * lengths], axis=1)
    weights = np.array([FIRST_WEIGHT if one.is_first else 1.0 for one in warm])
    found = _best(terms, seconds, weights, num_shapes=len({(one.rows, one.length) for one in warm}))
    found *= float(np.sum(weights * seconds) / np.sum(weights * (terms @ found)))  # relative misses favour fast ones
    constant, per_position, per_score = found.tolist()
    misses = weights * (terms @ found / seconds - 1)
    degrees = max(1, len(warm) - int(np.count_nonzero(found)))
    spread = max(float(np.sqrt(np.sum(misses**2) / degrees)), _MIN_SPREAD)
    fit = Fit(constant, per_position, per_score, extra, 0.0, spread)
    return replace(fit, cold_extra=max(0.0, cold.seconds - fit.seconds(cold.rows, cold.length) - extra))


def _best(
    terms: NDArray[np.float64], seconds: NDArray[np.float64], weights: NDArray[np.float64], *, num_shapes: int
) -> NDArray[np.float64]:
    """The coefficients with the least ``n ln(mean square miss) + 2 terms`` (Akaike, 1974), fewer terms than shapes."""
    candidates = [(1,)] if num_shapes == 1 else [(1,), (0, 1), (2,), (1, 2), (0, 2)]
    candidates += [(0, 1, 2)] if num_shapes > 3 else []
    scored: list[tuple[float, NDArray[np.float64]]] = []
    for chosen in candidates:
        found = _solve(terms, seconds, weights, chosen)
        if found is not None:
            miss = float(np.average((terms @ found / seconds - 1) ** 2, weights=weights**2)) + _MIN_SPREAD**2
            scored.append((len(seconds) * float(np.log(miss)) + 2 * len(chosen), found))
    return min(scored, key=lambda one: one[0])[1]


def _solve(
    terms: NDArray[np.float64], seconds: NDArray[np.float64], weights: NDArray[np.float64], chosen: tuple[int, ...]
) -> NDArray[np.float64] | None:
    """Weighted least squares of the relative misses over the ``chosen`` terms; None where one of them is negative."""
    scaled = weights[:, None] * terms[:, chosen] / seconds[:, None]
    sizes = np.linalg.norm(scaled, axis=0)
    found = np.linalg.lstsq(scaled / sizes, weights, rcond=None)[0] / sizes
    if np.any(found < 0):
        return None
    whole = np.zeros(3)
    whole[list(chosen)] = found
    return whole


def _first_extra(timed: Sequence[Timed]) -> float:
    """What the first microbatch of a shape takes more than later ones: the median over shapes that have both."""
    extras: list[float] = []
    for shape in {(one.rows, one.length) for one in timed}:
        of_shape = [one for one in timed if (one.rows, one.length) == shape]
        first = [one.seconds for one in of_shape if one.is_first]
        later = [one.seconds for one in of_shape if not one.is_first]
        if first and later:
            extras.append(first[0] - mean(later))
    return max(0.0, median(extras)) if extras else 0.0
