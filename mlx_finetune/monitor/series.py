"""A long series as few points as a picture can show, its extremes kept."""

from collections.abc import Sequence


def thin_extremes(xs: Sequence[float], ys: Sequence[float], most: int) -> tuple[list[float], list[float]]:
    """At most ``most`` (at least 4) of the points, by rising x: the first, the last, and of every part the least and
    the greatest y.

    The parts are equal shares of the points in between, so a spike of one step stays where it was. What is not a number
    (null in the journal, NaN) is left out.
    """
    assert most >= 4
    points = [(x, y) for x, y in zip(xs, ys, strict=True) if y is not None and y == y]  # pyright: ignore[reportUnnecessaryComparison]
    if len(points) > most:
        inner, num_parts = points[1:-1], (most - 2) // 2
        kept = [points[0]]
        for part in range(num_parts):
            group = inner[len(inner) * part // num_parts : len(inner) * (part + 1) // num_parts]
            least = min(range(len(group)), key=lambda place: group[place][1])
            greatest = max(range(len(group)), key=lambda place: group[place][1])
            kept += [group[place] for place in sorted({least, greatest})]
        points = [*kept, points[-1]]
    return [x for x, _ in points], [y for _, y in points]
