"""Where a run stands: counters and records that are not arrays. One JSON file in every checkpoint.

Nothing random is in here: the order of rows and all noise are functions of (seed, step). Clock times are recorded for
people and never read back into the training.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self, cast

from mlx_finetune.errors import RunError
from mlx_finetune.events import Event, Restarted

LogEntry = dict[str, float | int]


@dataclass(slots=True)
class RunState:
    """Progress after ``step`` optimizer steps. Losses are nats per target of the validation set, None without one.

    ``is_evaluated`` is False between the update of a step that asks for an evaluation and its end, so that a run that
    was stopped in between evaluates first when it is resumed. ``evaluated_step`` is the last step that was evaluated,
    with or without a validation set; -1 before the first. ``kept_steps`` are those of save_at that were passed, which
    stay when the run is extended; ``restarts`` are the supervisor's, oldest first.
    """

    step: int = 0
    epoch: float = 0.0
    loss: float | None = None
    learning_rate: float = 0.0
    first_loss: float | None = None
    last_loss: float | None = None
    best_loss: float | None = None
    best_step: int | None = None
    evaluations_without_improvement: int = 0
    is_evaluated: bool = False
    evaluated_step: int = -1
    skipped_steps: int = 0
    targets_trained: int = 0
    tokens_trained: int = 0
    train_seconds: float = 0.0
    step_seconds: float = 0.0
    peak_memory_bytes: int = 0
    journal_bytes: int = 0
    journal_sha256: str = ""
    samples_bytes: int = 0
    kept_steps: list[int] = field(default_factory=list[int])
    restarts: list[dict[str, object]] = field(default_factory=list[dict[str, object]])
    log_history: list[LogEntry] = field(default_factory=list[LogEntry])

    def to_json(self) -> dict[str, object]:
        """Plain values, one key per field."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, object]) -> Self:
        """The inverse of ``to_json``; keys of other writers are left out. Raises ``RunError`` for a wrong shape."""
        names = {entry.name for entry in dataclasses.fields(cls)}
        if not names <= fields.keys():
            raise RunError(f"trainer_state.json has no {', '.join(sorted(names - fields.keys()))}")
        return cls(**{name: fields[name] for name in names})  # pyright: ignore[reportArgumentType]

    def record_evaluation(self, loss: float) -> bool:
        """Note a validation loss of this step; True when it is the best of the trained ones so far.

        That of the start is none of them, nor one that is not finite. Only what is below the start as well improves it.
        """
        known = [one for one in (self.first_loss, self.best_loss) if one is not None]
        is_finite = math.isfinite(loss)
        is_improved = is_finite and loss < min(known, default=math.inf)
        is_best = is_finite and self.step > 0 and (not self.best_step or loss < cast("float", self.best_loss))
        if self.first_loss is None and is_finite:
            self.first_loss = loss
        if is_best:
            self.best_loss, self.best_step = loss, self.step
        self.evaluations_without_improvement = 0 if is_improved else self.evaluations_without_improvement + 1
        self.last_loss = loss if is_finite else None
        self.log({"eval_loss": loss})
        return is_best

    def forget_evaluations(self) -> None:
        """Measure anew: the losses so far are those of something else."""
        self.first_loss = self.last_loss = None
        self.evaluations_without_improvement = 0
        self.forget_best()
        self.is_evaluated, self.evaluated_step = False, -1

    def forget_best(self) -> None:
        """The next evaluation is the best so far."""
        self.best_loss = self.best_step = None

    def num_rises(self) -> int:
        """How many validation losses in a row, the last one included, were higher than the one before."""
        losses = [entry["eval_loss"] for entry in self.log_history if "eval_loss" in entry]
        later = itertools.pairwise(reversed(losses))
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] > pair[1], later))

    def log(self, values: Mapping[str, float]) -> None:
        """Add an entry for this step to the history; numbers that are not finite are left out of it."""
        self.log_history.append({"step": self.step} | {k: v for k, v in values.items() if math.isfinite(v)})


def record_restarts(restarts: Sequence[Mapping[str, object]], state: RunState, emit: Callable[[Event], None]) -> None:
    """Report the supervisor's restarts that are not in the journal yet, and keep them in the state.

    Those before the checkpoint are in the state that was restored; the journal was cut back to the same point. An entry
    that is not what the supervisor writes is left out.
    """
    known = {entry.get("id") for entry in state.restarts}
    for entry in restarts:
        match entry:
            case {
                "id": float(number),
                "attempt": int(attempt),
                "cause": str(cause),
                "message": str(message),
                "change": str(change),
                "is_bitwise": bool(is_bitwise),
            } if number not in known:
                emit(Restarted(state.step, attempt, cause, message, change, is_bitwise))
                state.restarts.append({**entry, "step": state.step})
            case _:
                pass
