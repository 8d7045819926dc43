"""Events as lines of log.txt, each with its time: what happened to a run, for whoever looks for the reason later.

Steps are not there, the journal has them. Times are local, as a person's clock shows them, with the offset from UTC.
"""

import signal
import time
from pathlib import Path

from mlx_finetune import durable
from mlx_finetune.events import (
    CheckpointSaved,
    Continued,
    Evaluated,
    Event,
    Notice,
    Paused,
    Restarted,
    RunFailed,
    RunFinished,
    RunStarted,
    RunStopped,
    TimeJump,
)


def log_text(event: Event, now: float) -> str:
    """The lines of one event with their ends, "" where it does not belong into the log."""
    said = _said(event)
    return stamped(said, now) if said else ""


def stamped(text: str, now: float) -> str:
    """``text`` as lines that each begin with the time; what a terminal could act upon becomes a blank."""
    stamp = time.strftime("%Y-%m-%d %H:%M:%S%z", time.localtime(now))
    clean = ("".join(char if char.isprintable() else " " for char in line) for line in text.splitlines())
    return "".join(f"{stamp} {line}\n" for line in clean)


def append_lines(path: Path, lines: str) -> None:
    """Add lines with their ends to the log of a run, from a process that does not train. Raises ``OSError``."""
    durable.append_line(path, lines.encode())


def _said(event: Event) -> str:
    match event:
        case RunStarted() as one:
            return f"training {one.model} from step {one.first_step + 1} to {one.total_steps} on {one.device}"
        case Notice() as one:
            level = "warning" if one.level == "warning" else "note"
            return f"{level}: {one.message}" + (f"\nhint: {one.hint}" if one.hint else "")
        case Evaluated() as one:
            return f"step {one.step}: validation loss {_number(one.loss)}"
        case CheckpointSaved() as one:
            return f"step {one.step}: {one.folder} is saved"
        case Restarted() as one:
            return f"restarted: {one.sentence}"
        case Paused() as one:
            return f"step {one.step}: paused, {one.reason}"
        case Continued() as one:
            return f"step {one.step}: training again after a pause of {one.seconds:.0f} s"
        case TimeJump() as one:
            what = "the machine was asleep for" if one.was_asleep else "the clock was set by"
            return f"note: {what} {one.seconds:.0f} s"
        case RunFinished() as one:
            return f"finished after step {one.step} ({one.reason})"
        case RunStopped() as one:
            return f"stopped after step {one.step} ({_signal(one.signal_number)})"
        case RunFailed() as one:
            first, _, _ = one.message.partition("\n")  # the journal has all of it
            return f"failed: {first}"
        case _:
            return ""


def _number(value: float | None) -> str:
    """Null in the journal is a loss that was not finite."""
    return "not finite" if value is None else f"{value:.4f}"


def _signal(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
