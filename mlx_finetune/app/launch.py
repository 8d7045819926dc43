"""Starts the training child, follows its journal, passes signals on, and says how it ended. Never imports mlx.

The child lives in its own session, so that Ctrl-C reaches it once, through us, and closing the terminal is a SIGHUP
that we forward: it finishes the step, saves and leaves. Its output goes to a file until it opens the run's own log.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from mlx_finetune.events import EventFollower, Record, RunFailed, RunFinished, RunStopped
from mlx_finetune.rundir import EVENTS, LOG, RunDir

CHILD_MODULE = "mlx_finetune.train.child"
POLL_SECONDS = 0.1
GRACE_SECONDS = 2.0  # for the child to leave after a second signal; a computation inside mlx hears none
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

#: Why a process is ended by a signal it did not ask for, in words.
CAUSES = {
    signal.SIGKILL: "was killed from outside, most often because memory ran out",
    signal.SIGABRT: "was aborted by a library; on a Mac mostly the GPU watchdog or too little memory",
    signal.SIGSEGV: "crashed inside a library",
    signal.SIGBUS: "crashed reading a file or memory, for instance on a full disk",
}


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
    """What the child is asked to do."""

    recipe: Path
    overrides: tuple[str, ...] = ()
    resume: bool = False
    fork: bool = False
    extend: int | None = None

    def child_arguments(self) -> list[str]:
        """Arguments after ``python -m mlx_finetune.train.child``."""
        arguments = ["--recipe", str(self.recipe)]
        for override in self.overrides:
            arguments += ["--set", override]
        arguments += ["--resume"] * self.resume + ["--fork"] * self.fork
        if self.extend is not None:
            arguments += ["--extend", str(self.extend)]
        return [*arguments, "--parent-pid", str(os.getpid())]

    @property
    def continues(self) -> bool:
        """True where an existing run goes on, so that its history belongs to what is shown."""
        return self.resume or self.fork or self.extend is not None


@dataclass(frozen=True, slots=True)
class Ended:
    """How the child ended. ``outcome`` is its last word in the journal; ``killed_by`` a signal nobody here sent."""

    exit_code: int
    outcome: RunFinished | RunStopped | RunFailed | None
    killed_by: signal.Signals | None
    log_tail: tuple[str, ...]

    def crash(self) -> str:
        """One sentence for an end without a word in the journal, "" where the child explained itself."""
        if self.outcome is not None or self.exit_code == 0:
            return ""
        if self.killed_by is not None:
            cause = CAUSES.get(self.killed_by, "was ended by a signal")
            return f"the training process {cause} ({self.killed_by.name})"
        return f"the training process ended with code {self.exit_code} and without a word"


@dataclass(slots=True)
class _Signals:
    """Forwards signals to the child and remembers which arrived."""

    child: subprocess.Popen[bytes]
    say: Callable[[str], None]
    received: list[signal.Signals] = field(default_factory=list[signal.Signals])
    announced: int = 0
    kill_time: float | None = None

    def forward(self, number: int, frame: object) -> None:
        """Signal handler: pass it on; the sentence is printed later, outside the handler."""
        del frame
        self.received.append(signal.Signals(number))
        if len(self.received) > 1 and self.kill_time is None:
            self.kill_time = time.monotonic() + GRACE_SECONDS
        if self.child.poll() is None:
            self.child.send_signal(number)

    def insist(self) -> None:
        """Kill a child that is still there some time after a second signal. Safe: a checkpoint is whole or absent."""
        if self.kill_time is not None and time.monotonic() >= self.kill_time and self.child.poll() is None:
            self.child.kill()

    def announce(self) -> None:
        """Say what the signals that arrived since the last call mean."""
        while self.announced < len(self.received):
            number = self.received[self.announced]
            self.announced += 1
            if self.announced > 1:
                self.say("leaving at once; everything up to the last checkpoint is safe")
            elif number == signal.SIGINT:
                self.say("finishing the step and saving; press Ctrl-C again to leave at once")
            else:
                self.say(f"{number.name}: finishing the step and saving")


class NewEvents:
    """What a child adds to a journal that may hold an earlier part of the run.

    A resumed child first cuts the journal back to its checkpoint, so the end of the old file is no place to start
    from: new lines begin where the file first differs from what it was.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._old = path.read_bytes() if path.is_file() else b""
        self._seen = _stamp(path)
        self._follower: EventFollower | None = None
        self._num_old_lines = 0

    def poll(self) -> Iterator[Record]:
        """Records that were added since the last call, in order."""
        if self._follower is None and not self._has_begun():
            return
        assert self._follower is not None, "set once the journal has begun"
        for record in self._follower.poll():
            if record.index >= self._num_old_lines:
                yield record

    def _has_begun(self) -> bool:
        """True from the first new byte on."""
        stamp = _stamp(self._path)
        if stamp == self._seen:
            return False
        self._seen = stamp
        content = self._path.read_bytes() if stamp else b""
        start = common_lines(self._old, content)
        if start == len(content):
            return False
        self._num_old_lines = content.count(b"\n", 0, start)
        self._follower, self._old = EventFollower(self._path), b""
        return True


def common_lines(before: bytes, after: bytes) -> int:
    """Bytes of the longest common beginning, back to the end of its last whole line (all of ``after`` if it is one)."""
    low, high = 0, min(len(before), len(after))
    while low < high:
        middle = (low + high + 1) // 2
        if before[low:middle] == after[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low if low == len(after) else after.rfind(b"\n", 0, low) + 1


def train(request: TrainRequest, run: RunDir, view: View, *, command: Sequence[str] | None = None) -> Ended:
    """Run the child to its end and show what it adds to the journal.

    ``command`` replaces ``python -m mlx_finetune.train.child`` in tests.
    """
    follower = NewEvents(run.file(EVENTS))
    start = list(command) if command is not None else [sys.executable, "-m", CHILD_MODULE]
    run_log_size = _size(run.file(LOG))
    with tempfile.NamedTemporaryFile(prefix="mlxft-", suffix=".log") as output:
        child = _spawn([*start, *request.child_arguments()], output)
        with _forwarding(child, view) as signals:
            outcome = _follow(child, follower, view, signals)
            code = child.wait()
        tail = (*_tail(Path(output.name), 0), *_tail(run.file(LOG), run_log_size))
    killed_by = signal.Signals(-code) if code < 0 else None
    if signals.received and (killed_by in signals.received or signals.kill_time is not None):
        code, killed_by = 128 + signals.received[0], None
    return Ended(1 if code < 0 else code, outcome, killed_by, tail)


def _spawn(arguments: Sequence[str], output: "IO[bytes]") -> subprocess.Popen[bytes]:
    """Start the child in its own session; both its streams go to ``output``."""
    return subprocess.Popen(
        arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    )


@contextmanager
def _forwarding(child: subprocess.Popen[bytes], view: View) -> Generator[_Signals]:
    """Forward signals while the block runs. One that is ignored (nohup) stays ignored.

    Should the block fail, the child is asked to save and leave, and is waited for: a drawing bug costs no work.
    """
    signals = _Signals(child, view.say)
    before = {number: signal.getsignal(number) for number in FORWARDED}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, signals.forward)
    try:
        yield signals
    except BaseException:
        if child.poll() is None:
            child.send_signal(signal.SIGINT)
            child.wait()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _follow(
    child: subprocess.Popen[bytes], follower: NewEvents, view: View, signals: _Signals
) -> RunFinished | RunStopped | RunFailed | None:
    """Show the journal until the child has gone and every line of it was read; the last outcome it reported."""
    outcome: RunFinished | RunStopped | RunFailed | None = None
    alive = True
    while alive:
        alive = child.poll() is None
        for record in follower.poll():
            if isinstance(record.event, RunFinished | RunStopped | RunFailed):
                outcome = record.event
            view.show(record)
        signals.announce()
        signals.insist()
        view.tick(time.time())
        if alive:
            time.sleep(POLL_SECONDS)
    return outcome


def _stamp(path: Path) -> tuple[int, int] | None:
    """Size and modification time, by which a change of the file is noticed."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_size, status.st_mtime_ns


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _tail(path: Path, start: int, *, max_bytes: int = 20_000, max_lines: int = 40) -> list[str]:
    """The last lines of ``path`` that were written after byte ``start``."""
    if _size(path) <= start:
        return []
    with path.open("rb") as file:
        file.seek(max(start, _size(path) - max_bytes))
        return file.read().decode("utf-8", "replace").splitlines()[-max_lines:]
