"""The course of a run as pictures over its steps: loss, learning rate, gradient norm, pace, memory."""

from collections.abc import Iterator, Sequence

from mlx_finetune.monitor.objective_metrics import Points, metric_points
from mlx_finetune.monitor.plain import number
from mlx_finetune.monitor.report.chart import Chart, Series, draw
from mlx_finetune.monitor.report.facts import ReportFacts
from mlx_finetune.monitor.report.markup import Html, details, section, table, tag
from mlx_finetune.monitor.summary import LossPoint, Summary
from mlx_finetune.units import format_bytes

_MOST_EVALUATIONS = 200


def curves(facts: ReportFacts) -> Html | None:
    """The section; None where fewer than two steps were logged."""
    figures = [figure for chart in _charts(facts) if (figure := draw(chart)) is not None]
    if not figures:
        return None
    better = "higher" if facts.summary.lead else "lower"
    return section(
        "curves",
        "How the training went",
        tag("p", f"Steps run from left to right. In the first picture {better} is better.", class_="hint"),
        tag("div", *figures, class_="charts"),
        _evaluation_table(facts.summary),
    )


def _charts(facts: ReportFacts) -> Iterator[Chart]:
    summary = facts.summary
    marks = tuple(float(one.step) for one in summary.restarts if one.step)
    yield from _leading(summary, marks) if summary.lead else [_loss(summary, marks)]
    learned, steps = summary.learned, [float(one.step) for one in summary.steps]

    def over_steps(name: str, look: str, values: list[float]) -> Series:
        return Series(name, look, steps, values)

    yield Chart(
        "Learning rate",
        (over_steps("", "second", [one.learning_rate for one in summary.steps]),),
        write=lambda value: f"{value:.3g}",
        note="How far each step may move the weights.",
    )
    yield Chart(
        "Gradient norm",
        (over_steps("", "second", [one.grad_norm for one in summary.steps]),),
        note="How strongly the rows of a step pull at the weights, before it is cut to the allowed length. Single "
        "spikes are usual.",
        limit=_norm_limit(facts),
        marks=marks,
        cuts_spikes=True,
        may_be_log=True,
    )
    yield Chart(
        f"{learned.units.capitalize()} a second",
        (over_steps("", "second", [one.targets_per_second for one in summary.steps]),),
        note=f"{learned.what.capitalize()}s learned from in a second of a step. Short rows and a busy machine make it "
        "uneven.",
        marks=marks,
        cuts_spikes=True,
    )
    yield _memory(summary)


def _loss(summary: Summary, marks: tuple[float, ...]) -> Chart:
    """Training and validation loss, which are one measure."""
    best = summary.best_evaluation
    return Chart(
        "Loss",
        (*_training(summary.losses), _validation("validation", _losses(summary))),
        note=f"Training loss is on rows that it learns from, validation loss on rows that it does not.{_best(summary)}",
        best=(float(best.step), best.loss) if best else None,
        marks=marks,
        cuts_spikes=True,
    )


def _leading(summary: Summary, marks: tuple[float, ...]) -> Iterator[Chart]:
    """The metric that leads, in training and validation; both losses, which are no one measure, in charts of their
    own."""
    lead, best = summary.lead, summary.best_evaluation
    yield Chart(
        lead.capitalize(),
        (*_training(summary.leading), _validation("validation", metric_points(summary.evaluations, lead))),
        note="In training of the answers that are drawn, on validation rows of the likeliest ones.",
        marks=marks,
        from_zero=False,
    )
    yield Chart(
        "Validation loss",
        (_validation("", _losses(summary)),),
        note=f"What the rewards on validation rows lack to the largest one; lower is better.{_best(summary)}",
        best=(float(best.step), best.loss) if best else None,
        marks=marks,
    )
    steps, losses = [float(point.step) for point in summary.losses], [point.loss for point in summary.losses]
    yield Chart(
        "Training loss",
        (Series("", "second", steps, losses),),
        note="Of answers compared with their group: it stays near 0 whatever is learned, and does not tell of success.",
        marks=marks,
        cuts_spikes=True,
    )


def _training(points: Sequence[LossPoint]) -> tuple[Series, Series]:
    """Each step and the average."""
    steps = [float(point.step) for point in points]
    return (
        Series("each step", "raw", steps, [point.loss for point in points]),
        Series("training, smoothed", "first", steps, [point.smooth for point in points]),
    )


def _validation(name: str, points: Points) -> Series:
    return Series(name, "third", [x for x, _ in points], [y for _, y in points], is_dotted=len(points) <= 60)


def _losses(summary: Summary) -> Points:
    return [(float(one.step), one.loss) for one in summary.finite_evaluations]


def _best(summary: Summary) -> str:
    best = summary.best_evaluation
    return "" if best is None else f" Best validation loss: {number(best.loss, 4)} at step {best.step:,}."


def _norm_limit(facts: ReportFacts) -> tuple[str, float] | None:
    """What gradients are cut to, where some came near it."""
    training = facts.info.resolved.get("training")
    limit = training.get("max_grad_norm") if isinstance(training, dict) else None  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    norms = [one.grad_norm for one in facts.summary.steps if one.grad_norm is not None]  # pyright: ignore[reportUnnecessaryComparison]
    if not isinstance(limit, int | float) or limit <= 0 or not norms or max(norms) < limit / 4:
        return None
    return f"cut to {limit:g}", float(limit)


def _memory(summary: Summary) -> Chart:
    """Memory of arrays, and of the process where the machine was watched; the limit where it is near."""
    steps = [float(one.step) for one in summary.steps]
    peak = [float(one.peak_memory_bytes) for one in summary.steps]
    series = [
        Series("peak so far", "first", steps, peak),
        Series("between steps", "second", steps, [float(one.active_memory_bytes) for one in summary.steps]),
    ]
    watched = [(float(one.step), float(one.process_bytes)) for one in summary.resources if one.process_bytes]
    if watched:
        xs, ys = zip(*watched, strict=True)
        series.append(Series("process", "third", xs, ys))
    limit = summary.started.memory_limit_bytes if summary.started else None
    is_near = limit is not None and bool(peak) and max(peak) > limit / 3
    note = "" if limit is None or is_near else f"The limit of {format_bytes(limit)} is far above this picture."
    return Chart(
        "Memory",
        tuple(series),
        write=_bytes,
        unit="B",
        note=note,
        limit=("limit", float(limit)) if limit is not None and is_near else None,
    )


def _bytes(value: float) -> str:
    """``1.25 GB``, ``500 MB``: no zeros at the end."""
    number_text, _, unit = format_bytes(value, 2).partition(" ")
    return f"{float(number_text):g} {unit}"


def _evaluation_table(summary: Summary) -> Html | None:
    evaluations, best = summary.evaluations, summary.best_evaluation
    if not evaluations:
        return None
    shown = evaluations
    if len(evaluations) > _MOST_EVALUATIONS:
        chosen = {len(evaluations) * place // _MOST_EVALUATIONS for place in range(_MOST_EVALUATIONS)}
        shown = [
            one for place, one in enumerate(evaluations) if place in chosen or one is best or one is evaluations[-1]
        ]
    rows = [
        (f"{one.step:,}", number(one.loss, 4), "before training" if one.step == 0 else "lowest" if one is best else "")
        for one in shown
    ]
    title = "Validation loss as a table"
    if len(shown) < len(evaluations):
        title += f" ({len(shown)} of {len(evaluations):,} evaluations)"
    return details(title, table(("step", "validation loss", ""), rows, class_="figures"))
