"""A curve as inline SVG. The plot stretches with the page, its figures are text beside it and keep their size.

At most ``MOST_POINTS`` of a series are drawn, its extremes among them: a chart of any run is a few tens of kilobytes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlx_finetune.monitor.report.axes import Axis, linear_axis, value_axis
from mlx_finetune.monitor.report.markup import Html, tag
from mlx_finetune.monitor.series import thin_extremes

MOST_POINTS = 600
_WIDTH, _HEIGHT = 1000, 300
#: Share of the points that the scale must show whole where a few stick out far above.
_SHOWN_SHARE = 0.99


@dataclass(frozen=True, slots=True)
class Series:
    """One curve; ``look`` is its class in report.css. ``is_dotted``: a point at each value."""

    name: str
    look: str
    xs: Sequence[float]
    ys: Sequence[float]
    is_dotted: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves over steps, or over what ``across`` names. ``marks`` are steps with a line across, ``best`` a point to
    mark, ``limit`` a line along.

    ``write`` makes text of a value. ``unit`` is what the script writes behind one; "B" asks it for kB, MB and so on.
    ``mark_name`` is what is at marks.
    With ``cuts_spikes`` the first series may leave the plot at the top; ``may_be_log`` allows a logarithmic scale.
    """

    title: str
    series: tuple[Series, ...]
    write: Callable[[float], str] | None = None
    unit: str = ""
    note: str = ""
    best: tuple[float, float] | None = None
    limit: tuple[str, float] | None = None
    marks: tuple[float, ...] = ()
    from_zero: bool = True
    cuts_spikes: bool = False
    may_be_log: bool = False
    across: str = "step"
    mark_name: str = "restart"


def draw(chart: Chart) -> Html | None:
    """The figure; None where no series has two values."""
    series = [_thinned(one) for one in chart.series]
    series = [one for one in series if one.xs]
    if not any(len(one.xs) > 1 for one in series):
        return None
    x_low = 0.0 if series[0].xs[0] <= 1 else series[0].xs[0]
    x_axis = linear_axis(x_low, max(one.xs[-1] for one in series), least_step=1.0)
    values = [value for one in series for value in one.ys] + ([chart.limit[1]] if chart.limit else [])
    top = max(_top(series), chart.limit[1] if chart.limit else 0.0) if chart.cuts_spikes else max(values)
    y_axis = value_axis(
        [min(value, top) for value in values], chart.write, from_zero=chart.from_zero, may_be_log=chart.may_be_log
    )
    note = " ".join(part for part in (chart.note, _above(series[0], y_axis)) if part)
    marks = [_mark(step, x_axis) for step in chart.marks]
    plot = tag(
        "svg",
        *_grid(y_axis),
        *marks,
        *([_along(chart.limit[1], y_axis)] if chart.limit else []),
        *(_curve(one, x_axis, y_axis) for one in series),
        *([_dot(*chart.best, x_axis, y_axis, "best")] if chart.best else []),
        tag("path", class_="cursor", d="M0 0"),
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        preserveAspectRatio="none",
        role="img",
        aria_label=chart.title,
    )
    return tag(
        "figure",
        tag("figcaption", tag("b", chart.title), *_legend(chart, series)),
        tag(
            "div",
            tag("div", *(tag("span", label) for label in reversed(y_axis.labels)), class_="y"),
            plot,
            tag("div", *(tag("span", label) for label in x_axis.labels), class_="x"),
            tag("div", class_="readout"),
            class_="plot",
        ),
        tag("p", note, class_="note") if note else None,
        class_="chart",
        data_from=_short(x_axis.low),
        data_to=_short(x_axis.high),
        data_low=f"{y_axis.low:.6g}",
        data_high=f"{y_axis.high:.6g}",
        data_log=y_axis.is_log,
        data_unit=chart.unit or None,
        data_across=None if chart.across == "step" else chart.across,
    )


def _thinned(series: Series) -> Series:
    xs, ys = thin_extremes(series.xs, series.ys, MOST_POINTS)
    return Series(series.name, series.look, xs, ys, series.is_dotted)


def _top(series: Sequence[Series]) -> float:
    """The highest value to show: of the first series all but the few that stick out, of the others all."""
    ordered = sorted(series[0].ys)
    usual = ordered[int(_SHOWN_SHARE * (len(ordered) - 1))]
    highest = max((value for one in series[1:] for value in one.ys), default=usual)
    return ordered[-1] if ordered[-1] <= 2 * max(usual, highest) else max(usual, highest)


def _above(series: Series, axis: Axis) -> str:
    """What lies above the plot, in words."""
    over = [(value, x) for x, value in zip(series.xs, series.ys, strict=True) if axis.place(value) > 1 + 1e-9]
    if not over:
        return ""
    value, step = max(over)
    many = "1 point lies" if len(over) == 1 else f"{len(over)} points lie"
    return f"{many} above the picture, the highest with {value:.4g} at step {step:,.0f}."


def _grid(axis: Axis) -> list[Html]:
    last = len(axis.labels) - 1
    return [
        tag("path", class_="grid", d=f"M0 {_short(_HEIGHT * number / last)}H{_WIDTH}") for number in range(last + 1)
    ]


def _curve(series: Series, x_axis: Axis, y_axis: Axis) -> Html:
    places = [f"{_x(x, x_axis)} {_y(value, y_axis)}" for x, value in zip(series.xs, series.ys, strict=True)]
    line = tag("path", class_=f"line {series.look}", data_name=series.name or None, d="M" + "L".join(places))
    if not series.is_dotted and len(places) > 1:
        return line
    dots = tag("path", class_=f"dots {series.look}", d="".join(f"M{place}h.01" for place in places))
    return Html(line.text + dots.text)


def _dot(x: float, value: float, x_axis: Axis, y_axis: Axis, look: str) -> Html:
    return tag("path", class_=f"dots {look}", d=f"M{_x(x, x_axis)} {_y(value, y_axis)}h.01")


def _mark(step: float, axis: Axis) -> Html:
    return tag("path", class_="mark", d=f"M{_x(step, axis)} 0V{_HEIGHT}")


def _along(value: float, axis: Axis) -> Html:
    return tag("path", class_="limit", d=f"M0 {_y(value, axis)}H{_WIDTH}")


def _x(value: float, axis: Axis) -> str:
    return _short(_WIDTH * axis.place(value))


def _y(value: float, axis: Axis) -> str:
    return _short(_HEIGHT * (1 - min(1.0, axis.place(value))))  # what is above the plot runs along its edge


def _short(value: float) -> str:
    """At most one decimal, none where it is 0."""
    return f"{value:.1f}".removesuffix(".0")


def _legend(chart: Chart, series: Sequence[Series]) -> list[Html]:
    entries = [(one.look, one.name) for one in series if one.name]
    entries += [("best", "best")] if chart.best else []
    entries += [("limit", chart.limit[0])] if chart.limit else []
    entries += [("mark", chart.mark_name)] if chart.marks else []
    return [tag("span", tag("i", class_=look), name, class_="key") for look, name in entries]


def bar(share: float) -> Html:
    """A bar of that share of its cell, 0 to 1."""
    shape = tag("path", class_="bar", d=f"M0 0H{_short(100 * share)}V10H0Z")
    return tag("svg", shape, viewBox="0 0 100 10", preserveAspectRatio="none", class_="bar-cell", aria_hidden="true")


def interval_picture(low: float, value: float, high: float, *, look: str) -> Html:
    """An interval and its middle around zero, which is a line in the centre."""
    reach = max(abs(low), abs(high), abs(value)) or 1.0
    left, middle, right = (_short(50 + 48 * end / reach) for end in (low, value, high))
    shapes = (
        tag("path", class_="zero", d="M50 0V20"),
        tag("path", class_=f"interval {look}", d=f"M{left} 10H{right}"),
        tag("path", class_=f"dots {look}", d=f"M{middle} 10h.01"),
    )
    return tag(
        "svg", *shapes, viewBox="0 0 100 20", preserveAspectRatio="none", class_="interval-cell", aria_hidden="true"
    )
