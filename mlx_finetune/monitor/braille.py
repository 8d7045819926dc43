"""A small line chart of braille dots: two by four dots a character, no dependency."""

from collections.abc import Sequence

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # [row within the character][column]
_BLANK = 0x2800

Points = Sequence[tuple[float, float]]


def draw_curve(points: Points, *, width: int, height: int) -> list[str]:
    """``height`` lines of ``width`` characters through ``points`` (x rising), neighbours joined by straight lines.

    The first line is the largest y. Blank lines for fewer than two points or one x.
    """
    rows = [[0] * width for _ in range(height)]
    columns, levels = 2 * width, 4 * height
    if len(points) >= 2 and points[-1][0] > points[0][0]:
        low, high = min(y for _, y in points), max(y for _, y in points)
        first, last = points[0][0], points[-1][0]
        for column in range(columns):
            x = first + (last - first) * column / (columns - 1)
            level = _level(_value_at(points, x), low, high, levels)
            before = level
            if column:
                earlier = first + (last - first) * (column - 1) / (columns - 1)
                before = _level(_value_at(points, earlier), low, high, levels)
            for dot in range(min(level, before + (1 if level > before else 0)), max(level, before - 1) + 1):
                rows[dot // 4][column // 2] |= _DOTS[dot % 4][column % 2]
    return ["".join(chr(_BLANK + cell) for cell in row) for row in rows]


def draw_segment(rows: list[list[int]], start: tuple[int, int], end: tuple[int, int]) -> None:
    """Set the dots of a straight line in ``rows`` of braille bits; places are (dot column, dot row from the top)."""
    (x0, y0), (x1, y1) = start, end
    if x0 == x1:
        for dot in range(min(y0, y1), max(y0, y1) + 1):
            rows[dot // 4][x0 // 2] |= _DOTS[dot % 4][x0 % 2]
        return
    before = y0
    for x in range(x0, x1 + 1):
        y = round(y0 + (y1 - y0) * (x - x0) / (x1 - x0))
        for dot in range(min(y, before + (y > before)), max(y, before - (y < before)) + 1):
            rows[dot // 4][x // 2] |= _DOTS[dot % 4][x % 2]
        before = y


def thin(points: Points, count: int) -> list[tuple[float, float]]:
    """At most about ``count`` points: means of neighbours, so that a noisy curve of 10,000 steps stays readable."""
    if len(points) <= count:
        return list(points)
    size = -(-len(points) // count)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _value_at(points: Points, x: float) -> float:
    """Linear interpolation."""
    low, high = 0, len(points) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if points[middle][0] <= x:
            low = middle
        else:
            high = middle
    (x0, y0), (x1, y1) = points[low], points[high]
    return y0 if x1 <= x0 else y0 + (y1 - y0) * min(1.0, max(0.0, (x - x0) / (x1 - x0)))


def _level(y: float, low: float, high: float, levels: int) -> int:
    """Dot row of ``y``, 0 at the top; the middle where all are equal."""
    if high <= low:
        return levels // 2
    return round((levels - 1) * (high - y) / (high - low))
