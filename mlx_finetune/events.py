"""What a run reports: typed events, and each of them as one line of JSON.

Times are seconds since 1970 and come from the caller's clock. A number that is not finite is written as null. How the
lines are kept and read is in ``journal``.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast


@dataclass(frozen=True, slots=True)
class Phase:
    """Something that takes a while has begun or gone on: download, load, tokenise, compile, evaluate."""

    kind: ClassVar[str] = "phase"
    name: str
    detail: str = ""
    done: float | None = None
    total: float | None = None
    unit: str = ""


@dataclass(frozen=True, slots=True)
class RunStarted:
    """Everything is loaded; step ``first_step + 1`` comes next. ``first_step`` is 0 unless the run is resumed.

    Rows are those of the files that are used; ``train_sequences`` and ``valid_sequences`` were made of them, which are
    more where long rows are split; 0 where an earlier version wrote this, with the sequences as rows. ``constant_loss``
    and ``constant_accuracy`` are those of the best answer that is the same for every validation row, where a task has
    one: what a model has to beat that learned something of the rows.
    """

    kind: ClassVar[str] = "run_started"
    run: str
    model: str
    task: str
    first_step: int
    total_steps: int
    steps_per_epoch: int
    train_rows: int
    valid_rows: int
    trainable_parameters: int
    total_parameters: int
    device: str
    compute_dtype: str
    memory_limit_bytes: int | None = None
    train_sequences: int = 0
    valid_sequences: int = 0
    constant_loss: float | None = None
    constant_accuracy: float | None = None

    def is_no_better(self, loss: float) -> bool:
        """Whether ``loss`` is about what one answer for every validation row has, or more."""
        return self.constant_loss is not None and loss > 0.995 * self.constant_loss

    @property
    def trained_share(self) -> float:
        """Of the parameters, 1 at most: a new head is no part of the model's own."""
        return min(1.0, self.trainable_parameters / max(1, self.total_parameters))


@dataclass(frozen=True, slots=True)
class StepDone:
    """Metrics of one optimizer step. ``loss`` is nats per target; ``grad_norm`` is before clipping.

    ``num_targets`` is what its objective counts (tokens, pairs, rows), ``metrics`` what else it measures, by name.
    """

    kind: ClassVar[str] = "step"
    step: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    num_targets: int
    num_tokens: int
    padding_share: float
    step_seconds: float
    targets_per_second: float
    active_memory_bytes: int
    peak_memory_bytes: int
    metrics: Mapping[str, float | None] = field(default_factory=dict[str, float | None])


@dataclass(frozen=True, slots=True)
class Resources:
    """What the machine did over the last few seconds; None where no source told. Shares of 100, bytes, watts.

    ``process_bytes`` is the memory of the training process as the system counts it, ``energy_joules`` what the run has
    used so far of the chip or the machine; ``throttled`` says what is slowed down, "" where nothing is.
    """

    kind: ClassVar[str] = "resources"
    step: int
    cpu_percent: float | None = None
    gpu_percent: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    process_bytes: int | None = None
    gpu_memory_bytes: int | None = None
    pressure: str | None = None
    swap_bytes: int | None = None
    disk_free_bytes: int | None = None
    watts: float | None = None
    cpu_watts: float | None = None
    gpu_watts: float | None = None
    energy_joules: float | None = None
    temperature_celsius: float | None = None
    throttled: str | None = None
    on_battery: bool | None = None
    battery_percent: int | None = None


_SUMMED_UP = (
    "cpu_percent",
    "gpu_percent",
    "memory_used_bytes",
    "process_bytes",
    "gpu_memory_bytes",
    "swap_bytes",
    "watts",
    "cpu_watts",
    "gpu_watts",
    "temperature_celsius",
)


def _mean(name: str, values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return round(mean) if name.endswith("_bytes") else round(mean, 2)


def summarise_resources(samples: Sequence[Resources]) -> dict[str, object] | None:
    """Means and largest values of what was told, the energy, the least free disk, and the share of samples in which
    something was slowed down; None without a sample. What no sample tells is absent, or null."""
    if not samples:
        return None
    told = {name: [value for one in samples if (value := getattr(one, name)) is not None] for name in _SUMMED_UP}
    energies = [one.energy_joules for one in samples if one.energy_joules is not None]
    heat = [bool(one.throttled) for one in samples if one.throttled is not None]
    return {
        "samples": len(samples),
        "mean": {name: _mean(name, values) for name, values in told.items() if values},
        "max": {name: max(values) for name, values in told.items() if values},
        "energy_joules": energies[-1] if energies else None,
        "throttled_share": round(sum(heat) / len(heat), 4) if heat else None,
        "least_disk_free_bytes": min((one.disk_free_bytes for one in samples if one.disk_free_bytes), default=None),
    }


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Loss over the whole validation set, in nats per target, and the objective's other ``metrics`` by name."""

    kind: ClassVar[str] = "evaluation"
    step: int
    loss: float
    num_targets: int
    is_best: bool
    seconds: float
    metrics: Mapping[str, float | None] = field(default_factory=dict[str, float | None])


@dataclass(frozen=True, slots=True)
class Sampled:
    """One prompt of [eval] answered by the weights of ``step`` (0 is the base model)."""

    kind: ClassVar[str] = "sample"
    step: int
    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class CheckpointSaved:
    """A checkpoint is committed: everything up to ``step`` is safe."""

    kind: ClassVar[str] = "checkpoint"
    step: int
    folder: str
    num_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Notice:
    """Something a person should know: a fallback, a changed setting, rows left out. ``level`` is info or warning."""

    kind: ClassVar[str] = "notice"
    level: str
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Restarted:
    """The training process ended without being asked to and was started again from the checkpoint of ``step``.

    ``attempt`` counts restarts without a new checkpoint in between, from 1; ``message`` says in one sentence what ended
    the process; ``change`` what is safer now, "" where nothing changed; ``is_bitwise`` whether the run still ends with
    the bits of one that was never interrupted.
    """

    kind: ClassVar[str] = "restarted"
    step: int
    attempt: int
    cause: str
    message: str
    change: str
    is_bitwise: bool

    @property
    def sentence(self) -> str:
        """What happened and how it goes on; the supervisor says the same before the event is written."""
        where = f"it goes on from step {self.step}" if self.step else "it starts again"
        change = f", now more carefully: {self.change}" if self.change else ""
        rounding = "" if self.is_bitwise else " (equal up to rounding, no longer bit for bit)"
        return f"{self.message}; {where}{change}{rounding}"


@dataclass(frozen=True, slots=True)
class Paused:
    """Training waits, everything up to ``step`` is saved; ``reason`` is a sentence."""

    kind: ClassVar[str] = "paused"
    step: int
    reason: str


@dataclass(frozen=True, slots=True)
class Continued:
    """The pause is over after ``seconds``."""

    kind: ClassVar[str] = "continued"
    step: int
    seconds: float


@dataclass(frozen=True, slots=True)
class TimeJump:
    """Time went by without us: ``seconds`` of sleep, or the clock was set (negative: back)."""

    kind: ClassVar[str] = "time_jump"
    seconds: float
    was_asleep: bool


@dataclass(frozen=True, slots=True)
class RunFinished:
    """The run came to its end and the adapter is in place. Losses are of the validation set, None without one.

    ``planned`` says in one line how far the plan was from what happened, "" where there was none. The result has the
    weights of ``result_step``; None in journals of versions before it was written.
    """

    kind: ClassVar[str] = "run_finished"
    step: int
    reason: str
    first_loss: float | None
    best_loss: float | None
    best_step: int | None
    last_loss: float | None
    train_seconds: float
    targets_trained: int
    peak_memory_bytes: int
    planned: str = ""
    result_step: int | None = None

    @property
    def is_best_the_result(self) -> bool:
        """True where the weights in the run folder are those with the best loss; step 0 has none of its own."""
        return (self.best_step or self.step) == (self.result_step or self.best_step) and bool(self.best_step)

    @property
    def result_loss(self) -> float | None:
        """Validation loss of the weights in the run folder."""
        return self.best_loss if self.is_best_the_result or self.last_loss is None else self.last_loss


@dataclass(frozen=True, slots=True)
class RunStopped:
    """A signal or a limit ended the run early; it can be resumed from ``step``."""

    kind: ClassVar[str] = "run_stopped"
    step: int
    signal_number: int


@dataclass(frozen=True, slots=True)
class RunFailed:
    """The run ended with an error; ``message`` and ``hint`` are what a person is shown."""

    kind: ClassVar[str] = "run_failed"
    message: str
    hint: str
    exit_code: int


Event = (
    Phase
    | RunStarted
    | StepDone
    | Resources
    | Evaluated
    | Sampled
    | CheckpointSaved
    | Notice
    | Restarted
    | Paused
    | Continued
    | TimeJump
    | RunFinished
    | RunStopped
    | RunFailed
)

_KINDS: Mapping[str, type[Event]] = {
    cls.kind: cls
    for cls in (
        Phase,
        RunStarted,
        StepDone,
        Resources,
        Evaluated,
        Sampled,
        CheckpointSaved,
        Notice,
        Restarted,
        Paused,
        Continued,
        TimeJump,
        RunFinished,
        RunStopped,
        RunFailed,
    )
}


@dataclass(frozen=True, slots=True)
class Record:
    """An event as it stands in the file: when it was reported, and its number from 0."""

    time: float
    index: int
    event: Event


def to_json(event: Event, time: float) -> str:
    """One line of the journal, without its newline."""
    fields = {"kind": event.kind, "time": round(time, 3)} | dataclasses.asdict(event)
    return json.dumps({key: _finite(value) for key, value in fields.items()}, ensure_ascii=False, allow_nan=False)


def _finite(value: object) -> object:
    """``value`` with null for what is not finite, also inside ``metrics``."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in cast("dict[str, object]", value).items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


_NAMES: Mapping[str, frozenset[str]] = {
    kind: frozenset(field.name for field in dataclasses.fields(cls)) for kind, cls in _KINDS.items()
}


def from_json(line: str | bytes, index: int = 0, *, decode: Callable[[str | bytes], Any] = json.loads) -> Record | None:
    """The event on one line, or None for a torn line or a kind this version does not know.

    ``decode`` may be a faster reader of JSON than the one of the standard library.
    """
    try:
        fields = decode(line)
        kind, time = fields.pop("kind"), float(fields.pop("time"))
        cls = _KINDS[kind]
        try:
            event = cls(**fields)
        except TypeError:  # fields that this version does not know
            event = cls(**{key: value for key, value in fields.items() if key in _NAMES[kind]})
        return Record(time, index, event)
    except (ValueError, KeyError, AttributeError, TypeError):
        return None
