"""What a run's events add up to: the state that the live view, the plain lines, ``runs show`` and the end draw from.

Folds one record at a time. A run that was killed and resumed from an earlier step says so with a second
``RunStarted``: everything after its ``first_step`` is forgotten, because those steps are done again. Time that went by
without training (pauses, sleep, a clock that was set) is taken out of the pace.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from mlx_finetune.events import (
    CheckpointSaved,
    Continued,
    Evaluated,
    Notice,
    Paused,
    Phase,
    Record,
    Resources,
    Restarted,
    RunFailed,
    RunFinished,
    RunStarted,
    RunStopped,
    Sampled,
    StepDone,
    TimeJump,
)
from mlx_finetune.recipe.learned import Learned, learned_by

Outcome = RunFinished | RunStopped | RunFailed

#: Steps over which the loss is averaged (weight 1/e), and over which the trend and the pace are taken.
SMOOTH_STEPS = 20
END_STEPS = 10  # logged ones, whose mean is what there was at the end
TREND_STEPS = 40

#: The one phase of a training at work; every other one prepares the training, or its continuation.
_WHILE_TRAINING = "answer"


@dataclass(frozen=True, slots=True)
class LossPoint:
    """One logged step: its loss, the smoothed loss there, and when it was reported, less the time lost before.

    In ``Summary.leading`` the loss is whatever leads.
    """

    step: int
    loss: float
    smooth: float
    time: float


def ended_as(outcome: Outcome | None) -> str:
    """finished, stopped (by a signal, resumable), failed, or interrupted (killed, resumable)."""
    match outcome:
        case RunFinished():
            return "finished"
        case RunStopped():
            return "stopped"
        case RunFailed():
            return "failed"
        case None:
            return "interrupted"


class Summary:
    """The state of one run after the records given so far."""

    def __init__(self) -> None:
        self.phase: Phase | None = None
        self.phase_time: float = 0.0
        self.is_preparing = False  # before the first step of this process, which may continue a run
        self.started: RunStarted | None = None
        self.started_time: float = 0.0
        self.step: StepDone | None = None
        self.steps: list[StepDone] = []
        self.losses: list[LossPoint] = []
        self._leading: list[LossPoint] = []
        self.resources: list[Resources] = []
        self.evaluations: list[Evaluated] = []
        self.samples: list[Sampled] = []
        self.checkpoints: list[CheckpointSaved] = []
        self.notices: list[Notice] = []
        self.restarts: list[Restarted] = []
        self.outcome: Outcome | None = None
        self.paused: Paused | None = None
        self.pause_seconds = 0.0
        self.sleep_seconds = 0.0
        self._lost_seconds = 0.0  # since the run has started
        self.first_time: float | None = None
        self.last_time: float = 0.0
        self._worked_time: float = 0.0  # of the last record that a training at work wrote
        self._away_seconds = 0.0  # between the processes of a run that was continued

    def add(self, record: Record) -> None:
        """Take in the next record of the journal."""
        event = record.event
        self.first_time = record.time if self.first_time is None else self.first_time
        self.last_time = record.time
        if not isinstance(event, Phase | Notice | Restarted):
            self._worked_time = record.time
        match event:
            case Phase():
                self._begin(event, record.time)
            case RunStarted():
                self._start(event, record.time)
            case StepDone():
                self._add_step(event, record.time)
            case Resources() | Evaluated() | Sampled() | CheckpointSaved() | Notice():
                self._keep(event)
            case Paused() | Continued():
                self._pause(event)
            case TimeJump():
                self._jump(event)
            case Restarted():
                self._restart(event)
            case RunFinished() | RunStopped() | RunFailed():
                self.outcome, self.phase, self.paused = event, None, None
                self.is_preparing = False

    def _keep(self, event: Resources | Evaluated | Sampled | CheckpointSaved | Notice) -> None:
        """Append what is only collected."""
        match event:
            case Resources():
                self.resources.append(event)
            case Evaluated():
                self.evaluations.append(event)
            case Sampled():
                self.samples.append(event)
            case CheckpointSaved():
                self.checkpoints.append(event)
            case Notice():
                self.notices.append(event)

    def _begin(self, event: Phase, time: float) -> None:
        before = self.phase
        if before is None or (before.name, before.detail) != (event.name, event.detail):
            self.phase_time = time
        self.phase, self.outcome = event, None
        if event.name != _WHILE_TRAINING and not self.is_preparing:
            self._away_seconds += time - self._worked_time if self.started is not None else 0.0
            self.is_preparing = True

    @property
    def took_seconds(self) -> float | None:
        """From the first record to the last, without the time between a stop and the start that continues; None before
        there is one."""
        return None if self.first_time is None else self.last_time - self.first_time - self._away_seconds

    def _pause(self, event: Paused | Continued) -> None:
        self.paused = event if isinstance(event, Paused) else None
        seconds = event.seconds if isinstance(event, Continued) else 0.0
        self.pause_seconds += seconds
        self._lost_seconds += seconds

    def _jump(self, event: TimeJump) -> None:
        """Sleep within a pause is part of the pause. A jump is told after the step in which it happened.

        That step's time is mended where the jump can lie before it: it is then the only one that makes sense.
        """
        if event.was_asleep:
            self.sleep_seconds += event.seconds
            if self.paused is not None:
                return
        self._lost_seconds += event.seconds
        if self.losses and self.paused is None:
            last = self.losses[-1]
            before = max(self.losses[-2].time if len(self.losses) > 1 else 0.0, self.started_time)
            mended = last.time - event.seconds
            if mended >= before and (event.seconds > 0 or last.time < before):
                self.losses[-1] = replace(last, time=mended)

    def _start(self, event: RunStarted, time: float) -> None:
        kept = event.first_step
        self.started, self.started_time, self.phase, self.outcome = event, time, None, None
        self.paused, self._lost_seconds, self.is_preparing = None, 0.0, False
        self.step = self.step if self.step is not None and self.step.step <= kept else None
        self.steps = [one for one in self.steps if one.step <= kept]
        self.losses = [point for point in self.losses if point.step <= kept]
        self._leading = [point for point in self._leading if point.step <= kept]
        self.resources = [one for one in self.resources if one.step <= kept]
        self.evaluations = [one for one in self.evaluations if one.step <= kept] if kept else _before_start(self)
        self.samples = [one for one in self.samples if one.step <= kept]
        self.checkpoints = [one for one in self.checkpoints if one.step <= kept]

    def _restart(self, event: Restarted) -> None:
        """A process that was started again repeats the restarts since its checkpoint, whose lines it has cut off."""
        known = self.restarts.index(event) if event in self.restarts else len(self.restarts)
        self.restarts[known:] = [event]
        self.outcome = None

    def _add_step(self, event: StepDone, time: float) -> None:
        self.step, self.phase = event, None
        self.steps.append(event)
        if event.loss is not None:  # pyright: ignore[reportUnnecessaryComparison] null on file where it is not finite
            _append(self.losses, event.step, event.loss, time - self._lost_seconds)
        if (value := event.metrics.get(self.learned.lead)) is not None:
            _append(self._leading, event.step, value, time - self._lost_seconds)

    @property
    def learned(self) -> Learned:
        """What its task learns from and what its losses mean."""
        return learned_by(self.started.task if self.started else "")

    @property
    def lead(self) -> str:
        """The metric that tells of success in the place of the training loss, "" where that does."""
        return self.learned.lead if self._leading else ""

    @property
    def good_trend(self) -> str:
        """The trend that one hopes for: a loss falls, a metric that leads rises."""
        return "rising" if self.lead else "falling"

    @property
    def leading(self) -> Sequence[LossPoint]:
        """What to look at while it trains: the losses, or the values of the metric ``lead``."""
        return self._leading if self.lead else self.losses

    @property
    def total_steps(self) -> int | None:
        """Planned optimizer steps, once the run has started."""
        return self.started.total_steps if self.started else None

    @property
    def steps_done(self) -> int:
        """The last step that was reported, or where the run was resumed."""
        if self.step is not None:
            return self.step.step
        return self.started.first_step if self.started else 0

    @property
    def resource(self) -> Resources | None:
        """What the machine did when it was last looked at."""
        return self.resources[-1] if self.resources else None

    @property
    def first_evaluation(self) -> Evaluated | None:
        """The validation loss of the base model (step 0), where it was measured."""
        return self.evaluations[0] if self.evaluations and self.evaluations[0].step == 0 else None

    @property
    def best_evaluation(self) -> Evaluated | None:
        """The last after a step that was the best so far, as the run says, which a fork on other rows begins anew.

        Where it says of none, the lowest after a step; that of the start before the first of these.
        """
        known = self.finite_evaluations
        lowest = min(known, key=lambda one: (not one.step, one.loss), default=None)
        return next((one for one in reversed(known) if one.is_best and one.step), lowest)

    @property
    def finite_evaluations(self) -> list[Evaluated]:
        """The evaluations whose loss is a number; one that is not finite is null in the journal."""
        return [one for one in self.evaluations if one.loss is not None]  # pyright: ignore[reportUnnecessaryComparison]

    def status(self, *, is_running: bool) -> str:
        """running, else as ``ended_as`` says."""
        return "running" if is_running else ended_as(self.outcome)

    @property
    def smooth_lead(self) -> float | None:
        """What leads, averaged over about the last ``SMOOTH_STEPS`` steps."""
        return self.leading[-1].smooth if self.leading else None

    @property
    def lead_at_end(self) -> tuple[str, float] | None:
        """What leads, with how many steps it is of, and its mean over these; what is smoothed lags behind a fall."""
        values = [point.loss for point in self.leading[-END_STEPS:]]
        if not values:
            return None
        which = "the last logged step" if len(values) == 1 else f"mean of the last {len(values)} logged steps"
        return f"{self.lead or 'training loss'}, {which}", sum(values) / len(values)

    @property
    def lead_name(self) -> str:
        """What ``smooth_lead`` is: the loss, or the metric that leads."""
        return self.lead or "loss"

    def trend(self) -> str:
        """``falling``, ``flat`` or ``rising``: ``smooth_lead`` now against ``TREND_STEPS`` steps ago; "" too early.

        Flat is a change of less than 1 %.
        """
        points = self.leading
        if len(points) < 8:
            return ""
        last = points[-1]
        before = next(point for point in points[-TREND_STEPS - 1 :] if point.step >= last.step - TREND_STEPS)
        change = last.smooth - before.smooth
        if abs(change) < 0.01 * abs(before.smooth):
            return "flat"
        return "falling" if change < 0 else "rising"

    def remaining_seconds(self) -> float | None:
        """Seconds to the last step at the pace of the last ``TREND_STEPS`` logged steps, evaluations included."""
        if self.started is None or self.step is None:
            return None
        recent = [point for point in self.losses[-TREND_STEPS:] if point.step > self.started.first_step]
        start_step, start_time = self.started.first_step, self.started_time
        if len(recent) >= 5:
            start_step, start_time = recent[0].step, recent[0].time
        done = self.step.step - start_step
        if done <= 0 or not recent:
            return None
        pace = (recent[-1].time - start_time) / done
        return max(0.0, pace * (self.started.total_steps - self.step.step))

    def answers(self, step: int) -> dict[str, str]:
        """Prompt to answer, of the samples taken at ``step``."""
        return {one.prompt: one.answer for one in self.samples if one.step == step}

    def sample_steps(self) -> Sequence[int]:
        """Steps at which the prompts of [eval] were answered, rising."""
        return sorted({one.step for one in self.samples})

    def peak_memory_bytes(self) -> int | None:
        """The highest memory reported, None before the first step."""
        if isinstance(self.outcome, RunFinished):
            return self.outcome.peak_memory_bytes
        return self.step.peak_memory_bytes if self.step else None


def _append(points: list[LossPoint], step: int, value: float, time: float) -> None:
    """The next point of a curve with its average."""
    smooth = value
    if points:
        before = points[-1]
        # Over a third of a young run: its first losses fall so fast that a mean of all would stay far too high.
        weight = min(1.0, (step - before.step) / min(SMOOTH_STEPS, max(2, step // 3)))
        smooth = before.smooth + weight * (value - before.smooth)
    points.append(LossPoint(step, value, smooth, time))


def summarise(records: Iterable[Record]) -> Summary:
    """The state after all ``records``."""
    summary = Summary()
    for record in records:
        summary.add(record)
    return summary


def _before_start(summary: Summary) -> list[Evaluated]:
    """A run from step 0 may measure its base before it reports that it has started; an older run's are dropped."""
    return [one for one in summary.evaluations[-1:] if one.step == 0]
