"""The parent's side of the trackers: starts their processes, hands on what they have to say, and leaves them alone.

A process that ends, fails or hangs costs one warning, on the terminal and in the run's log; the training never waits
for it. At the end it gets a few seconds here, and ten minutes of its own to send the rest.
"""

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO

from mlx_finetune.app.running.launch import View
from mlx_finetune.errors import MlxftError
from mlx_finetune.events import Record
from mlx_finetune.events_log import append_lines, stamped
from mlx_finetune.rundir import LOG, TRACKERS, RunDir

FOLLOWER = "mlx_finetune.app.trackers.follow"
#: Without a sign of life for so long a tracker hangs; its library may be loading, or waiting for a network.
HANG_SECONDS = 120.0
#: What the end of a training waits for all of them together.
END_SECONDS = 10.0


@dataclass(slots=True)
class _Process:
    name: str
    process: subprocess.Popen[bytes]
    errors: IO[bytes]
    last_sign: float
    text: bytes = b""
    is_warned: bool = False


@dataclass(slots=True)
class Trackers:
    """The processes of one training. ``say`` is told each warning once."""

    run: RunDir
    say: Callable[[str], None]
    processes: list[_Process] = field(default_factory=list[_Process])

    def start(self, names: Sequence[str], *, is_fork: bool, command: Sequence[str] | None = None) -> None:
        """One process for each name; one that does not start is a warning."""
        start = list(command) if command is not None else [sys.executable, "-m", FOLLOWER]
        since = repr(round(time.time() - 0.001, 3))  # times in a journal are rounded, perhaps down
        for name in names:
            arguments = ["--tracker", name, "--run", str(self.run.path), "--since", since]
            errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
            try:
                process = subprocess.Popen(
                    [*start, *arguments, *(["--fork"] if is_fork else [])],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    start_new_session=True,
                )
            except OSError as error:
                errors.close()
                self._warn(f"{name} cannot be started, and the training goes on without it: {error.strerror}")
                continue
            assert process.stdout is not None
            os.set_blocking(process.stdout.fileno(), False)
            self.processes.append(_Process(name, process, errors, time.monotonic()))

    def look(self) -> None:
        """Read what the processes said; never waits."""
        for one in self.processes:
            self._read(one)
            code = one.process.poll()
            if code not in (None, 0):
                self._read(one)
                self._warn_once(one, f"{one.name} ended ({_how(code or 0)}), and the training goes on without it")
            elif code is None and time.monotonic() - one.last_sign > HANG_SECONDS:
                self._warn_once(
                    one, f"{one.name} does not answer, and the training goes on; it is told the rest if it comes back"
                )

    def end(self) -> None:
        """No more events follow: wait a little for the rest to be sent, then leave the processes to themselves."""
        for one in self.processes:
            if one.process.stdin is not None:
                with suppress(OSError):
                    one.process.stdin.close()
        until = time.monotonic() + END_SECONDS
        while time.monotonic() < until and any(one.process.poll() is None for one in self.processes):
            self.look()
            time.sleep(0.05)
        self.look()
        for one in self.processes:
            if one.process.poll() is None:
                if not one.is_warned:
                    self.say(f"note: {one.name} is still sending; it goes on by itself for at most ten minutes")
                one.process.returncode = 0  # nobody here waits for it any more
            assert one.process.stdout is not None
            one.process.stdout.close()
            one.errors.close()

    def _read(self, one: _Process) -> None:
        assert one.process.stdout is not None
        with suppress(OSError):
            while content := os.read(one.process.stdout.fileno(), 65536):
                one.last_sign = time.monotonic()
                one.text += content
        *lines, one.text = one.text.split(b"\n")
        for line in lines:
            if line:
                self._warn_once(one, line.decode("utf-8", "replace").removeprefix("warning: "))

    def _warn_once(self, one: _Process, message: str) -> None:
        if not one.is_warned:
            one.is_warned = True
            self._warn(message)

    def _warn(self, message: str) -> None:
        self.say(f"warning: {message}")
        if self.run.path.is_dir():
            with suppress(OSError, MlxftError):
                append_lines(self.run.file(LOG), stamped(f"warning: {message}", time.time()))


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


class TrackedView:
    """A view that also looks at the trackers, as often as time passes for it."""

    def __init__(self, view: View, trackers: Trackers) -> None:
        self._view = view
        self._trackers = trackers

    def show(self, record: Record) -> None:
        """As the view does."""
        self._view.show(record)

    def tick(self, now: float) -> None:
        """As the view does, and a look at the trackers."""
        self._trackers.look()
        self._view.tick(now)

    def say(self, message: str) -> None:
        """As the view does."""
        self._view.say(message)

    def close(self) -> None:
        """As the view does."""
        self._view.close()


@contextmanager
def tracked(names: Sequence[str], run: RunDir, view: View, *, is_fork: bool) -> Generator[View]:
    """The view to train with: the same one without ``names``, else one that keeps an eye on their processes."""
    if not names:
        yield view
        return
    trackers = Trackers(run, view.say)
    trackers.start(names, is_fork=is_fork)
    try:
        yield TrackedView(view, trackers)
    finally:
        trackers.end()


def look_lines(names: Sequence[str], run: RunDir) -> list[str]:
    """How to see what was told, one line for each tracker that was told anything."""
    from mlx_finetune.app.trackers.names import LIBRARIES

    return [
        f"{name}: {LIBRARIES[name].look.replace('FOLDER', shlex.quote(str(run.file(TRACKERS) / name)))}"
        for name in names
        if (run.file(TRACKERS) / f"{name}.json").is_file()
    ]
