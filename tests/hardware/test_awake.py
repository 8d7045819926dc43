"""Idle sleep is held off for as long as the training process lives, and the display may always sleep."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from mlx_finetune.hardware.awake import keep_awake, spawn_alone


def test_a_mac_is_kept_awake_but_not_its_display() -> None:
    commands: list[Sequence[str]] = []

    def spawn(command: Sequence[str]) -> "subprocess.Popen[bytes]":
        commands.append(command)
        return spawn_alone(["true"])

    holder = keep_awake(4711, system="darwin", spawn=spawn)
    assert holder is not None
    assert holder.wait() == 0
    assert commands == [["/usr/bin/caffeinate", "-i", "-w", "4711"]]


def test_nothing_is_started_elsewhere_and_a_missing_program_is_no_error() -> None:
    def missing(command: Sequence[str]) -> "subprocess.Popen[bytes]":
        return spawn_alone(["/nonexistent/caffeinate", *command[1:]])

    assert keep_awake(1, system="linux", spawn=missing) is None
    assert keep_awake(1, system="darwin", spawn=missing) is None


def test_the_holder_does_not_hear_the_terminals_signals() -> None:
    code = "import signal, sys; signal.pause()"
    holder = spawn_alone([sys.executable, "-c", code])
    try:
        assert os.getsid(holder.pid) == holder.pid != os.getsid(0)
        assert holder.poll() is None
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
