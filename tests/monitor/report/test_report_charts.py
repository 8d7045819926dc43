"""Axes have round figures; a chart keeps its extremes and stays small."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_finetune.monitor.report.axes import linear_axis, log_axis, value_axis
from mlx_finetune.monitor.report.chart import Chart, Series, draw
from mlx_finetune.units import format_bytes


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.0, 2.31, "0.0 0.5 1.0 1.5 2.0 2.5"),
        (0.0, 149.0, "0 50 100 150"),
        (1.2, 1.31, "1.200 1.225 1.250 1.275 1.300 1.325"),
        (-0.3, 0.4, "-0.4 -0.2 0.0 0.2 0.4"),
        (0.0, 12_345.0, "0 2,500 5,000 7,500 10,000 12,500"),
        (3.0, 3.0, "2.6 2.8 3.0 3.2 3.4"),
        (0.0, 0.0, "-1.0 -0.5 0.0 0.5 1.0"),
    ],
)
def test_axes_have_round_figures_around_their_values(low: float, high: float, labels: str) -> None:
    assert " ".join(linear_axis(low, high).labels) == labels


def test_there_is_no_half_step() -> None:
    assert linear_axis(0.0, 2.0, least_step=1.0).labels == ("0", "1", "2")
    assert linear_axis(0.0, 1000.0, least_step=1.0).labels == ("0", "200", "400", "600", "800", "1,000")


def test_figures_are_written_in_their_unit() -> None:
    assert linear_axis(0, 3.1e9, format_bytes).labels == ("0 B", "1.0 GB", "2.0 GB", "3.0 GB", "4.0 GB")


@given(st.floats(-1e6, 1e6, allow_subnormal=False), st.floats(1e-3, 1e6))
def test_every_value_lies_on_the_axis_and_the_figures_are_few(low: float, size: float) -> None:
    axis = linear_axis(low, low + size)
    assert -1e-6 <= axis.place(low) <= axis.place(low + size) <= 1 + 1e-6
    assert 2 <= len(axis.labels) <= 8


def test_values_over_many_powers_of_ten_get_a_logarithmic_axis() -> None:
    axis = value_axis([0.01, 1.0, 5000.0], None, from_zero=True, may_be_log=True)
    assert axis.labels == ("0.01", "0.1", "1", "10", "100", "1,000", "10,000")
    assert axis.place(1.0) == pytest.approx(1 / 3)
    assert axis.place(0.0) == 0.0
    assert log_axis(1.0, 1.0).labels == ("1", "10")
    assert not value_axis([1.0, 100.0], None, from_zero=True, may_be_log=True).is_log
    assert not value_axis([0.01, 5000.0], None, from_zero=True).is_log


def test_a_spike_in_a_hundred_thousand_steps_is_still_in_the_picture() -> None:
    steps = [float(number) for number in range(1, 100_001)]
    values = [1.0] * 100_000
    values[77_776] = 1.9
    figure = draw(Chart("Loss", (Series("loss", "first", steps, values),)))
    assert figure is not None
    assert len(figure.text) < 20_000
    places = re.findall(r"([\d.]+) ([\d.]+)", re.findall(r' d="M([^"]+)"', figure.text)[-2])
    assert ("777.8", "15") in places or min(float(y) for _, y in places) < 20


def test_spikes_beyond_the_scale_are_counted_in_words() -> None:
    steps, values = [float(n) for n in range(200)], [1.0] * 200
    values[17], values[18] = 80.0, 90.0
    figure = draw(Chart("Norm", (Series("", "first", steps, values),), cuts_spikes=True))
    assert figure is not None
    assert "2 points lie above the picture, the highest with 90 at step 18." in figure.text
    whole = draw(Chart("Norm", (Series("", "first", steps, values),)))
    assert whole is not None
    assert "above the picture" not in whole.text


def test_fewer_than_two_values_are_no_picture() -> None:
    assert draw(Chart("Loss", (Series("", "first", [], []),))) is None
    assert draw(Chart("Loss", (Series("", "first", [1.0], [2.0]),))) is None
    assert draw(Chart("Loss", (Series("", "first", [1.0, 2.0], [float("nan"), 2.0]),))) is None


def test_a_limit_is_drawn_where_it_is_although_spikes_are_cut() -> None:
    """One gradient of 900 among many of 0.3: what is cut at 1 was drawn at the upper edge, at 0.4."""
    steps = [float(step) for step in range(100)]
    norms = [900.0 if step == 50 else 0.3 for step in range(100)]
    figure = draw(Chart("Norm", (Series("", "first", steps, norms),), cuts_spikes=True, limit=("cut to 1", 1.0)))
    assert figure is not None
    (high,) = re.findall(r'data-high="([^"]+)"', figure.text)
    (place,) = re.findall(r'<path class="limit" d="M0 ([\d.]+)H1000">', figure.text)
    assert float(high) >= 1.0
    assert float(place) == pytest.approx(300 * (1 - 1 / float(high)), abs=0.1)


def test_limit_best_and_restarts_are_drawn_and_named() -> None:
    chart = Chart(
        "Memory",
        (Series("peak", "first", [1.0, 10.0], [1.0, 2.0]),),
        limit=("limit", 4.0),
        best=(10.0, 2.0),
        marks=(5.0,),
    )
    figure = draw(chart)
    assert figure is not None
    assert re.findall(r'<span class="key"><i class="(\w+)"></i>([^<]+)', figure.text) == [
        ("first", "peak"),
        ("best", "best"),
        ("limit", "limit"),
        ("mark", "restart"),
    ]
    assert '<path class="limit" d="M0 0H1000">' in figure.text
    assert '<path class="mark" d="M500 0V300">' in figure.text
