"""A figure with its error bar."""

from collections.abc import Callable
from dataclasses import dataclass
from math import exp
from typing import Self


@dataclass(frozen=True, slots=True)
class Range:
    """What is expected, and between which values the truth lies in 19 of 20 cases."""

    low: float
    expected: float
    high: float

    def __post_init__(self) -> None:
        assert self.low <= self.expected <= self.high, f"no range: {self.low}, {self.expected}, {self.high}"

    @classmethod
    def around(cls, expected: float, sigma: float) -> Self:
        """Two standard deviations ``sigma`` of the logarithm to either side of a positive value."""
        return cls(expected * exp(-2 * sigma), expected, expected * exp(2 * sigma))

    def __mul__(self, factor: float) -> "Range":
        return Range(self.low * factor, self.expected * factor, self.high * factor)

    def __add__(self, other: "Range") -> "Range":
        """The sum where both err the same way, as two times on one busy machine do."""
        return Range(self.low + other.low, self.expected + other.expected, self.high + other.high)

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def text(self, show: Callable[[float], str]) -> str:
        """``2.1 s (1.7 s to 2.6 s)``; one value where the bar is too short to be seen in it."""
        low, expected, high = show(self.low), show(self.expected), show(self.high)
        return expected if low == high else f"{expected} ({low} to {high})"

    def to_json(self) -> dict[str, float]:
        """Plain values, one key per field."""
        return {"low": self.low, "expected": self.expected, "high": self.high}

    @classmethod
    def from_json(cls, value: object) -> Self | None:
        """The inverse of ``to_json``; None for anything else."""
        if not isinstance(value, dict):
            return None
        numbers = [value.get(key) for key in ("low", "expected", "high")]
        known = [float(one) for one in numbers if isinstance(one, int | float)]
        if len(known) != len(numbers):
            return None
        low, expected, high = known
        return cls(low, expected, high) if low <= expected <= high else None
