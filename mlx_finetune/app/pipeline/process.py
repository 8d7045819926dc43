"""One command of mlxft as a process of its own: what it says is passed on, and its last error is kept.

It lives in its own session, so that Ctrl-C reaches it once, through us; a second Ctrl-C ends it at once.
"""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mlx_finetune.app.pipeline.carry_out import Ended
from mlx_finetune.app.running.launch import POLL_SECONDS, forwarding
from mlx_finetune.errors import Interrupted, RunError


@contextmanager
def leaving() -> Generator[None]:
    """Between two processes SIGTERM and SIGHUP leave as Ctrl-C does; one that is ignored (nohup) stays ignored.

    Raises ``Interrupted``.
    """

    def leave(number: int, frame: object) -> None:
        del frame
        raise Interrupted(f"stopped by {signal.Signals(number).name}", signal_number=number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_command(words: Sequence[str], log: Path | None, say: Callable[[str], None]) -> Ended:
    """Run ``mlxft WORDS`` to its end. Its stdout goes to the end of ``log``, nowhere without one; stderr to ``say``.

    Raises ``RunError`` where no process starts.
    """
    said: list[str] = []

    def listen(stream: IO[bytes]) -> None:
        for line in stream:
            said.append(line.decode("utf-8", "replace").rstrip())
            say(said[-1])

    output = log.open("ab") if log is not None else None
    try:
        with forwarding(say) as signals:
            child = _spawn(words, output)
            assert child.stderr is not None
            reader = threading.Thread(target=listen, args=(child.stderr,), daemon=True)
            reader.start()
            signals.attach(child)
            while child.poll() is None:
                signals.announce()
                signals.insist()
                time.sleep(POLL_SECONDS)
            signals.child = None
            reader.join()
    finally:
        if output is not None:
            output.close()
    code = child.returncode
    if signals.received:
        return Ended(128 + signals.received[0] if code else 0, stop_signal=signals.received[0])
    if code < 0:
        return Ended(1, f"the process was ended by signal {-code}")
    return Ended(code, _last(said, "error: ") or f"it ended with code {code}", _last(said, "hint: "))


def _spawn(words: Sequence[str], output: "IO[bytes] | None") -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "mlx_finetune", *words]
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output if output is not None else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise RunError(f"{sys.executable} cannot be started: {error.strerror}", "mlxft doctor") from error


def _last(lines: Sequence[str], start: str) -> str:
    return next((line.removeprefix(start) for line in reversed(lines) if line.startswith(start)), "")
