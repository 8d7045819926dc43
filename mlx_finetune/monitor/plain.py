"""A run as plain lines, for files, pipes and dumb terminals: about a hundred step lines a run, every evaluation,
checkpoint, notice and phase. ``lines_for`` is shared with the live view, which prints the same words above itself.
"""

import time
from collections.abc import Sequence
from typing import TextIO

from mlx_finetune.events import (
    CheckpointSaved,
    Continued,
    Evaluated,
    Notice,
    Paused,
    Phase,
    Record,
    Restarted,
    RunStarted,
    Sampled,
    StepDone,
    TimeJump,
)
from mlx_finetune.monitor.objective_metrics import metrics_line
from mlx_finetune.monitor.summary import Summary
from mlx_finetune.recipe.learned import learned_by
from mlx_finetune.units import counted, format_bytes, format_count, format_rate, format_seconds

STEP_LINES = 100
ANSWER_WIDTH = 160
_ARROWS = {"falling": "\u2198", "rising": "\u2197", "flat": "\u2192"}
PHASE_SECONDS = 10.0


class PlainView:
    """Writes lines to ``stream`` as records arrive. A stream that nobody reads any more is left alone."""

    def __init__(self, stream: TextIO, summary: Summary) -> None:
        self._stream = stream
        self._summary = summary
        self._next_step = 0
        self._phase_line_time = 0.0
        self._said: set[str] = set()
        self._broken = False

    def show(self, record: Record) -> None:
        """Fold the record and print what it says."""
        previous = self._summary.phase
        self._summary.add(record)
        event = record.event
        if isinstance(event, StepDone):
            if event.step >= self._next_step:
                self._write([step_line(self._summary)])
                total = self._summary.total_steps or event.step
                self._next_step = min(event.step + max(1, total // STEP_LINES), max(total, event.step + 1))
        elif isinstance(event, Restarted):
            if event.sentence not in self._said:
                self.say(event.sentence)
        elif not isinstance(event, Phase) or self._is_worth_a_line(event, previous, record.time):
            self._write(lines_for(record, self._summary))

    def _is_worth_a_line(self, phase: Phase, previous: Phase | None, now: float) -> bool:
        """While a training or its continuation is prepared: a phase when it begins, and every ten seconds how far."""
        if not self._summary.is_preparing:
            return False
        is_new = previous is None or (previous.name, previous.detail) != (phase.name, phase.detail)
        if is_new or now - self._phase_line_time >= PHASE_SECONDS:
            self._phase_line_time = now
            return True
        return False

    def tick(self, now: float) -> None:
        """Nothing moves in plain lines."""
        del now

    def say(self, message: str) -> None:
        """Print one line; a restart is told by the supervisor first and by the journal later."""
        self._said.add(message)
        self._write([message])

    def close(self) -> None:
        """Nothing to restore."""

    def _write(self, lines: Sequence[str]) -> None:
        if self._broken:
            return
        try:
            for line in lines:
                self._stream.write(line + "\n")
            self._stream.flush()
        except OSError:
            self._broken = True


def lines_for(record: Record, summary: Summary) -> list[str]:
    """Everything but step lines: what a record has to say to a person, in whole lines."""
    match record.event:
        case Phase() as phase:
            return [phase_line(phase)]
        case RunStarted() as started:
            return started_lines(started)
        case Evaluated() as one:
            return [evaluation_line(one, summary)]
        case CheckpointSaved() as one:
            size, seconds = format_bytes(one.num_bytes), format_seconds(one.seconds)
            return [f"{_position(one.step, summary)}  checkpoint saved, {size} in {seconds}"]
        case Sampled() as one:
            return sample_lines(one, summary)
        case Notice() as notice:
            return notice_lines(notice)
        case Paused() as one:
            return [
                f"{_position(one.step, summary)}  paused, {one.reason}; what is done is saved, it goes on by itself"
            ]
        case Continued() as one:
            return [f"{_position(one.step, summary)}  training again after a pause of {format_seconds(one.seconds)}"]
        case TimeJump() as jump:
            return [jump_line(jump)]
        case Restarted() as one:
            return [one.sentence]
        case _:
            return []


def state_lines(summary: Summary) -> list[str]:
    """Where a run is, for somebody who begins to look on."""
    if summary.started is None:
        return [phase_line(summary.phase)] if summary.phase else []
    evaluated = [evaluation_line(summary.evaluations[-1], summary)] if summary.evaluations else []
    stepped = [step_line(summary)] if summary.step else []
    return [*started_lines(summary.started), *(one.sentence for one in summary.restarts), *evaluated, *stepped]


def phase_line(phase: Phase) -> str:
    """``download SmolLM2: 12.3 of 98.1 MB``."""
    text = f"{phase.name}: {phase.detail}" if phase.detail else phase.name
    progress = amount_done(phase)
    return f"{text} ({progress})" if progress else text


def amount_done(phase: Phase) -> str:
    """How much of a phase is done, in its own unit; "" where it does not say."""
    if phase.done is None and phase.total is None:
        return ""
    form = format_bytes if phase.unit in ("bytes", "B") else _plain_count
    unit = "" if phase.unit in ("bytes", "B", "") else f" {phase.unit}"
    if phase.done is None:
        return f"{form(phase.total or 0)}{unit}"
    return f"{form(phase.done)}{unit}" if phase.total is None else f"{form(phase.done)} of {form(phase.total)}{unit}"


def started_lines(started: RunStarted) -> list[str]:
    """What is trained, on what, and what has to be beaten where the task has such a thing."""
    total = max(started.total_parameters, started.trainable_parameters)  # a new head is no part of the model's own
    where = f"from step {started.first_step + 1} to {started.total_steps}" if started.first_step else ""
    rows = f"{counted(started.train_rows, 'training row')}, {started.valid_rows:,} for validation"
    made = (started.train_sequences, started.valid_sequences)
    if started.train_sequences and made != (started.train_rows, started.valid_rows):
        rows += f"; {made[0]:,} and {made[1]:,} sequences made of them"
    beat: list[str] = []
    if started.constant_loss is not None:
        judged = learned_by(started.task).judged
        figures = f"{judged.metric if judged else 'loss'} {number(started.constant_loss, 4)}"
        figures += f", accuracy {number(started.constant_accuracy, 3)}"
        beat = [f"to beat: the same answer for every validation row, {figures}"]
    return [
        f"{started.run}: {started.task} of {started.model} on {started.device}, {started.compute_dtype}; trains "
        f"{format_count(started.trainable_parameters)} of {format_count(total)} parameters "
        f"({started.trained_share:.1%})",
        f"{where or counted(started.total_steps, 'step')}, {started.steps_per_epoch:,} in an epoch; {rows}",
        *beat,
    ]


def trend_words(summary: Summary) -> tuple[str, str]:
    """Where what leads is going, with an arrow, and the colour of that; "" too early."""
    trend = summary.trend()
    if not trend:
        return "", ""
    colour = "dim" if trend == "flat" else "green" if trend == summary.good_trend else "yellow"
    return f"{_ARROWS[trend]} {trend}", colour


def step_line(summary: Summary) -> str:
    """The numbers of the last step, in one line."""
    step = summary.step
    assert step is not None, "a step line before the first step"
    parts = [
        _position(step.step, summary),
        f"loss {number(step.loss, 4)}",
        f"lr {number(step.learning_rate, 2, scientific=True)}",
        f"norm {number(step.grad_norm, 2)}",
        *([measured] if (measured := metrics_line(step.metrics)) else []),
        f"{format_rate(step.targets_per_second)} {summary.learned.units}/s",
        f"memory {format_bytes(step.peak_memory_bytes)}",
    ]
    eta = eta_text(summary, now=summary.last_time)
    return "  ".join([*parts, eta] if eta else parts)


def eta_text(summary: Summary, *, now: float) -> str:
    """``done 14:32 (3m 20s left)`` in local time, "" too early to say."""
    seconds = summary.remaining_seconds()
    if seconds is None:
        return ""
    seconds = max(0.0, seconds - max(0.0, now - summary.last_time))
    end = time.localtime(now + seconds)
    day = "" if time.localtime(now)[:3] == end[:3] else time.strftime("%a ", end)
    return f"done {day}{time.strftime('%H:%M', end)} ({format_seconds(seconds)} left)"


def evaluation_line(one: Evaluated, summary: Summary) -> str:
    """Validation loss, and whether it is the best so far or how far from it."""
    best = summary.best_evaluation
    note = ""
    if one.step == 0:
        note = " (before training)"
    elif one.is_best:
        start = min((first.loss for first in summary.finite_evaluations if not first.step), default=one.loss)
        note = " * best so far" + (f", but {number(start, 4)} before training" if start < one.loss else "")
    elif best is not None:
        note = f" (best {number(best.loss, 4)} at step {best.step})"
    measured = metrics_line(one.metrics)
    more = f"  {measured}" if measured else ""
    return f"{_position(one.step, summary)}  validation loss {number(one.loss, 4)}{more}{note}"


def sample_lines(one: Sampled, summary: Summary) -> list[str]:
    """A prompt's answer when it differs from the last one to the same prompt."""
    earlier = [other.answer for other in summary.samples if other.prompt == one.prompt]
    if len(earlier) > 1 and earlier[-2] == one.answer:
        return []
    return [f"{_position(one.step, summary)}  {one_line(one.prompt, 60)} -> {one_line(one.answer, ANSWER_WIDTH)}"]


def notice_lines(notice: Notice) -> list[str]:
    """A warning or a note, with its way out on a second line."""
    first = f"{'warning' if notice.level == 'warning' else 'note'}: {notice.message}"
    return [first, f"hint: {notice.hint}"] if notice.hint else [first]


def jump_line(jump: TimeJump) -> str:
    """Where the time went that nobody trained in."""
    length = format_seconds(abs(jump.seconds))
    if jump.was_asleep:
        return f"note: the machine was asleep for {length}; training goes on where it was"
    return f"note: the clock was set {'forward' if jump.seconds > 0 else 'back'} by {length}; training takes no notice"


def one_line(text: str, width: int) -> str:
    """``text`` on one line of at most ``width`` characters, control characters removed."""
    flat = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return flat if len(flat) <= width else flat[: width - 3].rstrip() + "..."


def number(value: float | None, digits: int, *, scientific: bool = False) -> str:
    """A number, or ``not finite`` where the journal holds null."""
    if value is None:
        return "not finite"
    return f"{value:.{digits}e}" if scientific else f"{value:.{digits}f}"


def _plain_count(value: float) -> str:
    return f"{value:,.0f}"


def _position(step: int, summary: Summary) -> str:
    total = summary.total_steps
    return f"step {step}/{total}" if total else f"step {step}"
