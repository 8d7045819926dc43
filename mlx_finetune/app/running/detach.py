"""A training that outlives the terminal: its supervisor gets a session of its own and writes to the run's log.

The terminal follows until step 1 is near, so that a refusal or a failure to load is seen where it was asked for.
"""

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlx_finetune.app.running.endings import Ended, Outcome, read_ending
from mlx_finetune.app.running.launch import POLL_SECONDS, Signals, TrainRequest, View, forwarding
from mlx_finetune.app.running.unbegun import Before
from mlx_finetune.errors import RunError
from mlx_finetune.events import Record, RunFailed, RunFinished, RunStarted, RunStopped
from mlx_finetune.events_log import stamped
from mlx_finetune.journal import EventFollower
from mlx_finetune.rundir import EVENTS, LOG, RunDir


class LogView:
    """The view of a supervisor in the background: sentences go to stderr, from ``RunStarted`` on into the run's log.

    Before that stderr is what the terminal prints should the start fail.
    """

    def __init__(self, fold: Callable[[Record], None], redirect: Callable[[], None]) -> None:
        self._fold = fold
        self._redirect = redirect
        self._is_redirected = False

    def show(self, record: Record) -> None:
        """Nothing to see: the journal has it."""
        self._fold(record)
        if isinstance(record.event, RunStarted) and not self._is_redirected:
            self._redirect()
            self._is_redirected = True

    def tick(self, now: float) -> None:
        """Nothing moves in a log."""
        del now

    def say(self, message: str) -> None:
        """One line; in the log it begins with the time."""
        sys.stderr.write(stamped(message, time.time()) if self._is_redirected else f"{message}\n")
        sys.stderr.flush()

    def close(self) -> None:
        """Nothing to restore."""


@dataclass(slots=True)
class Seen:
    """The last word of the run that was shown here, None where it has had none."""

    outcome: Outcome | None = None


def train_detached(request: TrainRequest, run: RunDir, view: View) -> tuple[Sequence[str], int]:
    """Start the supervisor and show its run until that has started; what is said then, and the exit code.

    Ctrl-C and SIGTERM before that stop the run; a terminal that closes does not. Raises ``RunError``.
    """
    before, seen = Before.look(run), Seen()
    follower = EventFollower(run.file(EVENTS), from_end=True)
    arguments = [sys.executable, "-m", "mlx_finetune", "train", str(request.recipe), *request.options()]
    with tempfile.TemporaryFile() as talk:
        told: list[str] = []  # the supervisor says the same about the signals that it gets from here

        def say(message: str) -> None:
            told.append(message)
            view.say(message)

        with forwarding(say, (signal.SIGINT, signal.SIGTERM)) as signals:
            try:
                supervisor = subprocess.Popen(
                    [*arguments, "--in-background"],
                    stdin=subprocess.DEVNULL,
                    stdout=talk,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise RunError(f"{sys.executable} cannot be started: {error.strerror}", "mlxft doctor") from error
            signals.attach(supervisor)
            code = _follow_start(supervisor, follower, seen, view, signals)
        if code is not None:
            talk.seek(0)
            said = talk.read().decode("utf-8", "replace").splitlines()
            before.restore(read_ending(Ended(code, seen.outcome, None, tuple(said))))
            return [line for line in said if line not in told], code if code >= 0 else 128 - code
    supervisor.returncode = 0  # nobody here waits for it any more
    return [
        f"the training goes on in the background (process {supervisor.pid}); what it says goes to {run.file(LOG)}",
        f"watch it: mlxft monitor {run.name}",
        f"stop it:  mlxft stop {run.name}",
    ], 0


def _follow_start(
    supervisor: subprocess.Popen[bytes], follower: EventFollower, seen: Seen, view: View, signals: Signals
) -> int | None:
    """Show the journal until the run has started (None), or until the supervisor has ended (its code)."""
    has_started = False
    while True:
        code = supervisor.poll()
        for record in follower.poll():
            view.show(record)
            if isinstance(record.event, RunFinished | RunStopped | RunFailed):
                seen.outcome = record.event
            has_started = has_started or isinstance(record.event, RunStarted)
        signals.announce()
        view.tick(time.time())
        if code is not None or (has_started and not signals.received):
            return code
        time.sleep(POLL_SECONDS)
