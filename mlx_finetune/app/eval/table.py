"""Figures side by side in a table of 80 columns: two sides, the change between them and its interval."""

import textwrap
from collections.abc import Iterator, Sequence

from mlx_finetune.app.eval.figures import Change, Figure, Result
from mlx_finetune.app.eval.verdict import no_interval, number
from mlx_finetune.app.text import shorten

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
        yield f"{'':<{TITLE}}{shorten(first, 8):>9}{shorten(second, 8):>9}   {'change':<8}{'95 % interval'}"
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


def value(figure: Figure) -> str:
    """A figure in a cell: ``41/50`` for a rate of few rows."""
    if figure.num_right is not None and figure.num_rows < 1000:
        return f"{figure.num_right}/{figure.num_rows}"
    return number(figure.value)


def span(figure: Figure) -> str:
    """The interval of a figure, or why it has none."""
    if figure.low is None or figure.high is None:
        return no_interval(figure)
    return f"{number(figure.low)} to {number(figure.high)}"


def _row(one: Result, first: str, second: str) -> str:
    title = shorten(one.measure.title, TITLE - 1)
    cells = "".join(f"{value(one.figures[side]) if side in one.figures else '-':>9}" for side in (first, second))
    if one.change is None:
        return f"{title:<{TITLE}}{cells}"
    sign = "better" if one.is_better else "worse" if one.is_worse else "unsure" if one.measure.is_tested else ""
    amount, interval = _change(one.change)
    return f"{title:<{TITLE}}{cells}   {amount:<8}{interval:<19}{sign}"


def _change(change: Change) -> tuple[str, str]:
    value = f"x {change.value:.2f}" if change.is_factor else f"{change.value:+.2f}"
    if change.low is None or change.high is None:
        return value, no_interval(change)
    if change.is_factor:
        return value, f"x {change.low:.2f} to {change.high:.2f}"
    return value, f"{change.low:+.2f} to {change.high:+.2f}"
