"""Lengths in a few numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_finetune.dataset.stats import Bucket, even_histogram, summarize_lengths


def test_percentiles_are_lengths_that_occur() -> None:
    lengths = summarize_lengths(list(range(1, 101)), "tokens")
    assert (lengths.count, lengths.total, lengths.mean) == (100, 5050, 50.5)
    assert (lengths.shortest, lengths.median, lengths.p90, lengths.p99, lengths.longest) == (1, 50, 90, 99, 100)


def test_every_row_is_in_one_bucket() -> None:
    lengths = summarize_lengths([0, 3, 4, 7, 8, 100], "characters")
    assert [bucket for bucket in lengths.histogram if bucket.count] == [
        Bucket(0, 1, 1),
        Bucket(2, 4, 1),
        Bucket(4, 8, 2),
        Bucket(8, 16, 1),
        Bucket(64, 128, 1),
    ]
    assert sum(bucket.count for bucket in lengths.histogram) == 6


def test_nothing_has_no_lengths() -> None:
    assert summarize_lengths([], "tokens").histogram == ()
    assert summarize_lengths([], "tokens").longest == 0


@pytest.mark.parametrize(
    ("lengths", "found"),
    [
        ([], []),
        ([7], [(7, 8, 1)]),
        ([0, 0, 3], [(0, 1, 2), (1, 2, 0), (2, 3, 0), (3, 4, 1)]),
        (
            [25, 64, 64, 115],
            [(20, 30, 1), *((low, low + 10, 2 * (low == 60)) for low in range(30, 110, 10)), (110, 120, 1)],
        ),
    ],
)
def test_buckets_of_one_width_are_round_and_hold_every_length(
    lengths: list[int], found: list[tuple[int, int, int]]
) -> None:
    assert [(one.low, one.high, one.count) for one in even_histogram(lengths)] == found


@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=50))
def test_buckets_of_one_width_are_few(lengths: list[int]) -> None:
    buckets = even_histogram(lengths)
    assert len(buckets) <= 13
    assert sum(one.count for one in buckets) == len(lengths)
    counts = [one.count for one in buckets]
    assert counts[0] > 0 < counts[-1]
    assert len({one.high - one.low for one in buckets}) == 1
