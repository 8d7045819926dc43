"""Ask the process at work in a run folder to finish its step, save and leave; or to leave at once."""

import contextlib
import os
import signal
import time
from collections.abc import Callable

from mlx_finetune.app.launch import GRACE_SECONDS, POLL_SECONDS
from mlx_finetune.errors import RunError
from mlx_finetune.rundir import LOCK, SUPERVISOR, RunDir, lock_holder, running_process

AGAIN_SECONDS = 0.5  # between two signals of one kind, which would else count as one


def stop(run: RunDir, *, now: bool, waiting: Callable[[int, float], None]) -> None:
    """Send SIGTERM and wait until the folder is free; ``waiting`` is told the process and the seconds meanwhile.

    ``now`` sends a second one, after which nothing is saved any more. The supervisor is asked where there is one: it
    passes the signal on and does not start the training again. Raises ``RunError`` where nothing is at work, and where
    the process belongs to another user.
    """
    pid = running_process(run)
    if pid is None:
        raise RunError(f"no training is at work in {run.path}", f"see how it ended with: mlxft runs show {run.name}")
    begin = time.monotonic()
    has_asked = has_insisted = False
    while pid is not None:
        seconds = time.monotonic() - begin
        if pid and not has_asked:
            _ask(pid)
            has_asked, begin = True, time.monotonic()
        elif pid and now and not has_insisted and seconds >= AGAIN_SECONDS:
            _ask(pid)
            has_insisted = True
        elif has_insisted and seconds >= AGAIN_SECONDS + GRACE_SECONDS:
            _kill_alone(run)
        waiting(pid, seconds)
        time.sleep(POLL_SECONDS)
        pid = running_process(run)


def _ask(pid: int) -> None:
    """SIGTERM; a supervisor that Ctrl-Z has stopped is woken so that it hears it."""
    _send(pid, signal.SIGTERM)
    _send(pid, signal.SIGCONT)


def _kill_alone(run: RunDir) -> None:
    """Kill a training process that hears nothing and has no supervisor that would do it. A checkpoint is whole."""
    pid = lock_holder(run.file(LOCK))
    if pid and lock_holder(run.file(SUPERVISOR)) is None:
        _send(pid, signal.SIGKILL)


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        try:
            os.kill(pid, number)
        except PermissionError as error:
            raise RunError(f"process {pid} belongs to another user", f"stop it there with: kill {pid}") from error
