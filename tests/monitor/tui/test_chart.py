"""Charts: where the dots are, which figures stand at the axes, and that one spike does not flatten a curve."""

import math

import pytest

from mlx_finetune.monitor.braille import draw_curve, draw_segment
from mlx_finetune.monitor.tui.chart import Curve, draw_chart


def text(curves: list[Curve], *, width: int = 40, height: int = 8) -> list[str]:
    return [line.plain for line in draw_chart(curves, width=width, height=height)]


def test_a_falling_line_goes_from_the_upper_left_to_the_lower_right_between_round_figures() -> None:
    lines = text([Curve([(0, 3.0), (100, 1.0)], "cyan")])
    assert len(lines) == 8
    assert all(len(line) == 40 for line in lines)
    assert [line[:3] for line in lines[:6]] == [" 3 ", "   ", "   ", " 2 ", "   ", " 1 "]
    assert lines[0].index("\u2809") == 4
    assert lines[5].rstrip()[-1] == "\u28c0"
    assert lines[-2].strip() == "\u2514" + lines[-2].strip()[1:]
    assert lines[-1].endswith("step 100")
    assert " 50 " in lines[-1] or lines[-1].lstrip().startswith("0")


def test_the_style_of_the_later_curve_is_seen_where_two_meet() -> None:
    flat = [(0.0, 1.0), (10.0, 1.0)]
    chart = draw_chart(
        [Curve(flat, "red"), Curve(flat, "cyan"), Curve([(0.0, 0.0), (10.0, 2.0)], "")], width=30, height=8
    )
    styles = {str(span.style) for line in chart for span in line.spans}
    assert "cyan" in styles
    assert "red" not in styles


def test_one_spike_is_cut_off_and_does_not_flatten_the_rest() -> None:
    noisy = [(float(x), 1.0 + 0.5 * math.sin(x) + (100.0 if x == 50 else 0.0)) for x in range(200)]
    cut = "\n".join(text([Curve(noisy, "dim", in_range=False)]))
    assert "100" not in cut.splitlines()[0]
    assert "1.25" in cut
    whole = "\n".join(text([Curve(noisy, "dim")]))
    assert "100" in whole
    assert "1.25" not in whole


@pytest.mark.parametrize(
    ("points", "figure"),
    [
        ([(1.0, 2e-4), (50.0, 1e-5)], "1.0e-04"),
        ([(1.0, 5.0), (2.0, 5.0)], "5.0"),
        ([(1.0, 0.0), (2.0, 0.0)], "0"),
        ([(1.0, -3.0), (2.0, 3.0)], "0"),
        ([(1.0, 2_000_000.0), (2.0, 3_000_000.0)], "2.0e+06"),
        ([(7.0, 2.5)], "2.50"),
    ],
)
def test_figures_of_any_size_are_legible(points: list[tuple[float, float]], figure: str) -> None:
    names = [line.replace("\u2524", "\u2502").split("\u2502")[0].strip() for line in text([Curve(points, "")])[:-2]]
    assert figure in names
    assert any(char > "\u2800" for line in text([Curve(points, "")]) for char in line)


def test_a_mark_stands_on_each_point_of_its_curve() -> None:
    lines = text([Curve([(0, 1.0), (50, 2.0), (100, 1.0)], "magenta", mark="x")])
    assert sum(line.count("x") for line in lines[:-2]) == 3


@pytest.mark.parametrize(("width", "height"), [(15, 8), (40, 2), (0, 0)])
def test_without_room_or_points_nothing_is_drawn(width: int, height: int) -> None:
    assert draw_chart([Curve([(0, 1.0), (1, 2.0)], "")], width=width, height=height) == []
    assert draw_chart([Curve([], "")], width=40, height=8) == []


@pytest.mark.parametrize("width", range(16, 130, 7))
@pytest.mark.parametrize("height", [3, 4, 5, 9, 30])
def test_a_chart_fills_exactly_its_place(width: int, height: int) -> None:
    points = [(float(x), 1e3 * math.exp(-x / 300)) for x in range(1, 12_346, 5)]
    lines = text([Curve(points, "")], width=width, height=height)
    assert len(lines) == height
    assert {len(line) for line in lines} == {width}


def test_segments_join_to_the_curve_of_the_live_view() -> None:
    """The line from corner to corner is the same dots whichever of the two draws it."""
    width, height = 10, 5
    rows = [[0] * width for _ in range(height)]
    draw_segment(rows, (0, 4 * height - 1), (2 * width - 1, 0))
    drawn = ["".join(chr(0x2800 + cell) for cell in row) for row in rows]
    assert drawn == draw_curve([(0.0, 0.0), (1.0, 1.0)], width=width, height=height)


def test_steps_at_the_axis_are_whole() -> None:
    """17 steps in 110 columns would be parted at 2.5 and 7.5, which were written as 2 and 8."""
    figures = text([Curve([(0.0, 3.0), (17.0, 1.0)], "")], width=116)[-1].split()
    assert figures == ["0", "5", "10", "15", "step", "17"]


def test_figures_of_ones_own_stand_where_they_belong_as_far_as_they_have_room() -> None:
    curve, names = Curve([(0.0, 3.0), (99.0, 1.0)], ""), {0.0: "1e-06", 49.5: "1e-04", 50.0: "here", 99.0: "1e-02"}
    lines = draw_chart([curve], width=60, height=10, x_names=names | {200.0: "beyond"})
    floor, figures = (line.plain for line in lines[-2:])
    assert figures.split() == ["1e-06", "1e-04", "1e-02"]
    assert [floor[figures.index(name) + shift] for name, shift in (("1e-06", 0), ("1e-04", 2), ("1e-02", 4))] == (
        ["\u252c"] * 3
    )


def test_memory_that_moves_by_some_kilobytes_is_a_level_line() -> None:
    still = [(float(x), 635.76 + 0.01 * (x % 2)) for x in range(20)]
    lines = text([Curve(still, "")])
    assert sum(any("\u2801" <= char <= "\u28ff" for char in line) for line in lines) <= 2
    moved = [(float(x), 635.0 + x % 2) for x in range(20)]
    assert sum(any("\u2801" <= char <= "\u28ff" for char in line) for line in text([Curve(moved, "")])) > 3
