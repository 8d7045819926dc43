"""A report for a person, in lines of at most 80 columns."""

from collections.abc import Iterator, Mapping, Sequence

from mlx_finetune.app.eval import measures as works
from mlx_finetune.app.eval.classes import confusion_lines
from mlx_finetune.app.eval.figures import Result
from mlx_finetune.app.eval.report import Answers, Category, Changed, Report, Speed, Timing
from mlx_finetune.app.eval.setup import Evaluation
from mlx_finetune.app.eval.table import TITLE, WIDTH, span, table, value, wrapped
from mlx_finetune.app.eval.verdict import BASE, TUNED
from mlx_finetune.app.text import shorten, shorten_place
from mlx_finetune.units import counted, format_figure, format_pair, format_seconds

_SHOWN_ROWS = 3

#: What a row of a rate is.
_RIGHT = {0.0: "wrong", 0.5: "a tie", 1.0: "right"}


def report_lines(evaluation: Evaluation, report: Report) -> Iterator[str]:
    """The verdict first, then what it is made from."""
    yield from wrapped(_heading(evaluation, report))
    yield ""
    yield from wrapped(report.verdict.sentence)
    yield ""
    yield from table(report.results, BASE, TUNED)
    if report.baseline is not None:
        yield ""
        yield from wrapped(report.baseline.sentence)
    yield from confusion_lines(report.classes, TUNED if TUNED in report.classes else next(iter(report.classes), ""))
    yield from _categories(report.categories, report.results)
    how = "one at a time" if evaluation.at_once == 1 else f"{evaluation.at_once} at a time"
    yield from _answer_lines(f"answers, {how}: tokens and seconds of one (median, 95 % below)", report.answers)
    yield from _answer_lines("answers held to the schema, likewise", report.constrained)
    yield from _speed_lines(report.speed)
    is_rate = any(one.measure.kind == "right" for one in report.results if one.measure.title == report.lead)
    asked = "text" if evaluation.identity["kind"] == "text" else "asked"
    yield from _changed_lines(f"gained most, {report.lead}", report.gains, asked, is_rate=is_rate)
    yield from _changed_lines(f"lost most, {report.lead}", report.losses, asked, is_rate=is_rate)
    yield from _footnotes(evaluation, report)
    yield from _gates(report)


def _heading(evaluation: Evaluation, report: Report) -> str:
    opened, chosen = evaluation.subject.opened, evaluation.chosen
    what = f"{opened.name} ({opened.info.name} with adapter)" if opened.spec else f"{opened.name} ({opened.info.name})"
    start = "" if report.is_whole else "interrupted, figures are of what was measured so far; "
    begun = evaluation.subject.started_from
    base = f"; base is what it started from, {begun.name}" if begun is not None else ""
    failed = f"; {counted(len(report.failed), chosen.unit)} could not be measured" if report.failed else ""
    return f"{start}{what} on {chosen.described} of {chosen.source}{base}{failed}"


def _categories(categories: Sequence[Category], results: Sequence[Result]) -> Iterator[str]:
    """For each category its rows, and one line a side: its first figures, length, time and speed of the answers."""
    if not categories:
        return
    has_answers = any(category.answers for category in categories)
    shown = [one.measure for one in results if one.measure.is_shown and one.measure.task != "general"]
    leads = shown[: 2 if has_answers else 4]
    yield ""
    width = 13 if has_answers else 12
    titles = "".join(f"{shorten(measure.name, width - 1):>{width}}" for measure in leads)
    yield f"{'by category':<12}{'rows':>5} {'':<11}{titles}" + (
        f"{'tokens':>8}{'seconds':>9}{'tok/s':>7}" if has_answers else ""
    )
    for category in categories:
        sides = list(dict.fromkeys(side for one in category.results for side in one.figures))
        for side in sides:
            found = {one.measure.name: one.figures.get(side) for one in category.results}
            cells = "".join(f"{value(f) if (f := found.get(measure.name)) else '-':>{width}}" for measure in leads)
            name = f"{shorten(category.name, 11):<12}{category.num_rows:>5} " if side == sides[0] else " " * 18
            yield f"{name}{side:<11}{cells}{_answer_cells(category.answers.get(side))}".rstrip()


def _answer_cells(answers: Answers | None) -> str:
    if answers is None:
        return ""
    return f"{answers.length.median:>8.0f}{answers.seconds.median:>9.1f}{answers.tokens_per_second:>7.1f}"


def _answer_lines(title: str, answers: Mapping[str, Answers]) -> Iterator[str]:
    if not answers:
        return
    yield ""
    yield title
    for side, one in answers.items():
        cut = f"; {one.num_cut} of {one.num_answers} cut at the limit" if one.num_cut else ""
        yield (
            f"  {side:<{TITLE - 2}}{one.length.median:.0f}, {one.length.p95:.0f} tokens; "
            f"{one.seconds.median:.1f}, {one.seconds.p95:.1f} s{cut}"
        )


def _speed_lines(speed: Mapping[str, Speed]) -> Iterator[str]:
    if not speed:
        return
    yield ""
    yield f"{'one at a time':<{TITLE - 8}}{'prompt tok/s':>17}{'answer tok/s':>17}{'first token, s':>17}{'tokens':>8}"
    for side, one in speed.items():
        cells = "".join(f"{_pair(timing):>17}" for timing in (one.prefill, one.decode, one.first_seconds))
        yield f"  {side:<{TITLE - 10}}{cells}{one.length.median:>8.0f}"
    yield "  median, and in brackets what 95 % of the answers are better than"


def _pair(timing: Timing) -> str:
    return f"{format_figure(timing.median)} ({format_figure(timing.p95)})"


def _changed_lines(title: str, rows: Sequence[Changed], asked: str, *, is_rate: bool) -> Iterator[str]:
    if not rows:
        return
    yield ""
    yield shorten(title, WIDTH)
    for one in rows[:_SHOWN_ROWS]:
        before, after = format_pair(one.before, one.after)
        if is_rate:
            before, after = (_RIGHT[value] for value in (one.before, one.after))
        yield f"  {shorten_place(one.where, 40)}  {before} -> {after}"
        yield f"    {asked:<5}  {shorten(one.question, WIDTH - 11)}"
        if one.base_answer or one.tuned_answer:
            yield f"    base   {shorten(one.base_answer, WIDTH - 11)}"
            yield f"    tuned  {shorten(one.tuned_answer, WIDTH - 11)}"


def _footnotes(evaluation: Evaluation, report: Report) -> Iterator[str]:
    yield ""
    notes: list[str] = []
    if report.categories:
        notes.append("Every figure of every category is in the CSV and JSON.")
    if evaluation.has_work("answer"):
        notes.append(f"Answers are greedy, of at most {evaluation.answer_tokens} tokens.")
    if any(one.measure.kind == "gap" for one in report.results):
        notes.append("good over bad: the mean log-probability of answers marked good, less that of those marked bad.")
    for name, one in report.texts.items():
        what = f"{one.tokens} tokens, {one.how}, tokenizer {one.tokenizer}"
        notes.append(f"{name}: {what}; comparable with the same of all three only.")
    if any(one.change for one in report.results):
        notes.append("better and worse: the test of a change, corrected for their number (Holm), finds p < 0.05.")
    if evaluation.reason:
        notes.append(f"The tasks were chosen because {evaluation.reason}; --tasks names others.")
    if evaluation.chosen.split == "validation":
        notes.append("There are no test rows: these validation rows chose the weights, so the figures flatter them.")
    if report.failed:
        notes.append(
            f"{counted(len(report.failed), 'row')} could not be measured (first: {report.failed[0].where}: "
            f"{report.failed[0].message})."
        )
    for note in notes:
        yield from wrapped(note)


def _gates(report: Report) -> Iterator[str]:
    for one in report.gates if report.is_whole else ():
        found = "nothing measured" if one.value is None else f"found {format_figure(one.value)}"
        interval = f" ({span(one.figure)})" if one.figure else ""
        yield f"gate {'met' if one.is_met else 'missed'}: {one.gate}: {found}{interval}"


#: Kind of work -> what is being done.
_DOING = {
    works.LOSS: "losses of the rows",
    works.TEXT: "perplexity of the text",
    works.PREFERENCE: "likelihoods of both answers",
    works.LABELS: "likelihoods of the classes",
    works.ANSWER: "answers",
    works.CONSTRAINED: "answers held to the schema",
    works.GENERAL_TEXT: "general text",
    works.GENERAL_ANSWER: "general questions",
    works.SPEED: "speed",
}


def progress_line(work: str, done: int, total: int, seconds: float) -> str:
    """``answers: 24 of 100, 3m 10s left``; how long is said from a twentieth on."""
    left = f", {format_seconds(seconds / done * (total - done))} left" if done and done * 20 >= total else ""
    return f"{_DOING.get(work, work)}: {done} of {total}{left}"
