"""What an evaluation found, as plain values and as CSV."""

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import asdict

from mlx_finetune import durable
from mlx_finetune.app.eval.figures import Change, Figure, Result
from mlx_finetune.app.eval.places import CSV_END, JSON_END, Place
from mlx_finetune.app.eval.report import Answers, Category, Changed, Report, Speed
from mlx_finetune.app.eval.setup import Evaluation

FORMAT_VERSION = 1


def write_results(place: Place, evaluation: Evaluation, report: Report, *, measured: str, seconds: float) -> None:
    """NAME.json and NAME.csv, whole or not at all. Raises ``OSError``."""
    durable.write_text(place.file(CSV_END), csv_text(report))
    fields = report_json(evaluation, report) | {"name": place.name, "measured": measured, "seconds": round(seconds, 1)}
    durable.write_json(place.file(JSON_END), fields)


def report_json(evaluation: Evaluation, report: Report) -> dict[str, object]:
    """Everything as plain values."""
    opened, chosen = evaluation.subject.opened, evaluation.chosen
    return {
        "format_version": FORMAT_VERSION,
        "subject": opened.name,
        "model": opened.info.name,
        "step": evaluation.subject.step,
        "identity": dict(evaluation.identity),
        "data": {
            "source": chosen.source,
            "split": chosen.split,
            "num_rows": len(chosen.rows),
            "num_held_out": chosen.num_held_out,
            "num_copies": chosen.num_copies,
            "unit": chosen.unit,
            "num_in_training": chosen.seen.num_train if chosen.seen else None,
            "num_in_validation": chosen.seen.num_valid if chosen.seen else None,
        },
        "tasks": list(evaluation.tasks),
        "tasks_reason": evaluation.reason,
        "is_whole": report.is_whole,
        "verdict": asdict(report.verdict),
        "measures": [_result_json(one) for one in report.results],
        "categories": [_category_json(one) for one in report.categories],
        "answers": _plain(report.answers),
        "constrained_answers": _plain(report.constrained),
        "at_once": evaluation.at_once,
        "speed": _plain(report.speed),
        "texts": {name: asdict(one) for name, one in report.texts.items()},
        "lead": report.lead,
        "gained": [_changed_json(one) for one in report.gains],
        "lost": [_changed_json(one) for one in report.losses],
        "classes": {
            side: {**asdict(one), "scores": [asdict(score) for score in one.classes]}
            for side, one in report.classes.items()
        },
        "baseline": asdict(report.baseline) if report.baseline else None,
        "gates": [{"gate": str(one.gate), "value": one.value, "is_met": one.is_met} for one in report.gates],
        "failed": [asdict(one) for one in report.failed],
    }


def csv_text(report: Report) -> str:
    """One line for each figure and change, over all rows (category "") and over each category."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("category", "measure", "side", "value", "low", "high", "rows", "p", "p_holm"))
    for line in _csv_lines(report):
        writer.writerow(line)
    return out.getvalue()


def _csv_lines(report: Report) -> Iterator[tuple[object, ...]]:
    everything = Category("", 0, report.results, report.answers)
    for category in (everything, *report.categories):
        for one in category.results:
            for side, figure in one.figures.items():
                yield category.name, one.measure.name, side, *_numbers(figure), figure.num_rows, "", ""
            for side, change in (("change", one.change), ("change from examples", one.to_shots)):
                if change is not None:
                    numbers = (*_numbers(change), change.num_rows, change.p, change.p_holm)
                    yield category.name, one.measure.name, side, *numbers
        for side, answers in category.answers.items():
            for name, value in (
                ("answer_tokens", answers.length.median),
                ("answer_seconds", answers.seconds.median),
                ("answer_tokens_per_second", answers.tokens_per_second),
            ):
                yield category.name, name, side, value, "", "", answers.num_answers, "", ""


def _numbers(figure: Figure | Change) -> tuple[float, float | None, float | None]:
    return figure.value, figure.low, figure.high


def _result_json(one: Result) -> dict[str, object]:
    return {
        "name": one.measure.name,
        "task": one.measure.task,
        "title": one.measure.title,
        "is_higher_better": one.measure.is_higher_better,
        "is_tested": one.measure.is_tested,
        "is_shown": one.measure.is_shown,
        "sides": {side: asdict(figure) for side, figure in one.figures.items()},
        "change": asdict(one.change) if one.change else None,
        "change_from_examples": asdict(one.to_shots) if one.to_shots else None,
        "is_better": one.is_better,
        "is_worse": one.is_worse,
    }


def _category_json(one: Category) -> dict[str, object]:
    return {
        "name": one.name,
        "num_rows": one.num_rows,
        "measures": [_result_json(result) for result in one.results],
        "answers": _plain(one.answers),
    }


def _plain(found: Mapping[str, Answers] | Mapping[str, Speed]) -> dict[str, object]:
    return {side: asdict(one) for side, one in found.items()}


def _changed_json(one: Changed) -> dict[str, object]:
    return asdict(one)
