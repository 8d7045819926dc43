"""The panes of what happened: warnings, restarts, pauses and ends, newest first; and the checkpoints."""

import time
from collections.abc import Iterator

from rich.text import Text

from mlx_finetune.events import (
    CheckpointSaved,
    Evaluated,
    Notice,
    Paused,
    Record,
    Restarted,
    RunFailed,
    RunFinished,
    RunStopped,
    TimeJump,
)
from mlx_finetune.monitor.plain import lines_for, number
from mlx_finetune.monitor.summary import Summary
from mlx_finetune.monitor.tui.blocks import Lines, fit, wrap
from mlx_finetune.monitor.tui.watched import Watched
from mlx_finetune.monitor.tui.words import ago
from mlx_finetune.units import format_bytes

_WARNING, _ERROR = "yellow", "red"


def events_lines(watched: Watched, *, width: int) -> Lines:
    """Everything but steps, evaluations and checkpoints, which have panes of their own."""
    lines: Lines = []
    for record in reversed(watched.records):
        lines += event_lines(record, watched.summary, width=width)
    return lines or [Text(" nothing has happened so far", "dim")]


def event_lines(record: Record, summary: Summary, *, width: int) -> Lines:
    """One event with the time of day before it; empty for evaluations and checkpoints."""
    if isinstance(record.event, Evaluated | CheckpointSaved):
        return []
    is_wide = width >= 60
    moment = time.strftime("%H:%M:%S" if is_wide else "%H:%M", time.localtime(record.time))
    clock = f" {moment} "
    indent = " " * (len(clock) if is_wide else 2)
    lines: Lines = []
    for sentence, style in _sentences(record, summary):
        head = indent if lines else clock
        wrapped = wrap(sentence, width - len(clock), style=style)
        first = [Text.assemble((head, "dim"), wrapped[0])]
        lines += [*first, *(Text.assemble(indent, line) for line in wrapped[1:])]
    return lines


def _sentences(record: Record, summary: Summary) -> Iterator[tuple[str, str]]:
    """What an event says, sentence by sentence, each with its colour."""
    match record.event:
        case RunFinished(step=step, reason=reason):
            yield f"finished at step {step} ({reason})", "green"
        case RunStopped(step=step):
            yield f"stopped after step {step}; everything up to there is saved", _WARNING
        case RunFailed(message=message, hint=hint):
            yield f"failed: {message}", _ERROR
            if hint:
                yield f"hint: {hint}", "dim"
        case Notice(level=level) as notice:
            first, *rest = lines_for(record, summary)
            yield first, _WARNING if level == "warning" else ""
            yield from ((line, "dim") for line in rest if notice.hint)
        case Restarted() | Paused() | TimeJump():
            yield from ((line, _WARNING) for line in lines_for(record, summary))
        case _:
            yield from ((line, "") for line in lines_for(record, summary))


def last_warning(watched: Watched, *, width: int) -> Lines:
    """The newest warning, restart, pause or failure in one line; nothing for a quiet run."""
    for record in reversed(watched.records):
        event = record.event
        is_over = isinstance(event, Paused) and watched.summary.paused is None
        is_warning = isinstance(event, Notice) and event.level == "warning"
        if is_warning or (isinstance(event, Restarted | Paused | RunFailed) and not is_over):
            return [fit(event_lines(record, watched.summary, width=10_000)[0], width)]
    return []


def checkpoints_lines(watched: Watched, now: float, *, width: int) -> Lines:
    """The checkpoints in the folder by falling step: validation loss there, size, when it was saved, best and last."""
    saved = {one.event.step: one for one in watched.records if isinstance(one.event, CheckpointSaved)}
    steps = sorted(watched.checkpoints, reverse=True)
    if not steps:
        said = "no checkpoint so far; c saves one now" if watched.is_at_work else "no checkpoint was saved"
        return [Text(f" {said}", "dim")]
    losses = {one.step: one.loss for one in watched.summary.evaluations}
    best = watched.summary.best_evaluation
    rows = [("step", "validation", "size", "saved", "")]
    for step in steps:
        record = saved.get(step)
        event = record.event if record is not None else None
        size = format_bytes(event.num_bytes) if isinstance(event, CheckpointSaved) else ""
        marks = ["last"] * (step == steps[0]) + ["\u2605 best"] * (best is not None and best.step == step)
        loss = number(losses[step], 4) if step in losses else ""
        rows.append((f"{step:,}", loss, size, ago(record.time, now) if record else "", ", ".join(marks)))
    return _table(rows, width)


def _table(rows: list[tuple[str, ...]], width: int) -> Lines:
    """A heading and rows, figures to the right; the last columns are left out where not all fit."""
    if width < 56:
        rows = [(row[0], row[1], row[4], row[2], row[3]) for row in rows]
    while sum(max(len(row[column]) for row in rows) + 2 for column in range(len(rows[0]))) > width:
        rows = [row[:-1] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines: Lines = []
    for place, row in enumerate(rows):
        line = Text(" ", "dim" if place == 0 else "")
        for cell, cells in zip(row, widths, strict=True):
            is_mark = "best" in cell or cell == "last"
            line.append(f"{cell:>{cells}}  ", "green" if is_mark else "")
        lines.append(fit(line, width))
    return lines
