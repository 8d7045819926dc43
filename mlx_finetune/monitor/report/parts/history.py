"""What happened on the way: checkpoints, restarts, pauses, warnings."""

from collections.abc import Iterator, Sequence

from mlx_finetune.events import Notice
from mlx_finetune.monitor.report.facts import ReportFacts, Wait
from mlx_finetune.monitor.report.markup import Child, Html, code, details, foreign, section, table, tag
from mlx_finetune.recipe.asking import talk_command
from mlx_finetune.units import counted, format_bytes, format_seconds

_MOST = 100


def history(facts: ReportFacts) -> Html:
    """The section; a quiet run has one sentence."""
    summary = facts.summary
    restarts = [tag("li", foreign(one.sentence, 600)) for one in summary.restarts[-_MOST:]]
    return section(
        "history",
        "Checkpoints and incidents",
        _checkpoints(facts),
        tag("h3", "Restarts and pauses"),
        tag("p", "None: it ran through.") if not restarts and not facts.waits else None,
        tag("ul", *restarts) if restarts else None,
        tag("p", "The weights equal those of a run without a restart up to rounding, not bit for bit.")
        if not all(one.is_bitwise for one in summary.restarts)
        else None,
        *_waits(facts.waits),
        *_notices(summary.notices),
    )


def _checkpoints(facts: ReportFacts) -> Html:
    """Those that are there now: a run removes the older ones."""
    if not facts.run.checkpoints:
        return tag("p", "There is no checkpoint.")
    losses = {one.step: one.loss for one in facts.summary.evaluations}
    rows: list[list[Child]] = []
    for name, size in facts.run.checkpoints[-_MOST:]:
        loss = losses.get(int(name.rpartition("-")[2]))
        rows.append([code(name), format_bytes(size), f"{loss:.4f}" if loss is not None else ""])
    task = facts.summary.started.task if facts.summary.started else ""
    hint = tag(
        "p",
        "Try any of them: ",
        code(talk_command(task, f"{facts.shell_name}/{facts.run.checkpoints[-1][0]}")),
    )
    return Html(table(("checkpoint", "size", "validation loss"), rows, class_="figures").text + hint.text)


def _waits(waits: Sequence[Wait]) -> Iterator[Html]:
    if not waits:
        return
    total = sum(one.seconds or 0.0 for one in waits)
    rows: list[list[Child]] = [
        [f"{one.step:,}", foreign(one.reason), format_seconds(one.seconds) if one.seconds is not None else "to the end"]
        for one in waits[-_MOST:]
    ]
    yield tag("p", f"{format_seconds(total)} without training:")
    yield table(("after step", "why", "for"), rows)


def _notices(notices: Sequence[Notice]) -> Iterator[Html]:
    for level, title in (("warning", "Warnings"), ("info", "Notes")):
        found = [one for one in notices if (one.level == "warning") == (level == "warning")]
        if not found:
            continue
        items = [tag("li", foreign(one.message, 600), *_hint(one)) for one in found[:_MOST]]
        more = tag("p", f"and {len(found) - _MOST:,} more in events.jsonl") if len(found) > _MOST else None
        if level == "warning":
            yield tag("h3", title)
            yield tag("ul", *items, class_="warnings")
            if more is not None:
                yield more
        else:
            yield details(counted(len(found), "note"), tag("ul", *items), more)


def _hint(notice: Notice) -> list[Child]:
    return [" ", tag("span", foreign(notice.hint, 300), class_="same")] if notice.hint else []
