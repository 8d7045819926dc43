"""A long series as few points as a picture can show, its extremes kept."""

from collections.abc import Sequence


def thin_extremes(xs: Sequence[float], ys: Sequence[float], most: int) -> tuple[list[float], list[float]]:
    """At most ``most`` (at least 4) of the points, by rising x: the first, the last, and of every part the least and
    the greatest y.

    The parts are equal shares of the points in between, so a spike of one step stays where it was. What is not a number
    (null in the journal, NaN) is left out.
    """
    assert most >= 4
    if None in ys or (total := sum(ys)) != total:
        points = [(x, y) for x, y in zip(xs, ys, strict=True) if y is not None and y == y]  # pyright: ignore[reportUnnecessaryComparison]
        xs, ys = [x for x, _ in points], [y for _, y in points]
    if len(ys) <= most:
        return list(xs), list(ys)
    num_inner, num_parts, kept = len(ys) - 2, (most - 2) // 2, [0]
    for part in range(num_parts):
        start, end = 1 + num_inner * part // num_parts, 1 + num_inner * (part + 1) // num_parts
        group = ys[start:end]
        kept += sorted({start + group.index(min(group)), start + group.index(max(group))})
    kept.append(len(ys) - 1)
    return [xs[place] for place in kept], [ys[place] for place in kept]
