"""Lines at the bottom of a terminal that are drawn again and again while text scrolls past above them.

Knows how many rows its lines take after a resize (the terminal has wrapped them by then), draws in one write, hides
the cursor and switches the echo of typed keys off while it lives, and puts both back, also around Ctrl-Z.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import TextIO

_HIDE, _SHOW = "\x1b[?25l", "\x1b[?25h"
_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"  # one frame; terminals that do not know it ignore it
_CLEAR_BELOW = "\x1b[J"


class Region:
    """The bottom lines of ``stream``, which must be a terminal. A terminal that has gone away is left alone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._widths: list[int] = []
        self._saved_mode: list[int | list[bytes | int]] | None = None
        self._before_stop: object = None
        self._is_gone = False
        self._enter()
        if signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL:
            signal.signal(signal.SIGTSTP, self._stop)

    def size(self) -> os.terminal_size:
        """Columns and lines of the terminal now."""
        try:
            size = os.get_terminal_size(self._stream.fileno())
        except OSError:
            return os.terminal_size((80, 24))
        return size if size.columns and size.lines else os.terminal_size((80, 24))

    def draw(self, lines: Sequence[str], widths: Sequence[int], *, above: str = "") -> None:
        """Replace the region by ``lines``, whose printed ``widths`` are given; ``above`` scrolls past before them."""
        body = "\r\n".join(lines)
        text = above.replace("\n", "\r\n")
        self._write(f"{_BEGIN}{self._erase()}{text}{body}{_END}")
        self._widths = list(widths)

    def close(self) -> None:
        """Leave the last lines where they are, the cursor under them, the terminal as it was found."""
        if self._widths:
            self._write("\r\n")
        self._widths = []
        self._leave()
        if signal.getsignal(signal.SIGTSTP) == self._stop:
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)

    def _erase(self) -> str:
        if not self._widths:
            return "\r" + _CLEAR_BELOW
        columns = self.size().columns
        rows = sum(max(1, -(-width // columns)) for width in self._widths)
        return "\r" + (f"\x1b[{rows - 1}A" if rows > 1 else "") + _CLEAR_BELOW

    def _write(self, text: str) -> None:
        if self._is_gone:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            self._is_gone = True

    def _enter(self) -> None:
        """Hide the cursor; no echo, where this process may change the terminal at all."""
        with contextlib.suppress(OSError, ImportError):
            import termios

            descriptor = self._stream.fileno()
            if os.tcgetpgrp(descriptor) == os.getpgrp():
                mode = termios.tcgetattr(descriptor)
                self._saved_mode = list(mode)
                mode[3] &= ~termios.ECHO
                with contextlib.suppress(termios.error):
                    termios.tcsetattr(descriptor, termios.TCSADRAIN, mode)
        self._write(_HIDE)

    def _leave(self) -> None:
        self._write(_SHOW)
        if self._saved_mode is not None:
            import termios

            with contextlib.suppress(OSError, termios.error):
                termios.tcsetattr(self._stream.fileno(), termios.TCSADRAIN, self._saved_mode)
            self._saved_mode = None

    def _stop(self, number: int, frame: object) -> None:
        """Ctrl-Z: give the terminal back, stop, and start a new region below once continued."""
        del number, frame
        self._leave()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, self._stop)
        self._widths = []
        self._enter()


def can_draw(stream: TextIO) -> bool:
    """True for a terminal that moves its cursor and shows more than ASCII."""
    encoding = (stream.encoding or "").lower().replace("-", "")
    return sys.platform != "win32" and stream.isatty() and encoding.startswith("utf")
