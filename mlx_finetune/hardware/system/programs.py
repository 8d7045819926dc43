"""Runs a system's own tools for what they print. Everything that asks one takes the ``Runner`` as an argument."""

import os
import subprocess
from collections.abc import Callable, Sequence

#: Runs a program and returns its standard output, or None where it is missing, fails or takes more than 5 s.
Runner = Callable[[Sequence[str]], str | None]


def run_program(command: Sequence[str], *, timeout_seconds: float = 5.0) -> str | None:
    """Standard output of ``command``, stripped; None where it is missing, fails or takes too long.

    In the C locale, as its output is parsed. Descriptors are left alone (Python's own are not inherited), so that a
    program named by its whole path is spawned and not forked: the caller may be a training process of many GB.
    """
    in_c = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_seconds,
            check=False,
            env=in_c,
            close_fds=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
