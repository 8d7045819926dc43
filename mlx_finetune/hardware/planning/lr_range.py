"""The curve of a learning-rate range test (Smith, 1506.01186): rates, smoothed losses, and what they suggest.

The rate rises geometrically from ``LOWEST`` to ``HIGHEST`` over ``NUM_STEPS`` steps, and where the loss still falls
there by the same factor for a quarter as many, a decade more, and where it still falls, for another. From each loss is
taken what the same rows cost before the test: rows differ by more than a step teaches, and the least loss would be that
of the easiest. The changes ``c_k`` are smoothed by an exponential moving average with bias correction,
``s_k = m + a_k / (1 - b^(k+1))`` with ``a_k = b a_(k-1) + (1 - b) c_k`` and the mean ``m`` of what all rows cost
before; the test ends where ``s_k`` passes ``DIVERGED`` times its least value so far. Suggested is a third of the
rate at the least smoothed loss or, where that is lower, the rate at which nine tenths of the fall were reached
(DECISIONS.md has what was measured), and nothing where the least is among the last rates tried: the loss may fall
beyond them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Self

NUM_STEPS = 100
LOWEST, HIGHEST = 1e-6, 1e-2
BETA = 0.9
DIVERGED = 4.0
SHARE = 1 / 3  # of the rate at the least loss, at most: behind it the loss rises
REACHED = 0.9  # of the fall; a valley may be flat from there to where the loss is least, by chance at its far end
MOST_TIMES_SEEN = 3.0  # every row; beyond that the curve shows how fast rows are learned by heart
SETTLED = 10  # points; before them the average is of too few losses to be the least
LAST = 5  # points; where the least is one of these, the loss still falls


def most_steps(num_steps: int = NUM_STEPS) -> int:
    """Steps of a test whose loss still falls after ``num_steps``, and after a quarter more."""
    return num_steps + 2 * (num_steps // 4)


def rate_at(step: int, num_steps: int = NUM_STEPS) -> float:
    """The rate of the 0-based ``step``; ``HIGHEST`` is that of the last of ``num_steps``, and more go on beyond it."""
    return LOWEST * (HIGHEST / LOWEST) ** (step / max(1, num_steps - 1))


@dataclass(frozen=True, slots=True)
class RangePoint:
    """One step: its rate, its loss and the smoothed loss, in nats per target."""

    rate: float
    loss: float
    smoothed: float


@dataclass(slots=True)
class RangeTest:
    """The steps so far, each with its rate, its loss, and what its rows cost before the test. ``seconds`` are those of
    the steps."""

    seconds: float = 0.0
    _steps: list[tuple[float, float, float]] = field(default_factory=list[tuple[float, float, float]])
    _changes: list[float] = field(default_factory=list[float])  # smoothed
    _average: float = 0.0

    @property
    def num_steps(self) -> int:
        """Those that were taken."""
        return len(self._steps)

    def add(self, rate: float, loss: float, before: float) -> bool:
        """Take one step's loss; True where the test ends with it: it diverged, or is no number."""
        if not math.isfinite(loss):
            return True
        self._average = BETA * self._average + (1 - BETA) * (loss - before)
        self._steps.append((rate, loss, before))
        self._changes.append(self._average / (1 - BETA ** len(self._steps)))
        level = self._level()
        return level + self._changes[-1] > DIVERGED * (level + min(self._changes))

    def found(self, recipe_rate: float, *, has_diverged: bool, times_seen: float = 0.0) -> "RangeFound":
        """What the steps say beside the rate of the recipe."""
        level = self._level() if self._steps else 0.0
        pairs = zip(self._steps, self._changes, strict=True)
        points = tuple(RangePoint(rate, loss, level + change) for (rate, loss, _), change in pairs)
        return RangeFound(points, recipe_rate, has_diverged, round(self.seconds, 3), times_seen)

    def _level(self) -> float:
        return sum(before for _, _, before in self._steps) / len(self._steps)


@dataclass(frozen=True, slots=True)
class RangeFound:
    """A finished test. ``recipe_rate`` is the peak rate of the recipe; ``has_diverged`` says that it ended before the
    highest rate, ``times_seen`` how often it saw every row."""

    points: tuple[RangePoint, ...]
    recipe_rate: float
    has_diverged: bool
    seconds: float
    times_seen: float = 0.0

    @property
    def is_memorised(self) -> bool:
        """True where the rows came by so often that the loss fell because they were learned by heart."""
        return self.times_seen > MOST_TIMES_SEEN

    @property
    def best(self) -> RangePoint | None:
        """The point with the least smoothed loss, once the average has settled; None where nothing was learned: no
        later loss was below the first of these."""
        settled = self.points[SETTLED:]
        best = min(settled, key=lambda one: one.smoothed, default=None)
        return None if best is None or best == settled[0] else best

    @property
    def is_at_end(self) -> bool:
        """True where the loss still fell at the highest rates, so that the least may lie beyond."""
        return self.best is not None and not self.has_diverged and self.best in self.points[-LAST:]

    @property
    def suggestion(self) -> float | None:
        """The lower of a third of the rate at the least loss and that where most of the fall was reached; two digits;
        None where nothing was learned, or it is not known."""
        if self.best is None or self.is_at_end:
            return None
        return float(f"{min(SHARE * self.best.rate, self._reached_rate(self.best)):.1e}")

    @property
    def is_third(self) -> bool:
        """True where the suggestion is a third of the rate at the least loss."""
        return self.best is not None and self.suggestion == float(f"{SHARE * self.best.rate:.1e}")

    def _reached_rate(self, best: RangePoint) -> float:
        top = sum(one.smoothed for one in self.points[:SETTLED]) / SETTLED
        enough = top - REACHED * (top - best.smoothed)
        return next(one.rate for one in self.points[SETTLED:] if one is best or one.smoothed <= enough)

    def to_json(self) -> dict[str, object]:
        """Plain values, the suggestion among them."""
        best = self.best
        return {
            "points": [asdict(point) for point in self.points],
            "recipe_rate": self.recipe_rate,
            "has_diverged": self.has_diverged,
            "seconds": self.seconds,
            "best_rate": best.rate if best else None,
            "best_loss": best.smoothed if best else None,
            "suggestion": self.suggestion,
            "times_seen": self.times_seen,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, object]) -> Self:
        """The inverse of ``to_json``. Raises ``KeyError`` or ``TypeError`` for another object."""
        points = fields["points"]
        assert isinstance(points, Sequence)
        return cls(
            tuple(RangePoint(**point) for point in points),  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
            float(fields["recipe_rate"]),  # pyright: ignore[reportArgumentType]
            bool(fields["has_diverged"]),
            float(fields["seconds"]),  # pyright: ignore[reportArgumentType]
            float(fields.get("times_seen", 0.0)),  # pyright: ignore[reportArgumentType]
        )
