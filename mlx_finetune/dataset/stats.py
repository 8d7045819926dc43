"""Lengths of many rows in a few numbers: percentiles, a histogram over powers of two, shares beyond a limit."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Bucket:
    """``count`` rows have a length from ``low`` up to, not including, ``high``."""

    low: int
    high: int
    count: int


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths of ``count`` rows in ``unit``; percentiles are lengths that occur (nearest rank)."""

    unit: str
    count: int
    total: int
    mean: float
    shortest: int
    median: int
    p90: int
    p99: int
    longest: int
    histogram: tuple[Bucket, ...]


def summarize_lengths(lengths: "Sequence[int] | array[int] | NDArray[np.int64]", unit: str) -> Lengths:
    """The summary of ``lengths``; all zero for none. Takes 8 bytes a length beside its argument."""
    values = np.sort(np.asarray(lengths, dtype=np.int64))
    count = len(values)
    if count == 0:
        return Lengths(unit, 0, 0, 0.0, 0, 0, 0, 0, 0, ())
    total = int(values.sum())
    return Lengths(
        unit,
        count,
        total,
        total / count,
        int(values[0]),
        _rank(values, 0.5),
        _rank(values, 0.9),
        _rank(values, 0.99),
        int(values[-1]),
        _histogram(values),
    )


def even_histogram(lengths: "Sequence[int] | array[int] | NDArray[np.int64]", most: int = 12) -> tuple[Bucket, ...]:
    """At most about ``most`` buckets of one width, which is a round number, from the first to the last with a row."""
    values = np.asarray(lengths, dtype=np.int64)
    if not len(values):
        return ()
    low, high = int(values.min()), int(values.max())
    smallest = (high - low + 1) / most
    power = 10 ** max(0, int(np.floor(np.log10(max(1.0, smallest)))))
    width = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= smallest)
    first = low // width
    counts = np.bincount(values // width - first)
    starts = [(first + place) * width for place in range(len(counts))]
    return tuple(Bucket(start, start + width, int(count)) for start, count in zip(starts, counts, strict=True))


def _rank(ordered: NDArray[np.int64], share: float) -> int:
    return int(ordered[min(len(ordered) - 1, max(0, int(np.ceil(share * len(ordered))) - 1))])


def _histogram(ordered: NDArray[np.int64]) -> tuple[Bucket, ...]:
    """Buckets [0, 1), [1, 2), [2, 4) and so on, from the first to the last that holds a row."""
    edges = [0, 1]
    while edges[-1] <= int(ordered[-1]):
        edges.append(edges[-1] * 2)
    starts = np.searchsorted(ordered, np.asarray(edges))
    buckets = [
        Bucket(low, high, int(stop - start))
        for low, high, start, stop in zip(edges, edges[1:], starts, starts[1:], strict=False)
    ]
    first = next(index for index, bucket in enumerate(buckets) if bucket.count)
    return tuple(buckets[first:])
