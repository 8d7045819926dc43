"""The figures of all stages side by side: as lines, as Markdown, as plain values. A stage a row, a measure a column.

Figures are ranked only over the same rows, and what is counted per token (loss, perplexity) only where all stages have
one tokenizer; bits per byte can always be compared.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from mlx_finetune.monitor.pipeline.facts import Picks, PipelineFacts, StageFacts
from mlx_finetune.monitor.plain import one_line
from mlx_finetune.monitor.report.evaluated import Evaluation, Figure
from mlx_finetune.scoring.picks import pair_title, way_title
from mlx_finetune.units import counted, format_bytes, format_count, format_seconds

#: Measures of text, of which what is longer than a context is read in windows.
_OF_TEXT = frozenset({"perplexity", "bits_per_byte"})
#: Measures of one token, which is more or less text under another tokenizer.
_PER_TOKEN = frozenset({"loss", "perplexity", "general_perplexity"})
_SIDES = ("tuned", "model")
HEAD = ("stage", "what", "status", "steps", "validation loss", "time", "size")


@dataclass(frozen=True, slots=True)
class Column:
    """One measure of one evaluation: stage -> figure. ``best`` are the stages that lead, none where nobody may."""

    title: str
    name: str
    is_higher_better: bool
    figures: Mapping[str, Figure]
    best: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EvaluationTable:
    """One evaluation over the stages that have it, each with its mark; ``note`` says why something is not ranked."""

    name: str
    rows: str
    stages: Mapping[str, str]
    columns: tuple[Column, ...]
    note: str


def evaluation_tables(facts: PipelineFacts) -> Sequence[EvaluationTable]:
    """One table for each evaluation of the pipeline, in the order in which they were first measured."""
    names = dict.fromkeys(one.name for one in facts.record.evaluations)
    found = ((name, [stage for stage in facts.stages if name in stage.evaluations]) for name in names)
    return [_table(name, stages, facts) for name, stages in found if stages]


def _table(name: str, stages: Sequence[StageFacts], facts: PipelineFacts) -> EvaluationTable:
    evaluations = {stage.record.name: stage.evaluations[name] for stage in stages}
    places = {one.identity.get("rows_sha256") for one in evaluations.values()}
    tokenizers = {stage.vocabulary or stage.evaluations[name].identity.get("tokenizer_sha256") for stage in stages}
    windows = {_window(one) for one in evaluations.values()}
    shown = {measured.title: measured for one in evaluations.values() for measured in one.measures if measured.is_shown}
    older = [stage for stage in stages if stage.mark]
    taught = [stage for stage, one in evaluations.items() if one.data.is_taught]
    is_one_definition = len({_definition(stage, name, facts) for stage in stages}) == 1
    columns: list[Column] = []
    for title, measured in shown.items():
        figures = {stage: figure for stage, one in evaluations.items() if (figure := _figure(one, title)) is not None}
        is_ranked = (
            not older
            and not taught
            and is_one_definition
            and len(places) == 1
            and (len(tokenizers) == 1 or measured.name not in _PER_TOKEN)
        )
        is_ranked = is_ranked and (len(windows) == 1 or measured.name not in _OF_TEXT)
        best = _best(figures, is_higher_better=measured.is_higher_better) if is_ranked else ()
        columns.append(Column(title, measured.name, measured.is_higher_better, figures, best))
    note = "not ranked: the stages were measured on different rows" if len(places) > 1 else ""
    if len(tokenizers) > 1 and any(column.name in _PER_TOKEN for column in columns):
        note = "what is counted per token is not ranked: the tokenizers differ; compare bits per byte"
    if len(windows) > 1 and any(column.name in _OF_TEXT for column in columns):
        note = "what is of text is not ranked: the models do not read it in the same windows"
    if not is_one_definition:
        note = "not ranked: the evaluation was changed between the stages"
    if taught and len(stages) > 1:
        note = f"not ranked: more than one in twenty of these rows taught {', '.join(taught)}"
    if older and len(stages) > 1:
        note = f"not ranked: {'; '.join(f'{stage.record.name} is {stage.mark[2:]}' for stage in older)}"
    first = next(iter(evaluations.values())).data
    rows = f"{counted(first.num_rows, 'row')} of {first.source}" if len(places) == 1 else "different rows"
    return EvaluationTable(name, rows, {stage.record.name: stage.mark for stage in stages}, tuple(columns), note)


def _definition(stage: StageFacts, name: str, facts: PipelineFacts) -> object:
    """What was measured in which way, but not of what."""
    record = facts.record.evaluation(stage.record.name, name)
    found = record.fingerprint if record is not None else {}
    return tuple(sorted((key, value) for key, value in found.items() if key != "result" and value != "null"))


def _window(evaluation: Evaluation) -> object:
    """Window and stride in which the text was read, None each where every row was by itself; None without a text."""
    text = evaluation.texts.get("perplexity")
    return None if text is None else (text.get("window"), text.get("stride"))


def _figure(evaluation: Evaluation, title: str) -> Figure | None:
    measured = next((one for one in evaluation.measures if one.title == title), None)
    if measured is None:
        return None
    return next((measured.sides[side] for side in _SIDES if side in measured.sides), None)


def _best(figures: Mapping[str, Figure], *, is_higher_better: bool) -> tuple[str, ...]:
    """The stages with the best value; nobody leads alone."""
    if len(figures) < 2:
        return ()
    values = [figure.value for figure in figures.values()]
    top = max(values) if is_higher_better else min(values)
    best = tuple(stage for stage, figure in figures.items() if figure.value == top)
    return best if len(best) < len(figures) else ()


def figure_text(figure: Figure | None) -> str:
    """``2.345 (2.300 to 2.391)``, a share as ``62.0% (55.1% to 68.4%)``; "" where there is none."""
    if figure is None:
        return ""
    is_share = figure.num_right is not None
    ends = (figure.low, figure.high)
    interval = "" if None in ends else f" ({_number(figure.low, is_share)} to {_number(figure.high, is_share)})"
    return f"{_number(figure.value, is_share)}{interval}"


def _number(value: float | None, is_share: bool) -> str:
    if value is None:
        return ""
    if is_share:
        return f"{value:.1%}"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"


def earlier_texts(facts: PipelineFacts) -> Sequence[str]:
    """A sentence for each stage that is another now than others were made from, and what makes those anew."""
    found: dict[str, list[str]] = {}
    for stage in facts.stages:
        if stage.earlier:
            found.setdefault(stage.earlier, []).append(stage.record.name)
    says = [f"{one.record.name}: trained further since the pipeline has run it" for one in facts.stages if one.went_on]
    says += [f"{', '.join(names)}: made from an earlier {one}, which is there no more" for one, names in found.items()]
    return [*says, f"to make what follows anew: {facts.command('--force')}"] if says else []


def stage_rows(facts: PipelineFacts) -> Sequence[Sequence[str]]:
    """One row for each stage under ``HEAD``."""
    return [_stage_row(stage) for stage in facts.stages]


def _stage_row(stage: StageFacts) -> Sequence[str]:
    record, run = stage.record, stage.run
    steps, losses, size = "", "", ""
    what = one_line(record.what, 60)
    if run is not None:
        summary = run.summary
        total = summary.total_steps
        steps = f"{summary.steps_done}/{total}" if total else ""
        first, last = run.run.first_loss, run.run.result_loss
        losses = f"{first:.3f} -> {last:.3f}" if first is not None and last is not None else ""
        size = format_bytes(run.run.num_bytes)
        if summary.started is not None:
            what = f"{summary.started.task}, {format_count(summary.started.trainable_parameters)} trained"
    is_skipped = record.was_skipped and stage.status == "finished"
    status = f"{stage.status}{' (skipped)' if is_skipped else ''}{stage.mark}"
    return (record.name, what, status, steps, losses, format_seconds(record.seconds) if record.seconds else "", size)


def all_picks(facts: PipelineFacts) -> Sequence[tuple[str, Picks]]:
    """Every comparison of ways to pick an answer, with the stage that made it and its mark."""
    return [(f"{stage.record.name}{stage.mark}", picks) for stage in facts.stages for picks in stage.picks]


def picks_title(picks: Picks) -> str:
    """What was picked from."""
    return f"{counted(picks.num_problems, 'problem')} of {one_line(picks.samples, 80)}, {picks.k} answers each"


def pick_rows(picks: Picks) -> Sequence[Sequence[str]]:
    """A row for each way: its name and the share that is right."""
    return [
        (one_line(way_title(way.name, picks.scorer), 40), figure_text(way.figure(picks.num_problems)))
        for way in picks.ways
    ]


def difference_texts(picks: Picks) -> Sequence[str]:
    """``verifier - random: +12.3 points (+8.1 to +16.4)`` for each pair that was compared."""
    return [
        f"{one_line(pair_title(one.first, one.second, picks.scorer), 80)}: {100 * one.value:+.1f} points "
        f"({100 * one.low:+.1f} to {100 * one.high:+.1f})"
        for one in picks.compared
    ]


def table_lines(facts: PipelineFacts) -> Iterator[str]:
    """Everything as lines for a terminal."""
    yield from _aligned([tuple(word.upper() for word in HEAD), *stage_rows(facts)])
    yield from earlier_texts(facts)
    for one in evaluation_tables(facts):
        yield ""
        yield f"{one.name}: {one_line(one.rows, 120)}"
        yield from _aligned([("", *(one_line(column.title, 40) for column in one.columns)), *_cells(one, "*")])
        if one.note:
            yield one.note
    for stage, picks in all_picks(facts):
        yield ""
        yield f"{stage}: {picks_title(picks)}"
        yield from _aligned([("", "right"), *pick_rows(picks)])
        yield from (f"{one}" for one in difference_texts(picks))
    if any(column.best for one in evaluation_tables(facts) for column in one.columns):
        yield ""
        yield "* best of its column; in brackets the 95 % interval"


def markdown(facts: PipelineFacts) -> str:
    """The same as Markdown."""
    lines = [f"# {_plain(facts.name)}", "", *_grid(HEAD, stage_rows(facts))]
    if earlier := earlier_texts(facts):
        lines += ["", *(f"{_plain(one)}  " for one in earlier)]
    lines += ["", f"{format_seconds(facts.seconds)} in all, evaluations included."]
    for one in evaluation_tables(facts):
        lines += ["", f"## {_plain(one.name)}", "", f"{_plain(one.rows)}; in brackets the 95 % interval.", ""]
        lines += _grid(("stage", *(column.title for column in one.columns)), _cells(one, "**"))
        lines += ["", f"{one.note[0].upper()}{one.note[1:]}."] if one.note else []
    for stage, picks in all_picks(facts):
        lines += ["", f"## {_plain(stage)}", "", f"{_plain(picks_title(picks))}; in brackets the 95 % interval.", ""]
        lines += _grid(("one of them, picked", "right"), pick_rows(picks))
        lines += ["", *(f"{_plain(one)}  " for one in difference_texts(picks))]
    return "\n".join(lines) + "\n"


def table_json(facts: PipelineFacts) -> dict[str, object]:
    """The same as plain values."""
    return {
        "name": facts.name,
        "folder": str(facts.folder),
        "is_running": facts.is_running,
        "seconds": round(facts.seconds, 1),
        "stages": [_stage_json(stage) for stage in facts.stages],
        "evaluations": [
            {
                "name": one.name,
                "rows": one.rows,
                "note": one.note,
                "measures": [
                    {
                        "title": column.title,
                        "name": column.name,
                        "is_higher_better": column.is_higher_better,
                        "best": list(column.best),
                        "stages": {
                            stage: {
                                "value": figure.value,
                                "low": figure.low,
                                "high": figure.high,
                                "rows": figure.num_rows,
                            }
                            for stage, figure in column.figures.items()
                        },
                    }
                    for column in one.columns
                ],
            }
            for one in evaluation_tables(facts)
        ],
        "picks": [{"stage": stage.record.name, **asdict(picks)} for stage in facts.stages for picks in stage.picks],
    }


def _stage_json(stage: StageFacts) -> dict[str, object]:
    record, run = stage.record, stage.run
    return {
        "name": record.name,
        "kind": record.kind,
        "what": record.what,
        "needs": list(record.needs),
        "status": stage.status,
        "was_skipped": record.was_skipped,
        "of_earlier": stage.earlier or None,
        "went_on": stage.went_on,
        "seconds": round(record.seconds, 1),
        "message": record.message,
        "folder": str(stage.folder),
        "step": run.summary.steps_done if run else None,
        "total_steps": run.summary.total_steps if run else None,
        "first_loss": run.run.first_loss if run else None,
        "result_loss": run.run.result_loss if run else None,
    }


def _cells(one: EvaluationTable, mark: str) -> list[Sequence[str]]:
    """A row for each stage; ``mark`` is put behind the best of a column, or around it where it is ``**``."""
    rows: list[Sequence[str]] = []
    for stage, mark_of_stage in one.stages.items():
        cells = [f"{stage}{mark_of_stage}"]
        for column in one.columns:
            text = figure_text(column.figures.get(stage))
            is_best = stage in column.best
            cells.append(f"**{text}**" if is_best and mark == "**" else f"{text} {mark}" if is_best else text)
        rows.append(cells)
    return rows


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(_plain(cell) for cell in row)} |" for row in (head, *rows)]
    return [lines[0], f"|{'---|' * len(head)}", *lines[1:]]


def _plain(text: str) -> str:
    """Text of others in a cell of Markdown: on one line, without what would end the cell or begin an element."""
    return one_line(text, 200).replace("|", "&#124;").replace("<", "&lt;")


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
