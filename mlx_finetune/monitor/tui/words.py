"""What a run does, in words: its state, how far it is, what the machine does, and when it will be done."""

import time
from dataclasses import dataclass

from mlx_finetune.events import Resources, RunFailed, RunFinished, RunStopped
from mlx_finetune.monitor.plain import amount_done, one_line
from mlx_finetune.monitor.summary import Summary
from mlx_finetune.monitor.tui.watched import Watched
from mlx_finetune.recipe.asking import talk_command
from mlx_finetune.rundir import LOG
from mlx_finetune.units import format_bytes, format_seconds

NOT_AVAILABLE = "not available"

GOOD, WAITING, BAD, QUIET = "green", "yellow", "red", ""


@dataclass(frozen=True, slots=True)
class State:
    """One word or two for a run, the colour of it, and what more there is to say."""

    word: str
    style: str
    more: str = ""


def state_of(watched: Watched) -> State:
    """What the run does now, or how it ended."""
    summary = watched.summary
    if watched.is_gone:
        return State("deleted", BAD, "its folder is gone; what was read of it is still shown")
    if watched.is_loading:
        return State("reading", QUIET, f"{watched.num_read:,} events so far")
    match summary.outcome:
        case RunFinished():
            return State("finished", GOOD)
        case RunStopped(step=step) if watched.is_at_work and watched.was_idle:
            return State("preparing", QUIET, f"to go on from step {step}")
        case RunStopped():
            return State("stopping" if watched.is_at_work else "stopped", WAITING, "everything up to there is saved")
        case RunFailed(message=message) if not watched.is_at_work:
            return State("failed", BAD, one_line(message, 400))
        case RunFailed():
            return State("starting again", WAITING)
        case None:
            return _state_without_end(watched, summary)


def _state_without_end(watched: Watched, summary: Summary) -> State:
    if not watched.is_at_work:
        if summary.first_time is None:
            return State("not started", QUIET, "its journal is empty")
        return State("gone", BAD, "without a word")
    if summary.paused is not None:
        return State("paused", WAITING, one_line(summary.paused.reason, 200))
    if summary.started is None or summary.is_preparing:
        return State("preparing", QUIET, _phase(summary) or "starting ...")
    if summary.step is None:
        waits_for_base = not summary.evaluations and not summary.started.first_step and summary.started.valid_rows
        first = "the first step, which compiles the model"
        return State("training", GOOD, "validation loss of the base model" if waits_for_base else first)
    return State("training", GOOD, _phase(summary))


def _phase(summary: Summary) -> str:
    """The phase at work and how much of it is done."""
    phase = summary.phase
    if phase is None:
        return ""
    return f"{one_line(f'{phase.name} {phase.detail}', 60)} {amount_done(phase)}".strip()


def end_of(watched: Watched) -> State:
    """A sentence for somebody who sees a run end, and what to do next."""
    on = "y copies the command that goes on"
    match watched.summary.outcome:
        case RunFinished(step=step):
            started = watched.summary.started
            following = talk_command(started.task if started else "", watched.run.name)
            return State(f"finished at step {step}; next: {following}", GOOD)
        case RunStopped(step=step):
            return State(f"stopped after step {step}; everything up to there is saved. {on}", WAITING)
        case RunFailed(message=message, hint=hint):
            return State(f"failed: {message}" + (f"; {hint}" if hint else ""), BAD)
        case None:
            log = watched.run.file(LOG)
            return State(
                f"the training is gone without a word after step {watched.summary.steps_done}; {log} may tell "
                f"more. {on}",
                BAD,
            )


def share_done(watched: Watched) -> float | None:
    """How far the run is, from 0 to 1; of a phase before the first step where that has a measure."""
    summary = watched.summary
    phase = summary.phase
    if summary.is_preparing and phase is not None and phase.done is not None and phase.total:
        return min(1.0, phase.done / phase.total)
    total = summary.total_steps
    return summary.steps_done / total if total and summary.step is not None else None


def seconds_left(watched: Watched, now: float) -> float | None:
    """Until the last step; None where nothing moves, where it is too early to say, and where that time has gone by."""
    summary = watched.summary
    seconds = summary.remaining_seconds()
    if seconds is None or not watched.is_at_work or summary.outcome is not None or summary.paused is not None:
        return None
    silence = max(0.0, now - summary.last_time)
    return None if silence > max(60.0, seconds) else max(0.0, seconds - silence)


def clock(seconds: float, *, now: float) -> str:
    """The time of day ``seconds`` from ``now``, with the day where it is another one."""
    then = time.localtime(now + seconds)
    day = "" if time.localtime(now)[:3] == then[:3] else time.strftime("%a ", then)
    return day + time.strftime("%H:%M", then)


def ago(moment: float, now: float) -> str:
    """``3m 20s ago``, in whole seconds."""
    seconds = max(0.0, now - moment)
    return f"{seconds:.0f} s ago" if seconds < 59.5 else f"{format_seconds(seconds)} ago"


def machine_parts(resource: Resources | None) -> list[str]:
    """What the machine does, a few words each; only what is known, for a line that has no room for the rest."""
    if resource is None:
        return []
    parts = [
        _share("GPU", resource.gpu_percent),
        _share("CPU", resource.cpu_percent),
        "" if resource.watts is None else f"{resource.watts:.0f} W",
        "" if resource.temperature_celsius is None else f"{resource.temperature_celsius:.0f} C",
        "" if resource.disk_free_bytes is None else f"{format_bytes(resource.disk_free_bytes, 0)} of disk free",
        "" if not resource.throttled else f"slowed down: {one_line(resource.throttled, 40)}",
    ]
    return [part for part in parts if part]


def _share(name: str, percent: float | None) -> str:
    return "" if percent is None else f"{name} {percent:.0f}%"
