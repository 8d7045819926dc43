"""What can be asked of a run at work from outside: to save now, to finish its step and leave, or to leave at once.

Everything is a signal to a process that holds a lock of the run folder. ``stop`` and ``save_now`` ask and return at
once; what comes of it is in the journal. ``stop_and_wait`` is ``mlxft stop``.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable

from mlx_finetune.app.running.launch import GRACE_SECONDS, POLL_SECONDS
from mlx_finetune.errors import RunError
from mlx_finetune.rundir import LOCK, SAVE_SIGNAL, SUPERVISOR, RunDir, lock_holder, running_process

AGAIN_SECONDS = 0.5  # between two signals of one kind, which would else count as one


def stop(run: RunDir) -> int:
    """Ask the run to finish its step, save and leave; the process that was asked.

    The supervisor is asked where there is one: it passes the signal on and does not start the training again. Raises
    ``RunError`` where nothing is at work, where it has only just begun, and where the process belongs to another user.
    """
    pid = running_process(run)
    if pid is None:
        raise _idle(run)
    if not pid:
        raise _too_early(run)
    _ask(pid, signal.SIGTERM)
    return pid


def save_now(run: RunDir) -> int:
    """Ask the training process for a checkpoint after the step at hand, whereupon it goes on; the process asked.

    Of several ranks the one that writes is asked. What is learned does not change. A request is kept until a step is
    done that is not saved yet: one that comes while the model is loaded means step 1, one in a pause the step after it.
    Raises ``RunError`` as ``stop`` does.
    """
    pid = lock_holder(run.file(LOCK))
    if pid is None and lock_holder(run.file(SUPERVISOR)) is None:
        raise _idle(run)
    if not pid:
        raise _too_early(run)
    _send(pid, SAVE_SIGNAL)
    return pid


def stop_and_wait(run: RunDir, *, now: bool, waiting: Callable[[int, float], None]) -> None:
    """``stop``, and wait until the folder is free; ``waiting`` is told the process and the seconds meanwhile.

    ``now`` sends SIGINT again and again instead, as an impatient Ctrl-C: nothing is saved any more. A training process
    that was asked before its supervisor was there may crash and be started again; then the new one is asked. Raises
    ``RunError`` where nothing is at work, and where the process belongs to another user.
    """
    if running_process(run) is None:
        raise _idle(run)
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


def _idle(run: RunDir) -> RunError:
    return RunError(f"no training is at work in {run.path}", f"see how it ended with: mlxft runs show {run.name}")


def _too_early(run: RunDir) -> RunError:
    """Between two processes of a run, or before the first one has written its number."""
    return RunError(f"the training process of {run.path} is only just starting", "ask again in a moment")


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
