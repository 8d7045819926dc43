"""The curve's dots stand where the numbers say."""

import pytest

from mlx_finetune.monitor.braille import draw_curve, thin


def dots(lines: list[str]) -> set[tuple[int, int]]:
    """(column, row) of every dot, counted from the top left."""
    bits = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
    return {
        (2 * x + column, 4 * y + row)
        for y, line in enumerate(lines)
        for x, char in enumerate(line)
        for row in range(4)
        for column in range(2)
        if ord(char) - 0x2800 & bits[row][column]
    }


def test_a_straight_fall_is_a_diagonal() -> None:
    assert dots(draw_curve([(0, 3), (3, 0)], width=2, height=1)) == {(0, 0), (1, 1), (2, 2), (3, 3)}


def test_a_flat_curve_is_one_line_in_the_middle() -> None:
    assert {row for _, row in dots(draw_curve([(0, 5), (9, 5)], width=4, height=2))} == {4}


def test_a_jump_is_joined_without_a_gap() -> None:
    found = dots(draw_curve([(0, 0), (10, 0), (10.001, 1), (20, 1)], width=8, height=3))
    for column in range(1, 16):
        rows = [row for x, row in found if x in (column - 1, column)]
        assert set(range(min(rows), max(rows) + 1)) <= set(rows)


@pytest.mark.parametrize("points", [[], [(1, 1)], [(1, 1), (1, 2)]])
def test_too_few_points_draw_nothing(points: list[tuple[float, float]]) -> None:
    assert dots(draw_curve(points, width=3, height=2)) == set()


def test_thinning_keeps_means_of_neighbours() -> None:
    assert thin([(0, 1), (1, 3), (2, 5), (3, 7)], 2) == [(0.5, 2.0), (2.5, 6.0)]
    assert thin([(0, 1)], 2) == [(0, 1)]
