"""The report of a pipeline: one page about all stages, with a link to the report of each; and the table as Markdown.

A page that somebody has edited is left as it is, as that of a run.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlx_finetune import durable
from mlx_finetune.monitor.pipeline.facts import Picks, PipelineFacts, StageFacts
from mlx_finetune.monitor.pipeline.table import (
    HEAD,
    Column,
    EvaluationTable,
    all_picks,
    difference_texts,
    earlier_texts,
    evaluation_tables,
    figure_text,
    markdown,
    pick_rows,
    picks_title,
    stage_rows,
)
from mlx_finetune.monitor.report.chart import bar
from mlx_finetune.monitor.report.evaluated import Figure
from mlx_finetune.monitor.report.markup import Child, Html, code, details, foreign, joined, section, table, tag
from mlx_finetune.monitor.report.page import document
from mlx_finetune.monitor.report.write import checked_place, free_place, is_ours, sealed
from mlx_finetune.rundir import PIPELINE_REPORT, REPORT, RunDir
from mlx_finetune.units import counted, format_count, format_seconds

_FOOTER = "Made by mlxft from the files of the pipeline. It holds everything it shows; nothing is sent anywhere."
_HOW_TO_READ = (
    "The figures of one table are of the same rows, unless it says otherwise. 95 times of 100 an interval holds the "
    "true value; where the intervals of two stages overlap widely, the rows do not tell them apart. The best of a "
    "column is bold."
)


def write_page(facts: PipelineFacts, out: Path | None = None) -> Path:
    """Make the page and say where it is: ``out``, else report.html, or report-2.html beside an edited one.

    Raises ``RunError`` where ``out`` holds something else, ``OSError`` for what the disk refuses.
    """
    owner = _owner(facts)
    page = free_place(RunDir(facts.folder), owner) if out is None else checked_place(out, owner)
    durable.replace_file(page, [sealed(render(facts), owner)])
    return page


def _owner(facts: PipelineFacts) -> str:
    """What stays the same of a pipeline, whichever file it goes on with."""
    return hashlib.sha256(facts.record.created.encode("utf-8", "replace")).hexdigest()[:16]


def write_reports(facts: PipelineFacts) -> tuple[Path, Path | None]:
    """The page, and report.md, None where somebody has edited that. Raises ``OSError`` for what the disk refuses."""
    page, owner = write_page(facts), _owner(facts)
    text = facts.folder / PIPELINE_REPORT
    if text.exists() and not is_ours(text, owner):
        return page, None
    durable.replace_file(text, [sealed(markdown(facts), owner)])
    return page, text


def render(facts: PipelineFacts) -> str:
    """The page as text, the same for the same pipeline."""
    tables = evaluation_tables(facts)
    parts = [("stages", "stages", _stages(facts))]
    picks = all_picks(facts)
    if picks:
        parts.append(("picks", "picking", _picks(picks)))
    if tables:
        parts.append(("figures", "figures", _figures(tables)))
    if any(stage.run is not None and stage.run.card is not None for stage in facts.stages):
        parts.append(("data", "data", _data(facts)))
    parts.append(("reproduce", "repeat it", _again(facts)))
    return document(facts.name, _headline(facts), parts, _FOOTER)


def _headline(facts: PipelineFacts) -> Html:
    done = sum(stage.status == "finished" for stage in facts.stages)
    word = "finished" if done == len(facts.stages) else "running" if facts.is_running else "stopped"
    skipped = [stage.record.name for stage in facts.stages if stage.record.was_skipped]
    lead: list[Child] = [
        f"{done} of {counted(len(facts.stages), 'stage')} done, {format_seconds(facts.seconds)} of work in all."
    ]
    if skipped:
        lead.append(f" Done before, and skipped by the last start: {', '.join(skipped)}.")
    return tag(
        "header",
        tag("p", "Pipeline report", tag("span", word, class_=f"badge {word}"), class_="kicker"),
        tag("h1", foreign(facts.name, 120)),
        tag("p", *lead, class_="lead"),
        id="top",
    )


def _stages(facts: PipelineFacts) -> Html:
    rows: list[list[Child]] = []
    for stage, cells in zip(facts.stages, stage_rows(facts), strict=True):
        takes = ", ".join(stage.record.needs)
        rows.append([tag("b", foreign(cells[0], 60)), _shown(takes), *(_shown(one) for one in cells[1:])])
        rows[-1].append(_link(stage))
    failed = [stage for stage in facts.stages if stage.record.message and stage.status in ("failed", "stopped")]
    return section(
        "stages",
        "The stages",
        table((HEAD[0], "takes", *HEAD[1:], ""), rows, class_="figures stages"),
        *(tag("p", foreign(one, 600)) for one in earlier_texts(facts)),
        *(tag("p", tag("b", stage.record.name), ": ", foreign(stage.record.message, 600)) for stage in failed),
    )


def _shown(text: str) -> Child:
    return foreign(text, 120) if text else ""


def _link(stage: StageFacts) -> Html | None:
    """To the page of the run, which lies below this one."""
    if not (stage.folder / REPORT).is_file():
        return None
    return tag("a", "report", href=f"{stage.record.name}/{REPORT}")


def _figures(tables: Sequence[EvaluationTable]) -> Html:
    return section(
        "figures",
        "Across the stages",
        tag("p", _HOW_TO_READ, class_="hint"),
        *(part for one in tables for part in _figure_parts(one)),
    )


def _figure_parts(one: EvaluationTable) -> Iterator[Html]:
    yield tag("h3", foreign(one.name, 60), " ", tag("span", foreign(one.rows, 200), class_="same"))
    if one.note:
        yield tag("p", one.note[0].upper() + one.note[1:] + ".")
    rows: list[list[Child]] = [
        [foreign(f"{stage}{mark}", 110), *(_cell(column, stage) for column in one.columns)]
        for stage, mark in one.stages.items()
    ]
    yield table(("stage", *(foreign(column.title, 80) for column in one.columns)), rows, class_="figures across")


def _cell(column: Column, stage: str) -> Html:
    """The figure, and below it for a share a bar."""
    figure = column.figures.get(stage)
    text = figure_text(figure)
    return joined([tag("b", text) if stage in column.best else text, _bar(figure)])


def _bar(figure: Figure | None) -> Html | None:
    return bar(max(0.0, min(1.0, figure.value))) if figure is not None and figure.num_right is not None else None


def _picks(found: Sequence[tuple[str, Picks]]) -> Html:
    """Ways to pick one of several answers, side by side."""
    made: list[Html] = []
    for stage, picks in found:
        made.append(tag("h3", foreign(stage, 110), " ", tag("span", foreign(picks_title(picks), 200), class_="same")))
        rows: list[list[Child]] = [
            [name, text, bar(max(0.0, min(1.0, way.value)))]
            for (name, text), way in zip(pick_rows(picks), picks.ways, strict=True)
        ]
        made.append(table(("", "right", ""), rows, class_="figures"))
        made += [tag("p", one) for one in difference_texts(picks)]
    return section("picks", "Picking one of several answers", *made)


def _data(facts: PipelineFacts) -> Html:
    """What each training learned from."""
    rows: list[list[Child]] = []
    for stage in facts.stages:
        card = stage.run.card if stage.run is not None else None
        for name, split in card.splits.items() if card is not None else ():
            if not split.num_rows:
                continue
            of_tokens = f"{format_count(split.num_targets)} ({split.target_share:.0%})"
            share = "" if stage.run is None or stage.run.summary.learned.of_a_row else of_tokens
            lost = sum(one.count for one in split.outcomes.values())
            cells = (f"{split.num_rows:,}", format_count(split.lengths.total), share, f"{split.lengths.longest:,}")
            rows.append([foreign(stage.record.name, 60), name, *cells, f"{lost:,}" if lost else ""])
    head = ("stage", "split", "rows", "tokens", "learned from", "longest", "cut, split or left out")
    return section("data", "The data", table(head, rows, class_="figures"))


def _again(facts: PipelineFacts) -> Html:
    record = facts.record
    rows: list[list[Child]] = [["file", code(record.file, 300)], ["begun", foreign(record.created, 40)]]
    prints: list[Html] = []
    for stage in record.stages:
        parts: list[list[Child]] = [[foreign(key, 60), code(value, 200)] for key, value in stage.fingerprint.items()]
        if parts:
            what = tag("span", foreign(stage.name, 60), ": what its result depends on")
            prints.append(details(what, table(("what", "value"), parts, class_="settings")))
    return section(
        "reproduce",
        "How to make it again",
        tag("pre", tag("bdi", facts.command())),
        tag("p", "Stages that are done are skipped as long as nothing that they depend on has changed."),
        table(("", ""), rows, class_="settings"),
        *prints,
    )
