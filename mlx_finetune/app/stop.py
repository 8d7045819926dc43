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

    ``now`` sends SIGINT again and again instead, as an impatient Ctrl-C: nothing is saved any more. The supervisor is
    asked where there is one: it passes the signal on and does not start the training again. A training process that was
    asked before its supervisor was there may crash and be started again; then the new one is asked. Raises ``RunError``
    where nothing is at work, and where the process belongs to another user.
    """
    if running_process(run) is None:
        raise RunError(f"no training is at work in {run.path}", f"see how it ended with: mlxft runs show {run.name}")
    begin, num_asked, asked_alone = time.monotonic(), 0, 0
    while (pid := running_process(run)) is not None:
        seconds = time.monotonic() - begin
        supervisor, training = lock_holder(run.file(SUPERVISOR)), lock_holder(run.file(LOCK))
        is_another = bool(asked_alone and training and training != asked_alone)
        if pid and (not num_asked or is_another or (now and seconds >= num_asked * AGAIN_SECONDS)):
            _ask(pid, signal.SIGINT if now else signal.SIGTERM)
            num_asked, asked_alone = num_asked + 1, 0 if supervisor else pid
        if now and training and supervisor is None and seconds >= AGAIN_SECONDS + GRACE_SECONDS:
            _send(training, signal.SIGKILL)  # hears nothing, and nobody else does it; a checkpoint is whole or absent
        waiting(pid, seconds)
        time.sleep(POLL_SECONDS)


def _ask(pid: int, number: signal.Signals) -> None:
    """Send the signal; a supervisor that Ctrl-Z has stopped is woken so that it hears it."""
    _send(pid, number)
    _send(pid, signal.SIGCONT)


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        try:
            os.kill(pid, number)
        except PermissionError as error:
            raise RunError(f"process {pid} belongs to another user", f"stop it there with: kill {pid}") from error
