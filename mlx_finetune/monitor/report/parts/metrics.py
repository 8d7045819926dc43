"""What the objective measured beside its loss: a picture for each group, and a table of before, best and last."""

from collections.abc import Iterator, Mapping, Sequence

from mlx_finetune.events import Evaluated
from mlx_finetune.monitor.objective_metrics import Metric, metric_groups, metric_points
from mlx_finetune.monitor.report.chart import Chart, Series, draw
from mlx_finetune.monitor.report.facts import ReportFacts
from mlx_finetune.monitor.report.markup import Html, section, table, tag
from mlx_finetune.monitor.summary import Summary

_LOOKS = ("first", "second", "third", "raw")
_MOST_CURVES = len(_LOOKS)


def metrics(facts: ReportFacts) -> Html | None:
    """The section; None where the objective has nothing but its loss."""
    summary = facts.summary
    groups = metric_groups(summary)
    if not groups:
        return None
    shown = {group: members for group, members in groups.items() if group != summary.lead}  # among the curves
    marks = tuple(float(one.step) for one in summary.restarts if one.step)
    figures = [figure for chart in _charts(summary, shown, marks) if (figure := draw(chart)) is not None]
    parts = [tag("div", *figures, class_="charts")] if figures else []
    values = _table(summary.evaluations, summary, [one for group in groups.values() for one in group])
    return section("metrics", "What else was measured", *parts, *([values] if values else []))


def _charts(summary: Summary, groups: Mapping[str, Sequence[Metric]], marks: tuple[float, ...]) -> Iterator[Chart]:
    for group, members in groups.items():
        shown = members[:_MOST_CURVES]
        series = [
            _series(one.label, look, metric_points(summary.steps, one.name))
            for one, look in zip(shown, _LOOKS, strict=False)
        ]
        if len(shown) == 1:
            valid = metric_points(summary.evaluations, shown[0].name)
            series = [
                _series("training", "first", metric_points(summary.steps, shown[0].name)),
                _series("validation", "third", valid, is_dotted=len(valid) <= 60),
            ]
        yield Chart(_title(group), tuple(series), marks=marks, from_zero=False)


def _series(label: str, look: str, points: Sequence[tuple[float, float]], *, is_dotted: bool = False) -> Series:
    return Series(label, look, [x for x, _ in points], [y for _, y in points], is_dotted)


def _title(group: str) -> str:
    words = group.replace("_", " ")
    return words[:1].upper() + words[1:]


def _table(evaluations: Sequence[Evaluated], summary: Summary, members: Sequence[Metric]) -> Html | None:
    """Each metric of the validation set before training, at the lowest validation loss, and at the end."""
    if not evaluations:
        return None
    best = summary.best_evaluation or evaluations[-1]
    columns = [("first", evaluations[0]), (f"lowest loss (step {best.step:,})", best), ("last", evaluations[-1])]
    rows = [
        (one.name, *(_shown(evaluation.metrics.get(one.name)) for _, evaluation in columns))
        for one in members
        if any(evaluation.metrics.get(one.name) is not None for _, evaluation in columns)
    ]
    return table(("validation", *(name for name, _ in columns)), rows, class_="figures") if rows else None


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
