"""SIGINT, SIGTERM and SIGHUP as a request to stop after the step at hand; only a second SIGINT leaves at once.
SIGUSR1 as a request for a checkpoint, after which training goes on.

A terminal that closes may send SIGHUP twice, a logout SIGHUP and SIGTERM: that is one request. Leaving at once is safe
at any instant: checkpoints and every other file are committed by rename.
"""

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Self

from mlx_finetune.errors import Interrupted
from mlx_finetune.rundir import SAVE_SIGNAL

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequest:
    """Set by a signal handler, looked at between pieces of work. ``signal_number`` is 0 while nobody asked."""

    def __init__(self, *, is_orphaned: Callable[[], bool] = lambda: False) -> None:
        """``is_orphaned`` tells that the process that watches this one is gone, which counts as SIGHUP."""
        self._number = 0
        self._is_interrupted = False
        self._is_orphaned = is_orphaned
        self._num_saves_asked = 0
        self._num_saves_taken = 0

    @classmethod
    def of_child(cls, parent: int | None) -> Self:
        """That of a process whose watcher is ``parent``; None: nobody watches."""
        return cls(is_orphaned=lambda: parent is not None and os.getppid() != parent)

    def install(self) -> None:
        """Take over the signals for this process."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._handle)
        signal.signal(SAVE_SIGNAL, self._handle_save)
        signal.siginterrupt(SAVE_SIGNAL, False)  # whatever waits for the disk or another rank goes on waiting

    def request(self, number: int) -> None:
        """Ask for a stop as if signal ``number`` had come."""
        self._number = self._number or number

    @property
    def signal_number(self) -> int:
        """The signal that asked for the stop, 0 if none did."""
        if not self._number and self._is_orphaned():
            self._number = signal.SIGHUP
        return self._number

    def request_save(self) -> None:
        """Ask for a checkpoint as if ``SAVE_SIGNAL`` had come."""
        self._num_saves_asked += 1

    @property
    def is_save_asked(self) -> bool:
        """True from the request for a checkpoint until ``take_save_request``."""
        return self._num_saves_asked > self._num_saves_taken

    def take_save_request(self) -> bool:
        """``is_save_asked``, for whoever now saves; requests that come later count anew."""
        asked, taken = self._num_saves_asked, self._num_saves_taken
        self._num_saves_taken = asked  # the handler only counts up, so that no request falls between two lines
        return asked > taken

    def raise_if_asked(self, what: str) -> None:
        """Raise ``Interrupted`` between two pieces of work that leave nothing to save."""
        if self.signal_number:
            raise Interrupted(f"stopped {what}; nothing was lost", signal_number=self.signal_number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._is_interrupted:
                os._exit(128 + number)
            self._is_interrupted = True
        self._number = self._number or number

    def _handle_save(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.request_save()
