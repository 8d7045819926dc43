"""Long series as few points."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_finetune.monitor.series import thin_extremes


def test_a_short_series_stays():
    assert thin_extremes([1, 2, 3], [3.0, 1.0, 2.0], 4) == ([1, 2, 3], [3.0, 1.0, 2.0])


def test_a_spike_of_one_step_among_a_hundred_thousand_stays():
    ys = [2.0] * 100_000
    ys[77_777], ys[3] = 90.0, -5.0
    xs, kept = thin_extremes(range(100_000), ys, 1000)
    assert len(xs) <= 1000
    assert (xs[kept.index(90.0)], xs[kept.index(-5.0)]) == (77_777, 3)
    assert (xs[0], xs[-1]) == (0, 99_999)


@given(st.lists(st.integers(-9, 9).map(float), min_size=1, max_size=300), st.integers(4, 50))
def test_the_extremes_are_those_of_the_whole_and_x_rises(ys: list[float], most: int):
    xs, kept = thin_extremes(list(range(len(ys))), ys, most)
    assert len(xs) <= most or len(ys) <= most
    assert (min(kept), max(kept)) == (min(ys), max(ys))
    assert list(xs) == sorted(set(xs))
    assert (kept[0], kept[-1]) == (ys[0], ys[-1])


@pytest.mark.parametrize("missing", [math.nan, None])
def test_what_is_no_number_is_left_out(missing):
    assert thin_extremes([1, 2, 3], [1.0, missing, 2.0], 4) == ([1, 3], [1.0, 2.0])
