"""Runs a system's own tools for what they print. Everything that asks one takes the ``Runner`` as an argument."""

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

#: Runs a program and returns its standard output, or None where it is missing, fails or takes more than 5 s.
Runner = Callable[[Sequence[str]], str | None]


#: Where people's own programs lie on a Mac; PATH is short in a process that was started from the Finder.
_PLACES = ("/opt/homebrew/bin", "/usr/local/bin", "/opt/local/bin", "~/.cargo/bin")


def find_program(name: str, environment: Mapping[str, str]) -> str | None:
    """The whole path of a program that people install themselves, None where it is not installed."""
    places = [environment.get("PATH", ""), *(str(Path(place).expanduser()) for place in _PLACES)]
    return shutil.which(name, path=os.pathsep.join(places))


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
