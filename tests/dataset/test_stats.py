"""Lengths in a few numbers."""

from mlx_finetune.dataset.stats import Bucket, summarize_lengths


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
