"""A warning that an objective has about the metrics of an evaluation, said once in a process."""

from mlx_finetune.events import Evaluated, Event, Notice
from mlx_finetune.train.objective import Objective
from mlx_finetune.train.start.rows import Emit


def with_advice(objective: Objective, emit: Emit) -> Emit:
    """``emit`` that says what ``objective`` advises after an evaluation, the first time that it advises something."""
    is_said = False

    def report(event: Event) -> None:
        nonlocal is_said
        emit(event)
        if isinstance(event, Evaluated) and event.step and not is_said:
            known = {name: value for name, value in event.metrics.items() if value is not None}
            message, hint = objective.advise(known) if len(known) == len(event.metrics) else ("", "")
            if message:
                is_said = True
                emit(Notice("warning", f"step {event.step}: {message}", hint))

    return report
