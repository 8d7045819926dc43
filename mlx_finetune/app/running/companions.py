"""The ranks other than 0 of a training that ``--hostfile`` starts: begins them, watches them, leaves none behind.

They write nothing but what goes wrong, to a file that is shown when they end early. Rank 0 notices by itself that one
is gone, because its connections close; where it cannot, because it still waits for the first connection, it is ended.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mlx_finetune.app.running.hosts import Host, Hosts, free_port, passed_on, remote_command
from mlx_finetune.errors import RunError

NOTICE_SECONDS = 10.0  # for rank 0 to find out that another one has gone
SAVE_SECONDS = 120.0  # the same once it has something to save
LEAVE_SECONDS = 10.0  # for the others to leave after rank 0
FAILED_SECONDS = 3.0  # the same where rank 0 has failed: they may still wait for its connection
KILL_SECONDS = 5.0
MAX_LINES = 5
SSH_FAILED = 255  # ssh itself could not connect, or lost its connection

_INSISTING = (signal.SIGTERM, signal.SIGKILL)


@dataclass(slots=True)
class _Companion:
    rank: int
    host: Host
    process: subprocess.Popen[bytes]
    output: Path

    def lines(self) -> list[str]:
        """What it wrote."""
        return [line.strip() for line in self.output.read_text("utf-8", "replace").splitlines() if line.strip()]

    def errors(self) -> tuple[str, ...]:
        """What it said of itself as an error, without its number."""
        start = f"rank {self.rank}: error: "
        return tuple(line.removeprefix(start) for line in self.lines() if line.startswith(start))

    def hint(self) -> str:
        """What to do about its end."""
        if self.process.returncode == SSH_FAILED and not self.host.is_here:
            try_it = shlex.join(["ssh", "--", self.host.ssh, "true"])
            return f"this has to work without a password: {try_it} (docs/several-macs.md, step 2)"
        return "mend that, then give the same command again"

    def describe(self) -> str:
        """How it ended, in words, with its last words."""
        code = self.process.returncode
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        said = "; ".join(self.lines()[-MAX_LINES:])
        return f"rank {self.rank} on {self.host.ssh} {how}" + (f": {said}" if said else "")


@dataclass(slots=True)
class Companions:
    """Those of one training process. ``environment`` is what rank 0 needs to find them; ``failure`` says, once they
    have ended, which of them failed by itself and how, ``hint`` what to do, ``errors`` what it called an error itself.
    ``patience`` are the seconds that rank 0 has to notice it."""

    environment: dict[str, str] = field(default_factory=dict[str, str])
    failure: str = ""
    hint: str = ""
    errors: tuple[str, ...] = ()
    patience: float = NOTICE_SECONDS
    _running: list[_Companion] = field(default_factory=list[_Companion])
    _deadline: float | None = None
    _num_signals: int = 0

    def start(
        self, hosts: Hosts, arguments: Sequence[str], folder: Path, environment: Mapping[str, str] = os.environ
    ) -> None:
        """Start ranks 1, 2, ... with ``arguments``, a whole command. Files go to ``folder``. Raises ``RunError``.

        What counts of ``environment`` on every machine reaches the others too.
        """
        port = free_port(hosts, os.getpid())
        for rank, host in enumerate(hosts.hosts):
            variables, files = hosts.environment(rank, port)
            if host.is_here:
                variables |= {name: _write(folder / f"{name}-{rank}", content) for name, content in files.items()}
            if rank == 0:
                self.environment = variables
                continue
            command, is_here = list(arguments), host.is_here
            if not is_here:
                command = remote_command(host, command, passed_on(environment) | variables, files, Path.cwd())
            own = dict(environment) | (variables if is_here else {})
            output = folder / f"said-{rank}"
            self._running.append(_Companion(rank, host, _spawn(command, own, output), output))

    def check(self, first: "subprocess.Popen[bytes]") -> None:
        """Called again and again while rank 0 runs: ends ``first`` where it does not notice that a rank has failed."""
        if self._deadline is None:
            if any(one.process.poll() for one in self._running):
                self._deadline = time.monotonic() + self.patience
        elif time.monotonic() > self._deadline and self._num_signals < len(_INSISTING):
            self._deadline = time.monotonic() + KILL_SECONDS
            first.send_signal(_INSISTING[self._num_signals])
            self._num_signals += 1

    @property
    def has_ended_first(self) -> bool:
        """True where rank 0 had to be ended because it could not notice that another one has gone."""
        return self._num_signals > 0

    def end(self, *, has_failed: bool) -> None:
        """Wait for the others to leave after rank 0, and end those that do not; after this none of them is left."""
        deadline = time.monotonic() + (FAILED_SECONDS if has_failed else LEAVE_SECONDS)
        for one in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                one.process.wait(max(0.1, deadline - time.monotonic()))
        if not self._running:
            return
        failed = [one for one in self._running if one.process.poll()]
        failed.sort(key=lambda one: one.process.returncode == 1)  # one that only lost its neighbour says 1
        if failed:
            self.failure, self.hint, self.errors = failed[0].describe(), failed[0].hint(), failed[0].errors()
        for one in self._running:
            for number in _INSISTING:
                if one.process.poll() is None:
                    one.process.send_signal(number)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        one.process.wait(KILL_SECONDS)
            if one.process.stdin is not None:
                one.process.stdin.close()
        self._running.clear()


@contextmanager
def companions(
    hosts: Hosts | None, arguments: Sequence[str], environment: Mapping[str, str] = os.environ
) -> Generator[Companions]:
    """Start the ranks of ``hosts`` but for the first, none where there are no others; in the end they have left."""
    others = Companions()
    if hosts is None or hosts.num_ranks == 1:
        yield others
        return
    with tempfile.TemporaryDirectory(prefix="mlxft-ranks-") as folder:
        try:
            others.start(hosts, arguments, Path(folder), environment)
            yield others
        finally:
            others.end(has_failed=True)


def _spawn(command: Sequence[str], environment: dict[str, str], output: Path) -> "subprocess.Popen[bytes]":
    """A process in a session of its own that writes to ``output``, with an open stdin that says nothing."""
    try:
        with output.open("wb") as file:
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
    except OSError as error:
        raise RunError(f"{command[0]} cannot be started: {error.strerror}", "mlxft doctor") from error


def _write(path: Path, content: str) -> str:
    path.write_text(content, "utf-8")
    return str(path)
