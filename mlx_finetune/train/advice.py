"""Warnings of an objective about the metrics of an evaluation or of the last steps, each said once in a process."""

from collections import deque
from collections.abc import Mapping

from mlx_finetune.events import Evaluated, Event, Notice, StepDone
from mlx_finetune.train.objective import Objective
from mlx_finetune.train.start.rows import Emit

STEPS = 10  # that were logged in a row


def with_advice(objective: Objective, emit: Emit) -> Emit:
    """``emit`` that says what ``objective`` advises after an evaluation, the first time that it advises something, and
    the same after ``STEPS`` steps."""
    said: set[type[Event]] = set()
    steps: deque[Mapping[str, float]] = deque(maxlen=STEPS)

    def advise(event: Event) -> tuple[str, str]:
        if not isinstance(event, Evaluated | StepDone) or type(event) in said:
            return "", ""
        known = {name: value for name, value in event.metrics.items() if value is not None}
        if len(known) < len(event.metrics) or not event.step:
            return "", ""
        if isinstance(event, Evaluated):
            return objective.advise(known)
        steps.append(known)
        return objective.advise_steps(steps) if len(steps) == STEPS else ("", "")

    def report(event: Event) -> None:
        emit(event)
        message, hint = advise(event)
        if message and isinstance(event, Evaluated | StepDone):
            said.add(type(event))
            emit(Notice("warning", f"step {event.step}: {message}", hint))

    return report
