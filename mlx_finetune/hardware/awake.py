"""Keeps a Mac awake while a process is at work. The display may sleep: that even helps (MACOS.md 1.5)."""

import subprocess


def keep_awake(pid: int) -> None:
    """Start ``caffeinate -i``, which ends when process ``pid`` does."""
    subprocess.Popen(
        ["/usr/bin/caffeinate", "-i", "-w", str(pid)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
