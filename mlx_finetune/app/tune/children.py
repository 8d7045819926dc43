"""One child process of ``mlxft tune``: started with the settings to try, watched, killed when its time is up.

However it ends is a result: that it crashed, was killed, hung or had no memory is said in the words that an end of
training has. Never imports mlx.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any, cast

from mlx_finetune.app.running.endings import Ended, read_ending
from mlx_finetune.app.running.launch import child_environment
from mlx_finetune.app.tune.subject import Subject
from mlx_finetune.errors import RunError
from mlx_finetune.hardware.awake import keep_awake
from mlx_finetune.hardware.tune import Case, Failure, Run
from mlx_finetune.hardware.tuned import TunedSettings

MODULE = "mlx_finetune.train.trial"
STEP_SECONDS = 6.0  # of timed steps in the first process, which decides how many there are in all of them
POLL_SECONDS = 0.05
LOG_LINES = 100


@dataclass(frozen=True, slots=True)
class Report:
    """What a process said that came to its end; ``others_share`` of the processors was used by other programs."""

    run: Run
    case: Case
    others_share: float


#: ``(settings, number of steps or 0, seconds until it is killed) -> Report or Failure``.
RunTrial = Callable[[TunedSettings, int, float], Report | Failure]


def run_trial(
    subject: Subject,
    settings: TunedSettings,
    num_steps: int,
    timeout: float,
    *,
    tick: Callable[[], None] = lambda: None,
    command: Sequence[str] | None = None,
) -> Report | Failure:
    """Train some steps of ``subject`` with ``settings``. ``tick`` is called about twenty times a second meanwhile.

    ``command`` replaces ``python -m`` and the module in tests. Raises ``RunError`` where no process can be started.
    """
    start = list(command) if command is not None else [sys.executable, "-m", MODULE]
    overrides = [*subject.overrides, *settings.overrides()]
    arguments = [
        *start,
        *("--recipe", str(subject.path), "--steps", str(num_steps), "--seconds", str(STEP_SECONDS)),
        *("--parent-pid", str(os.getpid())),
        *(part for one in overrides for part in ("--set", one)),
    ]
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as errors:
        try:
            child = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=errors,
                env=child_environment(os.environ, sys.platform, subject.hardware) | settings.environment(),
                start_new_session=True,  # Ctrl-C is ours; the child is killed when we leave
            )
        except OSError as error:
            raise RunError(f"{arguments[0]} cannot be started: {error.strerror}", "mlxft doctor") from error
        holder = keep_awake(child.pid)
        try:
            is_late = _wait(child, timeout, tick)
        finally:
            _end(child)
            if holder is not None:
                holder.wait()  # it ends with the child
        return _read(child.returncode, _lines(said), _lines(errors), f"{timeout:.0f} s" if is_late else "")


def _wait(child: "subprocess.Popen[bytes]", timeout: float, tick: Callable[[], None]) -> bool:
    """True where the time was up first."""
    deadline = time.monotonic() + timeout
    while child.poll() is None:
        if time.monotonic() >= deadline:
            return True
        tick()
        time.sleep(POLL_SECONDS)
    return False


def _end(child: "subprocess.Popen[bytes]") -> None:
    """Nothing of the child is left, whatever it started itself."""
    if child.poll() is None:
        with suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _lines(file: "IO[bytes]") -> list[str]:
    file.seek(0)
    return file.read().decode("utf-8", "replace").splitlines()[-LOG_LINES:]


def _read(code: int, said: Sequence[str], errors: Sequence[str], late_after: str) -> Report | Failure:
    if late_after:
        return Failure("timed_out", f"it was not done after {late_after} and was killed")
    if code == 0 and said:
        with suppress(ValueError, KeyError, TypeError):
            return _report(json.loads(said[-1])["trial"])
    killed_by = signal.Signals(-code) if code < 0 else None
    ending = read_ending(Ended(1 if code < 0 else code, None, killed_by, tuple(errors)))
    if ending.need == "less_memory" or code == 3:
        return Failure("no_memory", ending.message)
    return Failure("refused" if ending.kind == "refused" else "crashed", ending.message)


def _report(found: Mapping[str, Any]) -> Report:
    run, case = found["run"], cast("dict[str, Any]", found["case"])
    case["fixed"] = frozenset(case["fixed"])
    numbers = {name: tuple(float(one) for one in run[name]) for name in ("seconds", "losses")}
    if not numbers["seconds"]:
        raise ValueError("no step was timed")
    return Report(
        Run(**numbers, peak_bytes=int(run["peak_bytes"]), limit_bytes=int(run["limit_bytes"])),
        Case(**case),
        float(found["others_share"]),
    )
