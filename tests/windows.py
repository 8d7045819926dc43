"""A Terminal window for tests: a program with a controlling terminal of its own; and the tools of a Mac.

``MacTools`` is a folder of stand-ins for the programs of a Mac. Each logs its arguments, tab separated, and answers
from a file of its own.
"""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_OPENER = (
    "import os, sys; terminal = os.open(sys.argv[1], os.O_RDWR); "
    "[os.dup2(terminal, number) for number in range(3)]; os.execvp(sys.argv[2], sys.argv[2:])"
)
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


class Window:
    """``command`` in a window of 80 by 24. ``shown`` is all that was written into it, without colours."""

    def __init__(self, command: Sequence[str | Path], environment: Mapping[str, str], cwd: Path) -> None:
        self._leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        opener = [sys.executable, "-I", "-c", _OPENER, os.ttyname(follower)]
        self.child = subprocess.Popen([*opener, *command], env=dict(environment), cwd=cwd, start_new_session=True)
        self._follower: int | None = follower  # kept open until the child has it, or the first read finds an end
        self.raw = ""
        self._searched = 0

    @property
    def shown(self) -> str:
        return _ESCAPES.sub("", self.raw)

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Read until ``text`` comes after what was waited for before."""
        end = time.monotonic() + seconds
        while (found := self.shown.find(text, self._searched)) < 0:
            assert time.monotonic() < end, f"{text!r} never came: {self.shown[self._searched :]!r}"
            assert self._read(), f"{text!r} never came, the window is closed: {self.shown[self._searched :]!r}"
        self._searched = found + len(text)

    def _read(self) -> bool:
        """Read for a moment; False at the end."""
        if not select.select([self._leader], [], [], 0.1)[0]:
            return True
        try:
            content = os.read(self._leader, 65536)
        except OSError:
            return False
        if self._follower is not None:
            os.close(self._follower)
            self._follower = None
        self.raw += content.decode("utf-8", "replace")
        return bool(content)

    def type(self, keys: str) -> None:
        """Press keys; Return is a line break, Ctrl-C ``\\x03``, Ctrl-D ``\\x04``."""
        os.write(self._leader, keys.encode())

    def answer(self, question: str, keys: str) -> None:
        """Wait for ``question`` and type ``keys`` and Return."""
        self.wait_for(question)
        self.type(f"{keys}\n")

    def end(self, seconds: float = 60) -> int:
        """Read to the end; the exit code."""
        end = time.monotonic() + seconds
        while self.child.poll() is None:
            assert time.monotonic() < end, f"it does not end: {self.shown[self._searched :]!r}"
            self._read()
        while self._read() and select.select([self._leader], [], [], 0)[0]:
            pass
        return self.child.returncode

    def close(self) -> None:
        """Close the window, as with the red button: everything in its foreground hears SIGHUP."""
        if self._leader >= 0:
            if self._follower is not None:
                os.close(self._follower)
                self._follower = None
            os.close(self._leader)
            self._leader = -1
        try:
            self.child.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(self.child.pid, signal.SIGKILL)
            self.child.wait()


SYSCTL = """#!/bin/bash
printf 'sysctl\\t%s\\n' "$*" >>'{log}'
file='{answers}'/"sysctl.$2"
[ -f "$file" ] || { echo "sysctl: unknown oid '$2'" >&2; exit 1; }
cat "$file"
"""
ARCH = """#!/bin/bash
printf 'arch\\t%s\\n' "$*" >>'{log}'
shift
exec "$@"
"""
CAFFEINATE = """#!/bin/bash
{ printf 'caffeinate'; printf '\\t%s' "$@"; echo; } >>'{log}'
"""
PMSET = """#!/bin/bash
{ printf 'pmset'; printf '\\t%s' "$@"; echo; } >>'{log}'
cat '{answers}'/"pmset.$2" 2>/dev/null
exit 0
"""
OSASCRIPT = """#!/bin/bash
{ printf 'osascript'; printf '\\t%s' "${@//$'\\n'/ }"; echo; } >>'{log}'
[ -s '{answers}/osascript' ] || { echo 'execution error: User canceled. (-128)' >&2; exit 1; }
head -n 1 '{answers}/osascript'
sed 1d '{answers}/osascript' >'{answers}/rest'; cat '{answers}/rest' >'{answers}/osascript'
"""


class MacTools:
    """The programs of a Mac in ``folder``; ``answers`` by file name, such as ``sysctl.hw.optional.arm64``."""

    def __init__(self, folder: Path, *, with_dialogs: bool = False) -> None:
        self.folder = folder / "mac tools"
        self._answers = folder / "mac answers"
        self._log = folder / "mac log"
        self.folder.mkdir()
        self._answers.mkdir()
        programs = {"sysctl": SYSCTL, "arch": ARCH, "caffeinate": CAFFEINATE, "pmset": PMSET}
        programs |= {"osascript": OSASCRIPT} if with_dialogs else {}
        for name, text in programs.items():
            path = self.folder / name
            path.write_text(text.replace("{log}", str(self._log)).replace("{answers}", str(self._answers)))
            path.chmod(0o755)
        self.answer("sysctl.hw.optional.arm64", "1\n")
        self.answer("sysctl.sysctl.proc_translated", "0\n")

    def answer(self, name: str, text: str | None) -> None:
        """What the program is to print; None: it does not know the name."""
        path = self._answers / name
        if text is None:
            path.unlink(missing_ok=True)
        else:
            path.write_text(text)

    @property
    def log(self) -> list[list[str]]:
        """The calls so far: the program and its arguments."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [line.split("\t") for line in lines]
