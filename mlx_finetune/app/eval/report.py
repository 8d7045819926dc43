"""A journal added up: figures over all rows and each category, changes, speed, the rows that changed most, gates."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mlx_finetune.app.eval import measures as works
from mlx_finetune.app.eval.baseline import Baseline, baseline_of
from mlx_finetune.app.eval.classes import Confusion, confusion_of
from mlx_finetune.app.eval.figures import Figure, Result, Rows, change, corrected, figure
from mlx_finetune.app.eval.journal import Journal, Measured
from mlx_finetune.app.eval.knowledge import paragraphs
from mlx_finetune.app.eval.measures import Measure
from mlx_finetune.app.eval.setup import Evaluation
from mlx_finetune.app.eval.subject import Side
from mlx_finetune.app.eval.texts import Part, documents, reading_of
from mlx_finetune.app.eval.verdict import BASE, TUNED, Verdict, judge
from mlx_finetune.errors import Problem
from mlx_finetune.model.likelihoods import window_of
from mlx_finetune.recipe.evaluation import Gate

#: Rows listed for the best gains and the worst losses.
LISTED_ROWS = 5


@dataclass(frozen=True, slots=True)
class Timing:
    """Median, and the value that 95 % of the answers are better than (a slower speed, a longer time)."""

    median: float
    p95: float


@dataclass(frozen=True, slots=True)
class Speed:
    """One side. Of answers given one at a time: tokens a second of prompt and answer, first token, length in tokens."""

    num_answers: int
    prefill: Timing
    decode: Timing
    first_seconds: Timing
    seconds: Timing
    length: Timing


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers of one side to all rows: seconds and tokens of one, tokens a second, and how many were cut short."""

    num_answers: int
    seconds: Timing
    length: Timing
    tokens_per_second: float
    num_cut: int


@dataclass(frozen=True, slots=True)
class TextFacts:
    """What a perplexity is of and ``how`` it was read: a figure says nothing without them. ``window`` and ``stride``
    are None where every text was read by itself.
    """

    tokens: int
    how: str
    window: int | None
    stride: int | None
    tokenizer: str


@dataclass(frozen=True, slots=True)
class Category:
    """Everything measured, over the rows of one category."""

    name: str
    num_rows: int
    results: tuple[Result, ...]
    answers: Mapping[str, Answers]


@dataclass(frozen=True, slots=True)
class Changed:
    """One row whose leading measure changed, with both answers where there are any."""

    where: str
    question: str
    before: float
    after: float
    base_answer: str
    tuned_answer: str


@dataclass(frozen=True, slots=True)
class GateResult:
    """A gate beside what was found; ``value`` is None where nothing could be measured."""

    gate: Gate
    value: float | None
    figure: Figure | None

    @property
    def is_met(self) -> bool:
        """Whether the figure is where it must be."""
        return self.value is not None and self.gate.is_met(self.value)


@dataclass(frozen=True, slots=True)
class Report:
    """All that one evaluation says. ``lead`` is the title of the measure that leads, by which rows gained or lost;
    ``failed`` are rows that could not be measured, with the reason; ``classes`` says of each side which class was taken
    for which, and ``baseline`` what the commonest class would be right for, where rows have classes.
    """

    results: tuple[Result, ...]
    categories: tuple[Category, ...]
    answers: Mapping[str, Answers]
    constrained: Mapping[str, Answers]
    speed: Mapping[str, Speed]
    texts: Mapping[str, TextFacts]
    lead: str
    gains: tuple[Changed, ...]
    losses: tuple[Changed, ...]
    verdict: Verdict
    gates: tuple[GateResult, ...]
    failed: tuple[Problem, ...]
    is_whole: bool
    classes: Mapping[str, Confusion] = field(default_factory=dict[str, Confusion])
    baseline: Baseline | None = None


def report_of(evaluation: Evaluation, journal: Journal, *, is_whole: bool = True) -> Report:
    """The report over what the journal has."""
    found = list(journal.found.values())
    everything = range(len(evaluation.rows))
    results = corrected(_results(evaluation, found, frozenset(everything)))
    names = sorted({row.category for row in evaluation.rows} - {""})
    leading = next((one for one in evaluation.measures if one.is_tested), None)
    lead = next((one.measure for one in results if one.measure == leading and one.change), None)
    gains, losses = _changed(evaluation, journal, lead)
    answers = _answers(evaluation.sides, _of(found, works.ANSWER))
    baseline = _baseline(evaluation, found)
    has_base, unit = evaluation.subject.opened.has_base, evaluation.chosen.unit
    cut = {side: (one.num_cut, one.num_answers) for side, one in answers.items()}
    verdict = judge(results, has_base=has_base, leading=leading, cut=cut, unit=unit, baseline=baseline)
    return Report(
        tuple(results),
        tuple(_category(evaluation, found, name) for name in names),
        answers,
        _answers(evaluation.sides, _of(found, works.CONSTRAINED)),
        _speed(evaluation.sides, _of(found, works.SPEED)),
        _texts(evaluation, found),
        lead.title if lead else "",
        gains,
        losses,
        replace(verdict, sentence=f"{evaluation.chosen.remark} {verdict.sentence}".strip()),
        tuple(_gate(gate, results) for gate in evaluation.gates),
        _failed(evaluation, found),
        is_whole,
        _classes(evaluation, found),
        baseline,
    )


def _classes(evaluation: Evaluation, found: Sequence[Measured]) -> dict[str, Confusion]:
    measure = next((one for one in evaluation.measures if one.kind == "f1"), None)
    if measure is None:
        return {}
    columns = {side.name: rows_of(found, measure, side.name) for side in evaluation.sides}
    shared = _shared(columns)
    return {
        side: confusion_of(evaluation.labels, [values for row, values in rows.items() if row in shared])
        for side, rows in columns.items()
        if rows
    }


def _baseline(evaluation: Evaluation, found: Sequence[Measured]) -> Baseline | None:
    """Of what was tuned, or of a model alone."""
    pair = [one for one in evaluation.measures if one.work == works.LABELS]
    accuracy = next((one for one in pair if one.kind == "right"), None)
    classes = next((one for one in pair if one.kind == "f1"), None)
    if accuracy is None or classes is None:
        return None
    names = [side.name for side in evaluation.sides]
    side = TUNED if TUNED in names else names[0]
    right, named = (rows_of(found, one, side) for one in (accuracy, classes))
    return baseline_of(evaluation.labels, accuracy, right, named, seed=evaluation.subject.seed)


def rows_of(found: Iterable[Measured], measure: Measure, side: str) -> dict[int, tuple[float, ...]]:
    """The values of one measure on one side, by row."""
    return {
        one.row: one.values[measure.name]
        for one in found
        if one.work == measure.work and one.side == side and measure.name in one.values
    }


def _results(evaluation: Evaluation, found: Sequence[Measured], rows: frozenset[int]) -> list[Result]:
    """Every measure over ``rows``; those of the general set belong to no category and are always over all of it."""
    by_side: dict[tuple[str, str], list[Measured]] = {}
    for one in found:
        if one.work in works.OF_GENERAL or one.row in rows:
            by_side.setdefault((one.work, one.side), []).append(one)
    results: list[Result] = []
    for measure in evaluation.measures:
        columns: dict[str, Rows] = {
            side.name: rows_of(by_side.get((measure.work, side.name), ()), measure, side.name)
            for side in evaluation.sides
        }
        result = _result(measure, columns, evaluation.subject.seed)
        if result is not None:
            results.append(result)
    return results


def _result(measure: Measure, columns: Mapping[str, Rows], seed: int) -> Result | None:
    shared = _shared(columns)
    columns = {side: {row: rows[row] for row in rows if row in shared} for side, rows in columns.items()}
    figures = {side: made for side, rows in columns.items() if (made := figure(measure, rows, seed=seed)) is not None}
    if not figures:
        return None
    if BASE not in figures or TUNED not in figures:
        return Result(measure, figures)
    shots = next((side for side in figures if side not in (BASE, TUNED)), None)
    return Result(
        measure,
        figures,
        change(measure, columns[BASE], columns[TUNED], seed=seed),
        change(measure, columns[shots], columns[TUNED], seed=seed) if shots else None,
    )


def _shared(columns: Mapping[str, Rows]) -> frozenset[int]:
    """Rows that every side has that has any: figures side by side are of the same rows."""
    filled = [frozenset(rows) for rows in columns.values() if rows]
    return frozenset.intersection(*filled) if filled else frozenset()


def _category(evaluation: Evaluation, found: Sequence[Measured], name: str) -> Category:
    rows = frozenset(place for place, row in enumerate(evaluation.rows) if row.category == name)
    own = [one for one in found if one.work not in works.OF_GENERAL and one.row in rows]
    answers = _answers(evaluation.sides, _of(own, works.ANSWER))
    return Category(name, len(rows), tuple(_results(evaluation, own, rows)), answers)


def _of(found: Iterable[Measured], work: str) -> list[Measured]:
    return [one for one in found if one.work == work and not one.error]


def _answers(sides: Sequence[Side], found: Sequence[Measured]) -> dict[str, Answers]:
    made: dict[str, Answers] = {}
    for side in sides:
        own = [one for one in found if one.side == side.name]
        if own:
            seconds, tokens = [one.seconds for one in own], [one.answer_tokens for one in own]
            rate = sum(tokens) / max(sum(seconds), 1e-9)
            cut = sum(one.finish in ("length", "context") for one in own)
            made[side.name] = Answers(len(own), _times(seconds), _times(tokens), rate, cut)
    return made


def _speed(sides: Sequence[Side], found: Sequence[Measured]) -> dict[str, Speed]:
    made: dict[str, Speed] = {}
    for side in sides:
        own = [one for one in found if one.side == side.name and one.first_seconds > 0]
        decoded = [one for one in own if one.answer_tokens > 1 and one.seconds > one.first_seconds]
        if own and decoded:
            made[side.name] = Speed(
                len(own),
                _speeds([one.prompt_tokens / one.first_seconds for one in own]),
                _speeds([(one.answer_tokens - 1) / (one.seconds - one.first_seconds) for one in decoded]),
                _times([one.first_seconds for one in own]),
                _times([one.seconds for one in own]),
                _times([one.answer_tokens for one in own]),
            )
    return made


def _texts(evaluation: Evaluation, found: Sequence[Measured]) -> dict[str, TextFacts]:
    """Of each measured perplexity, by its name: scored tokens, window, stride, and the tokenizer that counted them."""
    opened = evaluation.subject.opened
    window = window_of(opened.model, opened.info.context_length)
    made: dict[str, TextFacts] = {}
    for measure in (one for one in evaluation.measures if one.scale == "exp"):
        side = next((one.name for one in evaluation.sides if rows_of(found, measure, one.name)), None)
        if side is None:
            continue
        tokens = sum(count for _, count in rows_of(found, measure, side).values())
        is_general = measure.work == works.GENERAL_TEXT
        parts = [Part(one) for one in paragraphs()] if is_general else [row.part for row in evaluation.rows]
        reading = reading_of(documents(opened.tokenizer, parts), window)
        size = (reading.window, reading.stride) if reading.num_long else (None, None)
        how = reading.described("paragraph" if is_general else "row")
        made[measure.name] = TextFacts(int(tokens), how, *size, opened.tokenizer.settings_hash[:12])
    return made


def _times(values: Sequence[float]) -> Timing:
    return Timing(float(np.median(values)), float(np.quantile(values, 0.95)))


def _speeds(values: Sequence[float]) -> Timing:
    return Timing(float(np.median(values)), float(np.quantile(values, 0.05)))


def _changed(
    evaluation: Evaluation, journal: Journal, lead: Measure | None
) -> tuple[tuple[Changed, ...], tuple[Changed, ...]]:
    """Rows that gained and lost most by the measure that leads; among equal ones, most by their loss."""
    if lead is None or lead.work in works.OF_GENERAL:
        return (), ()
    found = list(journal.found.values())
    before, after = _per_row(found, lead, BASE), _per_row(found, lead, TUNED)
    loss = next((one for one in evaluation.measures if one.name == "loss"), None)
    old, new = (_per_row(found, loss, side) if loss else {} for side in (BASE, TUNED))
    sign = 1 if lead.is_higher_better else -1
    ranked = sorted(
        (sign * (after[row] - before[row]), old.get(row, 0.0) - new.get(row, 0.0), row)
        for row in before
        if row in after and after[row] != before[row]
    )
    best = [row for gain, _, row in reversed(ranked) if gain > 0][:LISTED_ROWS]
    worst = [row for gain, _, row in ranked if gain < 0][:LISTED_ROWS]
    texts = journal.answers(frozenset([*best, *worst]), works.ANSWER)

    def show(row: int) -> Changed:
        one = evaluation.rows[row]
        base, tuned = texts.get((BASE, row), ""), texts.get((TUNED, row), "")
        return Changed(one.where, one.question, before[row], after[row], base, tuned)

    return tuple(map(show, best)), tuple(map(show, worst))


def _per_row(found: Sequence[Measured], measure: Measure, side: str) -> dict[int, float]:
    """One number a row: the score, or the mean of a ratio."""
    rows = rows_of(found, measure, side)
    return {row: value[0] / value[1] if measure.kind == "ratio" else value[0] for row, value in rows.items()}


def _gate(gate: Gate, results: Sequence[Result]) -> GateResult:
    """A gate is about tuned, or about a model alone, without examples in its prompt."""
    result = next((one for one in results if one.measure.name == gate.measure), None)
    if result is None:
        return GateResult(gate, None, None)
    side = TUNED if TUNED in result.figures else next(iter(result.figures))
    found = result.figures[side]
    return GateResult(gate, found.value, found)


def _failed(evaluation: Evaluation, found: Sequence[Measured]) -> tuple[Problem, ...]:
    """One problem for each row that failed at something, in order."""
    seen: dict[tuple[str, str], Problem] = {}
    for one in sorted(found, key=lambda one: one.row):
        if one.error:
            is_own = one.work not in works.OF_GENERAL and one.row < len(evaluation.rows)
            where = evaluation.rows[one.row].where if is_own else f"general set, {one.row + 1}"
            seen.setdefault((where, one.error), Problem(where, f"{one.error} ({one.work}, {one.side})"))
    return tuple(seen.values())
