"""Figures side by side in a table of 80 columns: two sides, the change between them and its interval."""

import textwrap
from collections.abc import Iterator, Sequence

from mlx_finetune.app.eval.figures import Change, Figure, Result
from mlx_finetune.app.eval.verdict import decimals_of, is_sure, no_interval, shown_pair
from mlx_finetune.app.text import shorten
from mlx_finetune.units import format_figure

WIDTH = 80
TITLE = 26


def wrapped(text: str, indent: str = "") -> list[str]:
    """Lines of at most 80 columns."""
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def table(results: Sequence[Result], first: str, second: str) -> Iterator[str]:
    """One line for each measure: its figures on the two sides, and the change; other sides below, alone."""
    shown = [one for one in results if one.measure.is_shown]
    sides = list(dict.fromkeys(side for one in shown for side in one.figures))
    if any(one.change for one in shown):
        heads = "".join(f"{head:>9}" for head in _heads(first, second))
        yield f"{'':<{TITLE}}{heads}   {'change':<8}{'95 % interval'}"
        for one in shown:
            yield _row(one, first, second).rstrip()
        sides = [side for side in sides if side not in (first, second)]
    for place, side in enumerate(sides):
        if place or len(sides) < len(shown[0].figures):
            yield ""
        yield f"{side:<{TITLE + 9}}   95 % interval"
        for one in (one for one in shown if side in one.figures):
            figure = one.figures[side]
            title = shorten(one.measure.title, TITLE - 3)
            yield f"  {title:<{TITLE - 2}}{value(figure):>9}   {span(figure)}"


def _heads(first: str, second: str) -> tuple[str, str]:
    """Two names in columns of 8: their beginnings, their ends where these tell them apart, else first and second."""
    names = (first, second)
    begun = tuple(shorten(name, 8) for name in names)
    ended = tuple(shorten(name[::-1], 8)[::-1] for name in names)
    return next(((one, other) for one, other in (begun, ended) if one != other), ("first", "second"))


def value(figure: Figure) -> str:
    """A figure in a cell: ``41/50`` for a rate of few rows."""
    return format_figure(figure.value) if not _is_counted(figure) else f"{figure.num_right}/{figure.num_rows}"


def _is_counted(figure: Figure) -> bool:
    return figure.num_right is not None and figure.num_rows < 1000


def span(figure: Figure) -> str:
    """The interval of a figure, or why it has none."""
    if figure.low is None or figure.high is None:
        return no_interval(figure)
    return f"{format_figure(figure.low)} to {format_figure(figure.high)}"


def _row(one: Result, first: str, second: str) -> str:
    title = shorten(one.measure.title, TITLE - 1)
    texts = {side: value(one.figures[side]) for side in (first, second) if side in one.figures}
    if len(texts) == 2 and not any(_is_counted(one.figures[side]) for side in texts):
        texts = dict(zip(texts, shown_pair(one, first, second), strict=True))
    cells = "".join(f"{texts.get(side, '-'):>9}" for side in (first, second))
    if one.change is None:
        return f"{title:<{TITLE}}{cells}"
    sign = "better" if one.is_better else "worse" if one.is_worse else "unsure" if one.measure.is_tested else ""
    if is_sure(one) and len(texts) == 2 and texts[first] == texts[second]:
        sign = "same"  # as far as anybody can see
    amount, interval = _change(one.change, decimals_of(one, one.change))
    changed = f"{amount + ' ':<8}{interval}"
    return f"{title:<{TITLE}}{cells}   {changed:<26} {sign}"


def _change(change: Change, decimals: int) -> tuple[str, str]:
    sign, mark = ("", "x ") if change.is_factor else ("+", "")
    value = f"{mark}{change.value:{sign}.{decimals}f}"
    if change.low is None or change.high is None:
        return value, no_interval(change)
    ends = f"{change.low:{sign}.{decimals}f} to {change.high:{sign}.{decimals}f}"
    return value, ends if decimals > 2 else f"{mark}{ends}"  # the line has no room for both
