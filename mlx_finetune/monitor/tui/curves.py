"""The pane of the curves: the loss or what leads in its place, learning rate, gradient norm, speed, memory."""

from collections.abc import Sequence

from rich.text import Text

from mlx_finetune.monitor.objective_metrics import metric_points
from mlx_finetune.monitor.plain import number, trend_words
from mlx_finetune.monitor.summary import Summary
from mlx_finetune.monitor.tui.blocks import Lines, beside, title
from mlx_finetune.monitor.tui.chart import Curve, draw_chart
from mlx_finetune.monitor.tui.watched import METRIC, Watched
from mlx_finetune.units import format_rate

SMOOTH, VALID = "cyan", "magenta"
_MARK, _BEST = "\u25c6", "\u2605"
_EACH, _LINE = "\u2801\u2802\u2804", "\u2809\u2812\u2824"
_MOST_METRICS = 8  # of an objective, beside its loss
#: Shares of a run, counted from its end, that the curves may be cut to.
ZOOMS: Sequence[tuple[float, str]] = ((1.0, "all steps"), (0.5, "last half"), (0.1, "last tenth"))


def since(summary: Summary, zoom: int) -> float:
    """The first step that is drawn."""
    share, _ = ZOOMS[zoom]
    return 0.0 if share == 1.0 else summary.steps_done * (1 - share)


def loss_block(watched: Watched, *, width: int, height: int, zoom: int = 0) -> Lines:
    """Heading with what is drawn, and the chart; a sentence while there is nothing to draw."""
    first = since(watched.summary, zoom)
    most = 4 * width
    valid = [point for point in _validation(watched.summary) if point[0] >= first]
    curves = [
        Curve(watched.curves["lead"].points(most, first), "dim", in_range=False),
        Curve(watched.curves["smooth"].points(most // 2, first), SMOOTH),
        Curve(valid, VALID, _MARK if len(valid) <= width // 4 else ""),
    ]
    legend = _legend(watched) if width >= 56 else None
    heading = title(watched.summary.lead_name, width, ZOOMS[zoom][1] if zoom else "", legend=legend)
    has_course = any(len(curve.points) > 1 for curve in curves)
    chart = draw_chart(curves, width=width, height=height - 1) if has_course else []
    return [heading, *(chart or [Text(" the curve begins with the first steps", "dim")])]


def _validation(summary: Summary) -> list[tuple[float, float]]:
    """What leads, of the validation rows."""
    if summary.lead:
        return metric_points(summary.evaluations, summary.lead)
    return [(float(one.step), one.loss) for one in summary.finite_evaluations]


def _legend(watched: Watched) -> Text:
    """What each kind of line means, for the heading."""
    line = Text.assemble((_EACH, "dim"), " each step  ", (_LINE, SMOOTH), " smoothed")
    if watched.summary.evaluations:
        line.append(f"  {_MARK}", VALID).append(" validation")
    return line.append(" ")


def loss_parts(summary: Summary) -> list[Text]:
    """Training loss, or what leads in its place, and its trend; validation loss and the best of it."""
    parts: list[Text] = []
    if summary.smooth_lead is not None:
        trend, style = trend_words(summary)
        line = Text.assemble(f"{summary.lead_name} ", (number(summary.smooth_lead, 4), "bold"))
        parts.append(line.append(f" {trend}", style) if trend else line)
    best = summary.best_evaluation
    if summary.evaluations:
        last = summary.evaluations[-1]
        line = Text.assemble("validation loss " if summary.lead else "validation ", (number(last.loss, 4), "bold"))
        if best is not None and last is best:
            line.append(f" {_BEST} best" if last.step else " before training", "green" if last.step else "dim")
        parts.append(line)
        if best is not None and last is not best:
            parts.append(Text.assemble(f"{_BEST} best ", number(best.loss, 4), (f" at step {best.step}", "dim")))
    return parts


def curves_lines(watched: Watched, *, width: int, height: int, zoom: int = 0) -> Lines:
    """The loss above, four small charts below: beside each other as far as they fit, one below the other else."""
    columns = 4 if width >= 160 else 2 if width >= 64 else 1
    count = 4 + min(_MOST_METRICS, len(watched.summary.step.metrics) if watched.summary.step else 0)
    rows = -(-count // columns)
    small = max(6, min(9, (height - 10) // rows)) if columns > 1 else 7
    upper = max(8, height - small * rows) if columns > 1 else max(6, height)
    lines = loss_block(watched, width=width, height=upper, zoom=zoom)
    return [*lines, *small_charts(watched, width=width, columns=columns, height=small, zoom=zoom)]


def small_charts(watched: Watched, *, width: int, columns: int, height: int, zoom: int = 0) -> Lines:
    """Learning rate, gradient norm, speed and memory; each chart ``height`` lines with its heading."""
    step = watched.summary.step
    if step is None:
        return []
    first = since(watched.summary, zoom)
    unit, size = ("GB", 1e9) if step.active_memory_bytes >= 1e9 else ("MB", 1e6)
    known = [
        ("learning_rate", f"learning rate {number(step.learning_rate, 2, scientific=True)}", 1.0),
        ("grad_norm", f"gradient norm {number(step.grad_norm, 2)}", 1.0),
        ("speed", f"{watched.summary.learned.units}/s {format_rate(step.targets_per_second)}", 1.0),
        ("memory", f"MLX memory, {unit}", 1 / size),
    ]
    known += [
        (f"{METRIC}{name}", f"{name} {number(step.metrics.get(name), 3)}", 1.0)
        for name in list(step.metrics)[:_MOST_METRICS]
        if watched.curves.has(f"{METRIC}{name}") and name != watched.summary.lead
    ]
    each = (width - 2 * (columns - 1)) // columns
    lines: Lines = []
    for start in range(0, len(known), columns):
        blocks: list[tuple[Lines, int]] = []
        for name, text, factor in known[start : start + columns]:
            points = [(x, y * factor) for x, y in watched.curves[name].points(4 * each, first)]
            chart = draw_chart([Curve(points, SMOOTH, in_range=name != "grad_norm")], width=each, height=height - 1)
            blocks.append(([title(text, each), *chart], each))
        lines += beside(blocks)
    return lines
