"""The live view of a run: a few lines that stay at the bottom, everything worth keeping scrolls past above them."""

import time
from typing import TextIO

from rich.console import Console
from rich.text import Text

from mlx_finetune.events import (
    Continued,
    Evaluated,
    Notice,
    Paused,
    Phase,
    Record,
    Restarted,
    RunStarted,
    Sampled,
    TimeJump,
)
from mlx_finetune.monitor.braille import draw_curve, thin
from mlx_finetune.monitor.plain import amount_done, eta_text, lines_for, number, trend_words
from mlx_finetune.monitor.region import Region
from mlx_finetune.monitor.summary import Outcome, Summary
from mlx_finetune.units import format_bytes, format_rate, format_seconds

FRAME_SECONDS = 0.2
CURVE_LINES = 5
CURVE_WIDTH = 72
BAR_WIDTH = 30
_FULL, _PART, _LEFT = "\u2501", "\u2578", "\u2500"
_BEST = "\u2605"


class LiveView:
    """Draws ``summary`` to a terminal, a few times a second and when something happens."""

    def __init__(self, stream: TextIO, summary: Summary) -> None:
        self._summary = summary
        self._region = Region(stream)
        self._console = Console(file=stream, force_terminal=True, highlight=False, markup=False, emoji=False)
        self._above: list[Text] = []
        self._said: set[str] = set()
        self._drawn = 0.0

    def show(self, record: Record) -> None:
        """Fold the record; what should be kept is printed above with the next frame."""
        before, began = self._summary.phase, self._summary.phase_time
        was_preparing = self._summary.is_preparing
        self._summary.add(record)
        event = record.event
        now = self._summary.phase
        ended = before is not None and (now is None or _title(now) != _title(before))
        if before is not None and ended and was_preparing and not isinstance(event, Outcome):
            self._above.append(_phase_done(before, record.time - began))
        if isinstance(event, RunStarted | Evaluated | Sampled | Notice | Paused | Continued | TimeJump):
            self._above += [_coloured(line) for line in lines_for(record, self._summary)]
        if isinstance(event, Restarted) and event.sentence not in self._said:
            self.say(event.sentence)

    def tick(self, now: float) -> None:
        """Draw a frame where the last one is old enough."""
        if self._above or now - self._drawn >= FRAME_SECONDS or now < self._drawn:
            self._draw(now)

    def say(self, message: str) -> None:
        """A sentence that stays above; a restart is told by the supervisor first and by the journal later."""
        self._said.add(message)
        self._above.append(Text(message, "bold"))

    def close(self) -> None:
        """A last frame where there was a run to show, and the terminal as it was."""
        self._draw(time.time())
        if self._summary.started is None:
            self._region.draw([], [])
        self._region.close()

    def _draw(self, now: float) -> None:
        columns, lines = self._region.size()
        width = max(20, columns - 1)
        texts = frame(self._summary, now, width=width, height=max(1, lines - 2))
        for text in texts:
            text.truncate(width, overflow="ellipsis")
        above = "".join(self._render(text, columns) for text in self._above)
        self._above.clear()
        rendered = [self._render(text, columns).rstrip("\n") for text in texts]
        self._region.draw(rendered, [text.cell_len for text in texts], above=above)
        self._drawn = now

    def _render(self, text: Text, columns: int) -> str:
        with self._console.capture() as capture:
            self._console.print(text, width=columns, soft_wrap=False)
        return capture.get()


def frame(summary: Summary, now: float, *, width: int, height: int) -> list[Text]:
    """The lines at the bottom: the phase before step 1, then the numbers and the loss curve; at most ``height``."""
    if summary.step is None and summary.paused is not None:
        return [Text(f" paused: {summary.paused.reason}", "yellow")][:height]
    if summary.started is None or summary.is_preparing or (summary.step is None and summary.phase is not None):
        return [_phase_line(summary, now, width)][:height]
    if summary.step is None:
        waits_for_base = not summary.evaluations and summary.started.first_step == 0 and summary.started.valid_rows
        doing = "validation loss of the base model" if waits_for_base else "first step, which compiles the model"
        elapsed = format_seconds(max(0.0, now - summary.started_time))
        return [Text.assemble(f" {doing}  ", (elapsed, "dim"))][:height]
    lines = [_progress_line(summary, now, width), _loss_line(summary), *_pace_lines(summary, width)]
    curve = _curve_lines(summary, width)
    if len(lines) + len(curve) <= height:
        lines = [*curve, *lines]
    return lines[-height:]


def _title(phase: Phase) -> str:
    return f"{phase.name} {phase.detail}".strip()


def _phase_line(summary: Summary, now: float, width: int) -> Text:
    """`` download smollm2-135m ----  12.3 MB of 98.1 MB  3.1 s``."""
    phase = summary.phase
    if phase is None:
        return Text(" starting ...", "dim")
    elapsed = format_seconds(max(0.0, now - summary.phase_time))
    line = Text.assemble(" ", (_title(phase), "bold"), "  ")
    if phase.done is not None and phase.total:
        line.append_text(_bar(phase.done / phase.total, min(BAR_WIDTH, max(4, width - 50))))
        line.append("  ")
    amount = amount_done(phase)
    line.append(f"{amount}  " if amount else "")
    return line.append(elapsed, "dim")


def _phase_done(phase: Phase, seconds: float) -> Text:
    amount = amount_done(phase).split(" of ")[-1]
    took = format_seconds(max(0.0, seconds))
    return Text(f" {_title(phase)}{f', {amount}' if amount else ''} in {took}", "dim")


def _bar(share: float, width: int) -> Text:
    filled = max(0.0, min(1.0, share)) * width
    whole = int(filled)
    part = _PART if filled - whole >= 0.5 else ""
    return Text.assemble((_FULL * whole + part, "cyan"), (_LEFT * (width - whole - len(part)), "dim"))


def _progress_line(summary: Summary, now: float, width: int) -> Text:
    step, total = summary.step, summary.total_steps
    assert step is not None, "progress before the first step"
    assert total is not None, "progress before the start"
    line = Text.assemble(" step ", (f"{step.step}", "bold"), f"/{total} ")
    line.append_text(_bar(step.step / max(1, total), min(BAR_WIDTH, max(4, width - 62))))
    line.append(f" {step.step / max(1, total):.0%}  epoch {step.epoch:.2f}")
    if summary.paused is not None:
        return line.append(f"  paused: {summary.paused.reason}", "yellow")
    if summary.phase is not None:
        return line.append(f"  {_title(summary.phase)} {amount_done(summary.phase)}".rstrip())
    if summary.outcome is None:
        eta = eta_text(summary, now=now)
        line.append(f"  {eta}" if eta else "")
    return line


def _loss_line(summary: Summary) -> Text:
    shown = number(summary.smooth_lead, 4)
    line = Text.assemble(f" {summary.lead_name} ", (shown, "bold"), " ", trend_words(summary))
    best = summary.best_evaluation
    if not summary.evaluations or best is None:
        return line
    last = summary.evaluations[-1]
    line.append("   validation loss " if summary.lead else "   validation ").append(number(last.loss, 4), "bold")
    if last is best:
        return line.append(f" {_BEST} best", "green") if last.step else line.append(" before training", "dim")
    return line.append(f"   {_BEST} best {number(best.loss, 4)} at step {best.step}", "dim")


def _pace_lines(summary: Summary, width: int) -> list[Text]:
    """Rates and memory, on as many lines as they need."""
    step, started = summary.step, summary.started
    assert step is not None, "a pace before the first step"
    assert started is not None, "a pace before the start"
    limit = f" of {format_bytes(started.memory_limit_bytes)}" if started.memory_limit_bytes else ""
    parts = [
        f"lr {number(step.learning_rate, 2, scientific=True)}",
        f"norm {number(step.grad_norm, 2)}",
        f"{format_rate(step.targets_per_second)} {summary.learned.units}/s",
        f"padding {step.padding_share:.0%}",
        f"memory {format_bytes(step.peak_memory_bytes)}{limit}",
        _saved(summary, started),
    ]
    lines = [""]
    for part in parts:
        if lines[-1] and len(lines[-1]) + 3 + len(part) > width:
            lines.append("")
        lines[-1] += ("   " if lines[-1] else " ") + part
    return [Text(line, "dim") for line in lines]


def _saved(summary: Summary, started: RunStarted) -> str:
    """The step of the last checkpoint; a resumed run has the one it came from."""
    if summary.checkpoints:
        return f"saved {summary.checkpoints[-1].step}"
    return f"saved {started.first_step}" if started.first_step else "not saved yet"


def _curve_lines(summary: Summary, width: int) -> list[Text]:
    """What leads, smoothed, as a curve with its highest and lowest value beside it; nothing for fewer than 10 steps."""
    if len(summary.leading) < 10:
        return []
    columns = min(CURVE_WIDTH, width - 12)
    if columns < 16:
        return []
    points = thin([(float(point.step), point.smooth) for point in summary.leading], 4 * columns)
    rows = draw_curve(points, width=columns, height=CURVE_LINES)
    low, high = min(y for _, y in points), max(y for _, y in points)
    labels = [f"{high:8.3f} "] + [" " * 9] * (CURVE_LINES - 2) + [f"{low:8.3f} "]
    return [Text.assemble((label, "dim"), (row, "cyan")) for label, row in zip(labels, rows, strict=True)]


def _coloured(line: str) -> Text:
    """A line of the plain view with the colour of what it is."""
    if line.startswith("warning: "):
        return Text(line, "yellow")
    if line.startswith(("hint: ", "note: ")):
        return Text(line, "dim")
    text = Text(line)
    text.highlight_words([" * best so far"], "green")
    return text
