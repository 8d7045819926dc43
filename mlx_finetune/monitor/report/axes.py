"""Axes with round figures: where a scale begins and ends, and what is written beside it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Axis:
    """From ``low`` to ``high`` with ``labels`` at equal distances, the first at ``low`` and the last at ``high``.

    On a logarithmic axis both are logarithms to base 10.
    """

    low: float
    high: float
    labels: tuple[str, ...]
    is_log: bool = False

    def place(self, value: float) -> float:
        """0 at ``low``, 1 at ``high``."""
        if self.is_log:
            value = math.log10(value) if value > 0 else self.low
        return (value - self.low) / (self.high - self.low)


def linear_axis(
    low: float, high: float, write: Callable[[float], str] | None = None, *, most: int = 5, least_step: float = 0.0
) -> Axis:
    """An axis over ``low`` to ``high`` with at most about ``most`` steps of ``least_step`` or more between its figures.

    ``write`` makes text of a figure; without it as many decimals as the steps need.
    """
    if not high > low:
        space = abs(low) / 10 or 1.0
        low, high = low - space, high + space
    step = _round_step(max(least_step, (high - low) / most))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    values = [step * number for number in range(first, last + 1)]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9) + (1 if _has_half(step) else 0))
    plain: Callable[[float], str] = lambda value: f"{value + 0.0:,.{decimals}f}"  # noqa: E731
    return Axis(values[0], values[-1], tuple(map(write or plain, values)))


def log_axis(low: float, high: float) -> Axis:
    """Whole powers of ten around ``low`` and ``high``, which are above 0."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    last = max(last, first + 1)
    return Axis(first, last, tuple(_power(number) for number in range(first, last + 1)), is_log=True)


def value_axis(
    values: Sequence[float], write: Callable[[float], str] | None, *, from_zero: bool, may_be_log: bool = False
) -> Axis:
    """The axis for ``values``; with ``may_be_log`` logarithmic where small ones would lie on the ground."""
    low, high = min(values), max(values)
    if may_be_log and low > 0 and high / low > 200:
        return log_axis(low, high)
    return linear_axis(min(0.0, low) if from_zero else low, high, write)


def _round_step(size: float) -> float:
    power = 10.0 ** math.floor(math.log10(size))
    return next(step * power for step in _STEPS if step * power >= size * (1 - 1e-9))


def _has_half(step: float) -> bool:
    """True for 2.5, 0.25 and so on, which need a decimal more."""
    return abs(step / 10.0 ** math.floor(math.log10(step) + 1e-9) - 2.5) < 1e-6


def _power(number: int) -> str:
    return f"{10**number:,}" if 0 <= number <= 6 else f"{10.0**number:g}"
