"""Starts one training child, follows its journal, passes signals on, and says what was left. Never imports mlx.

The child lives in its own session, so that Ctrl-C reaches it once, through us, and closing the terminal is a SIGHUP
that we forward: it finishes the step, saves and leaves. Its output goes to a file until it opens the run's own log.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from mlx_finetune.app.running.companions import SAVE_SECONDS, Companions, companions
from mlx_finetune.app.running.endings import Ended, Outcome
from mlx_finetune.app.running.hosts import Hosts
from mlx_finetune.errors import RunError
from mlx_finetune.events import Record, RunFailed, RunFinished, RunStarted, RunStopped
from mlx_finetune.hardware.metal import NOTHING, metal_variables
from mlx_finetune.hardware.safer import Safer
from mlx_finetune.journal import EventFollower
from mlx_finetune.recipe.hardware import HardwareRecipe
from mlx_finetune.rundir import EVENTS, LOG, RunDir

CHILD_MODULE = "mlx_finetune.train.child"
POLL_SECONDS = 0.1
GRACE_SECONDS = 2.0  # for the child to leave after a second signal; a computation inside mlx hears none
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class View(Protocol):
    """Whatever displays a run."""

    def show(self, record: Record) -> None:
        """A new record of the journal."""
        ...

    def tick(self, now: float) -> None:
        """Time has passed; called about ten times a second."""
        ...

    def say(self, message: str) -> None:
        """A sentence for the person at the terminal."""
        ...

    def close(self) -> None:
        """No more calls follow; the terminal is left as it was found."""
        ...


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What the child is asked to do. ``restarts`` were made so far; ``safer`` replaces what the run says itself.

    ``hosts`` are the machines of ``--hostfile``; ``num_ranks`` also counts those that ``mlx.launch`` started.
    ``hardware`` decides about the variables that MLX and Metal are started with, None for the defaults; ``tuned`` are
    the values of this machine for those that are "auto" there (``hardware.metal``). ``shown_by`` is the process that
    shows the beginning of a training in the background.
    """

    recipe: Path
    overrides: tuple[str, ...] = ()
    resume: bool = False
    fork: bool = False
    extend: int | None = None
    restarts: tuple[Mapping[str, object], ...] = ()
    safer: Safer | None = None
    hostfile: Path | None = None
    hosts: Hosts | None = None
    num_ranks: int = 1
    hardware: HardwareRecipe | None = None
    tuned: Mapping[str, int] = field(default_factory=dict[str, int])
    shown_by: int | None = None

    def options(self) -> list[str]:
        """What a user types after ``mlxft train RECIPE``."""
        hostfile = [] if self.hostfile is None else ["--hostfile", str(self.hostfile)]
        return [*self._shared_options(), *hostfile, *self._continuing()]

    def _shared_options(self) -> list[str]:
        """Those that every rank gets."""
        return [argument for override in self.overrides for argument in ("--set", override)]

    def _continuing(self) -> list[str]:
        arguments = ["--resume"] * self.resume + ["--fork"] * self.fork
        return arguments if self.extend is None else [*arguments, "--extend", str(self.extend)]

    def companion_arguments(self) -> list[str]:
        """Arguments of the ranks that follow: what is continued they hear from rank 0."""
        return ["--recipe", str(self.recipe), *self._shared_options()]

    def child_arguments(self) -> list[str]:
        """Arguments after ``python -m mlx_finetune.train.child``."""
        arguments = [*self.companion_arguments(), *self._continuing(), "--parent-pid", str(os.getpid())]
        if self.restarts:
            arguments += ["--restarts", json.dumps(self.restarts)]
        return arguments if self.safer is None else [*arguments, "--safer", json.dumps(self.safer.to_json())]

    @property
    def continues(self) -> bool:
        """True where an existing run goes on, so that its history belongs to what is shown."""
        return self.resume or self.fork or self.extend is not None


@dataclass(slots=True)
class Signals:
    """The signals that arrived here. They are passed on to the child of the moment, or to the next one."""

    say: Callable[[str], None]
    child: subprocess.Popen[bytes] | None = None
    received: list[signal.Signals] = field(default_factory=list[signal.Signals])
    pending: deque[signal.Signals] = field(default_factory=deque[signal.Signals])
    announced: int = 0
    kill_time: float | None = None
    is_training: bool = False  # a step may be at work, whose result is saved first

    def receive(self, number: int, frame: object) -> None:
        """Signal handler; the sentence is printed later, outside the handler."""
        del frame
        self.received.append(signal.Signals(number))
        self.pending.append(signal.Signals(number))
        if self.received.count(signal.SIGINT) > 1 and self.kill_time is None:
            self.kill_time = time.monotonic() + GRACE_SECONDS
        self._pass_on()

    def attach(self, child: subprocess.Popen[bytes]) -> None:
        """From now on ``child`` gets what arrives, and what arrived since the last one ended."""
        self.child, self.is_training = child, False
        self._pass_on()

    def _pass_on(self) -> None:
        """Each signal once, also where the handler interrupts this very loop."""
        with contextlib.suppress(IndexError):
            while self.child is not None:
                self.child.send_signal(self.pending.popleft())

    def insist(self) -> None:
        """Kill a child that is still there some time after a second Ctrl-C. Safe: a checkpoint is whole or absent."""
        if self.kill_time is not None and time.monotonic() >= self.kill_time and self.child is not None:
            self.child.kill()

    def announce(self) -> None:
        """Say what the signals that arrived since the last call mean."""
        while self.announced < len(self.received):
            number = self.received[self.announced]
            self.announced += 1
            if number == signal.SIGINT and self.received[: self.announced].count(number) > 1:
                self.say("leaving at once; everything up to the last checkpoint is safe")
            elif number == signal.SIGINT:
                self.say(f"{self._stopping()}; press Ctrl-C again to leave at once")
            elif self.announced == 1:  # a terminal that closes may send more than one
                self.say(f"{number.name}: {self._stopping()}")

    def _stopping(self) -> str:
        return f"stopping {'once the work at hand is saved' if self.is_training else 'before the next step'}"


@contextmanager
def forwarding(say: Callable[[str], None], numbers: Sequence[signal.Signals] = FORWARDED) -> Generator[Signals]:
    """Take over the signals ``numbers`` while the block runs. One that is ignored (nohup) stays ignored.

    Should the block fail, the child is asked to save and leave, and is waited for: a drawing bug costs no work.
    """
    signals = Signals(say)
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, signals.receive)
    try:
        yield signals
    except BaseException:
        if signals.child is not None and signals.child.poll() is None:
            signals.child.send_signal(signal.SIGINT)
            signals.child.wait()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(
    request: TrainRequest,
    run: RunDir,
    view: View,
    signals: Signals,
    *,
    begun: Callable[[], None] = lambda: None,
    command: Sequence[str] | None = None,
) -> Ended:
    """Run one child to its end and show what it adds to the journal; ``begun`` is called when that is its first line.

    ``command`` replaces ``python -m mlx_finetune.train.child`` in tests. Raises ``RunError`` where no process starts.
    """
    follower = EventFollower(run.file(EVENTS), from_end=True)
    start = list(command) if command is not None else [sys.executable, "-m", CHILD_MODULE]
    run_log_size = _size(run.file(LOG))
    environment = child_environment(os.environ, sys.platform, request.hardware, request.tuned)
    with (
        tempfile.TemporaryFile() as output,  # without a name, so that nothing is left of it should we be killed
        companions(request.hosts, [*start, *request.companion_arguments()], environment) as others,
    ):
        child = _spawn([*start, *request.child_arguments()], output, environment | others.environment)
        signals.attach(child)
        outcome = _follow(child, follower, view, signals, begun, others)
        code = child.wait()
        signals.child = None
        others.end(has_failed=bool(code))
        tail = (*_tail(output, 0), *_log_tail(run.file(LOG), run_log_size))
    if others.has_ended_first and outcome is None:
        return Ended(1, log_tail=(f"error: {others.failure}", f"hint: {others.hint}"))
    is_said = any(f"error: {one}" in tail for one in others.errors)  # by rank 0, which met the same
    if others.failure and code > 0 and not is_said:
        view.say(others.failure)
    killed_by = signal.Signals(-code) if code < 0 else None
    if code and signals.received and (killed_by in signals.received or signals.kill_time is not None):
        code, killed_by = 128 + signals.received[0], None
    return Ended(1 if code < 0 else code, outcome, killed_by, tail)


def child_environment(
    environment: Mapping[str, str],
    platform: str,
    hardware: HardwareRecipe | None = None,
    tuned: Mapping[str, int] = NOTHING,
) -> dict[str, str]:
    """The environment of a process that computes: the user's, and what MLX and Metal read only once, as they start.

    On a Mac that is the watchdog's patience unless ``hardware`` or the user have decided otherwise.
    """
    more = metal_variables(hardware or HardwareRecipe.model_validate({}), environment, platform, tuned)
    return dict(environment) | more


def _spawn(arguments: Sequence[str], output: "IO[bytes]", environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the child in its own session; both its streams go to ``output``. A Mac stays awake for it."""
    try:
        child = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        )
    except OSError as error:
        raise RunError(f"{arguments[0]} cannot be started: {error.strerror}", "mlxft doctor") from error
    if sys.platform == "darwin":
        from mlx_finetune.hardware.awake import keep_awake

        keep_awake(child.pid)
    return child


def _follow(
    child: subprocess.Popen[bytes],
    follower: EventFollower,
    view: View,
    signals: Signals,
    begun: Callable[[], None],
    others: Companions,
) -> Outcome | None:
    """Show the journal until the child has gone and every line of it was read; the last outcome it reported."""
    outcome: Outcome | None = None
    alive, is_new = True, True
    while alive:
        alive = child.poll() is None
        for record in follower.poll():
            if is_new:
                begun()
                is_new = False
            if isinstance(record.event, RunFinished | RunStopped | RunFailed):
                outcome = record.event
            if isinstance(record.event, RunStarted):
                others.patience, signals.is_training = SAVE_SECONDS, True
            view.show(record)
        signals.announce()
        signals.insist()
        others.check(child)
        view.tick(time.time())
        if alive:
            time.sleep(POLL_SECONDS)
    return outcome


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _log_tail(path: Path, start: int) -> list[str]:
    if _size(path) <= start:
        return []
    with path.open("rb") as file:
        return _tail(file, start)


def _tail(file: "IO[bytes]", start: int, *, max_bytes: int = 40_000, max_lines: int = 100) -> list[str]:
    """The last lines of ``file`` that were written after byte ``start``."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(start, end - max_bytes))
    return file.read().decode("utf-8", "replace").splitlines()[-max_lines:]
