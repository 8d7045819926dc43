"""A chart of several curves in braille dots, with figures at both axes; every curve has its own dots and style.

Where two curves meet in one character the later one is drawn. Costs about 2 ms for a chart of 70 by 12 characters.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich.text import Text

from mlx_finetune.monitor.braille import Points, draw_segment

_BLANK = 0x2800
_TICK, _WALL, _CORNER, _FLOOR, _FLOOR_TICK = "\u2524", "\u2502", "\u2514", "\u2500", "\u252c"
_STEP_SIZES = (1.0, 2.0, 2.5, 5.0, 10.0)
LEAST_WIDTH, LEAST_HEIGHT = 16, 3
_FLAT = 1e-4  # of its size: a curve that moves less is a level line, not a picture of its rounding


@dataclass(frozen=True, slots=True)
class Curve:
    """Points by rising x. ``mark`` is put on each of them, for curves of few points.

    A curve that is not ``in_range`` is cut off where the others end, so that one spike does not flatten all.
    """

    points: Points
    style: str
    mark: str = ""
    in_range: bool = True


def draw_chart(
    curves: Sequence[Curve],
    *,
    width: int,
    height: int,
    y_range: tuple[float, float] | None = None,
    x_names: Mapping[float, str] | None = None,
) -> list[Text]:
    """``height`` lines of ``width`` cells: the curves, then one line of figures for x. Empty where nothing can be seen.

    ``y_range`` is that of the curves where it is not given; ``x_names`` are figures to put below x, else they are
    steps.
    """
    given = [curve for curve in curves if curve.points]
    if not given or width < LEAST_WIDTH or height < LEAST_HEIGHT:
        return []
    rows = height - 2
    low, high = y_range or _y_range(given)
    ticks = _y_ticks(low, high, rows)
    names = _figures(list(ticks.values()))
    gutter = max((len(name) for name in names), default=1) + 2
    columns = width - gutter - 1
    first = min(curve.points[0][0] for curve in given)
    last = max(first + 1, *(curve.points[-1][0] for curve in given))  # the first point stands at the left
    cells = _draw(given, (first, last), (low, high), columns, rows)
    named = dict(zip(ticks, names, strict=True))
    lines = [_row(named.get(row), gutter, cells[row]) for row in range(rows)]
    found = _named_ticks(x_names, first, last, columns) if x_names is not None else _step_ticks(first, last, columns)
    return [*lines, *_x_axis(found, gutter, columns)]


Cell = tuple[str, str]  # a character and its style


def _draw(
    curves: Sequence[Curve], x_range: tuple[float, float], y_range: tuple[float, float], columns: int, rows: int
) -> list[list[Cell]]:
    cells: list[list[Cell]] = [[(" ", "")] * columns for _ in range(rows)]
    for curve in curves:
        dots = [[0] * columns for _ in range(rows)]
        places = [
            (_place(x, *x_range, 2 * columns), _place(-y, -y_range[1], -y_range[0], 4 * rows)) for x, y in curve.points
        ]
        if len(places) == 1:
            draw_segment(dots, places[0], places[0])
        for start, end in pairwise(places):
            draw_segment(dots, start, end)
        for row, masks in enumerate(dots):
            for column, mask in enumerate(masks):
                if mask:
                    cells[row][column] = (chr(_BLANK + mask), curve.style)
        if curve.mark:
            for x, y in places:
                cells[y // 4][x // 2] = (curve.mark, curve.style)
    return cells


def _place(value: float, low: float, high: float, count: int) -> int:
    """The dot of ``value`` among ``count``; the middle where there is no range, the edge beyond it."""
    if high <= low:
        return count // 2
    return max(0, min(count - 1, round((count - 1) * (value - low) / (high - low))))


def _y_range(curves: Sequence[Curve]) -> tuple[float, float]:
    """From the lowest to the highest y that has to be seen; of curves that may be cut, 98 of 100 points."""
    low, high = math.inf, -math.inf
    for curve in curves:
        ys = [y for _, y in curve.points]
        if not curve.in_range and len(ys) >= 50:
            ys = sorted(ys)[len(ys) // 100 : len(ys) - len(ys) // 100]
        low, high = min(low, *ys), max(high, *ys)
    if high - low <= _FLAT * max(abs(low), abs(high)):
        room = abs(low) / 10 or 1.0
        return low - room, high + room
    return low, high


def _y_ticks(low: float, high: float, rows: int) -> dict[int, float]:
    """Row to round figure, by falling y: about one in three rows, at least two figures where there are two rows."""
    ticks: dict[int, float] = {}
    for parts in range(max(1, rows // 3), max(1, rows // 3) + 4):
        size = _round_up((high - low) / parts)
        ticks = {}
        for number in range(math.floor(high / size), math.ceil(low / size) - 1, -1):
            ticks.setdefault(_place(-number * size, -high, -low, 4 * rows) // 4, number * size)
        if len(ticks) >= min(2, rows):
            break
    return ticks


def _round_up(size: float) -> float:
    """The next 1, 2, 2.5 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(size))
    return next(factor * power for factor in _STEP_SIZES if factor * power >= size * (1 - 1e-9))


def _figures(values: Sequence[float]) -> list[str]:
    """The values with as many decimals as tell them apart, or with exponents."""
    if not values:
        return []
    greatest = max(abs(value) for value in values)
    if greatest and (greatest < 1e-3 or greatest >= 1e6):
        return [f"{value:.1e}" if value else "0" for value in values]
    for decimals in range(6):
        names = [f"{value:.{decimals}f}" for value in values]
        exact = all(
            math.isclose(float(name), value, abs_tol=greatest * 1e-6) for name, value in zip(names, values, strict=True)
        )
        if exact:
            return names
    return [f"{value:.5f}" for value in values]


def _row(name: str | None, gutter: int, cells: Sequence[Cell]) -> Text:
    """One line: figure, axis, cells; neighbours of one style are one piece."""
    line = Text.assemble((f"{name or '':>{gutter - 1}} {_TICK if name is not None else _WALL}", "dim"), end="")
    start = 0
    for column in range(1, len(cells) + 1):
        if column == len(cells) or cells[column][1] != cells[start][1]:
            line.append("".join(char for char, _ in cells[start:column]), cells[start][1])
            start = column
    return line


_Tick = tuple[int, int, str]  # its column, where its name starts, the name


def _step_ticks(first: float, last: float, columns: int) -> list[_Tick]:
    """Round steps; the last one says what is counted."""
    size = max(1.0, _round_up((last - first) / max(1, columns // 14))) if last > first else 1.0
    size = 5.0 if size == 2.5 else size  # there is no half of a step
    end = f"step {last:,.0f}"[:columns]
    numbers = [number * size for number in range(math.ceil(first / size), math.floor(last / size) + 1)]
    ticks = [(_place(number, first, last, columns), f"{number:,.0f}") for number in numbers]
    found = _spaced([(column, _start(column, name), name) for column, name in ticks], columns - len(end) - 2)
    return [*found, (columns - 1, max(0, columns - len(end)), end)]


def _named_ticks(names: Mapping[float, str], first: float, last: float, columns: int) -> list[_Tick]:
    """Those of ``names`` that lie between ``first`` and ``last`` and have room."""
    ticks = [(_place(x, first, last, columns), name) for x, name in names.items() if first - 1e-6 <= x <= last + 1e-6]
    return _spaced([(column, min(_start(column, name), columns - len(name)), name) for column, name in ticks], columns)


def _start(column: int, name: str) -> int:
    """Where ``name`` starts that stands below ``column``."""
    return max(0, column - len(name) // 2)


def _spaced(ticks: Sequence[_Tick], room: int) -> list[_Tick]:
    """Those that have their place within ``room`` cells and two cells from the name before."""
    found: list[_Tick] = []
    taken = 0
    for column, start, name in ticks:
        if start >= taken and start + len(name) <= room:
            found.append((column, start, name))
            taken = start + len(name) + 2
    return found


def _x_axis(ticks: Sequence[_Tick], gutter: int, columns: int) -> list[Text]:
    """The floor with its ticks, and the figures below it."""
    floor = [_FLOOR] * columns
    figures = [" "] * columns
    for column, start, name in ticks:
        floor[column] = _FLOOR_TICK
        figures[start : start + len(name)] = name
    return [
        Text(" " * gutter + _CORNER + "".join(floor), "dim", end=""),
        Text(" " * (gutter + 1) + "".join(figures), "dim", end=""),
    ]
