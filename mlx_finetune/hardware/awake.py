"""Keeps a Mac from falling asleep while a process works; the display may sleep, and should (MACOS.md section 1.5).

``-i`` holds off idle sleep only: never ``-d``, a lit display provoked GPU aborts. A closed lid sleeps regardless.
"""

import subprocess
import sys
from collections.abc import Callable, Sequence

Spawn = Callable[[Sequence[str]], "subprocess.Popen[bytes]"]


def spawn_alone(command: Sequence[str]) -> "subprocess.Popen[bytes]":
    """Start ``command`` in a session of its own, silent, so that no terminal ends it."""
    silent = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=silent, stdout=silent, stderr=silent, start_new_session=True)


def keep_awake(pid: int, *, system: str = sys.platform, spawn: Spawn = spawn_alone) -> "subprocess.Popen[bytes] | None":
    """Hold off idle sleep until process ``pid`` ends; the holder, which then ends by itself and is waited for by you.

    None where there is nothing to hold: on other systems, or where caffeinate cannot be started.
    """
    if system != "darwin":
        return None
    try:
        return spawn(["/usr/bin/caffeinate", "-i", "-w", str(pid)])
    except OSError:
        return None
