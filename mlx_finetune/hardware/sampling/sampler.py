"""Asks all sources every few seconds, in threads that only read, and keeps the newest sample for whoever takes it.

The training thread takes samples between two steps and writes them itself: a journal with two writers could change
between the two looks by which a checkpoint notes its length and its hash. Of samples that nobody took in time the
newest counts; what adds up (energy) is in every one.

Each reading has a thread of its own, so one source that hangs is left out, alone, until it comes back, and one that
fails is asked less and less often. Threads take no lock of the training's; they cost it the interpreter for as long as
a parser runs. The time between samples grows so that they take at most ``MOST_SHARE`` of one core, children included.
"""

import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from mlx_finetune.events import Resources
from mlx_finetune.hardware.sampling.source import Figures, Source

MOST_SHARE = 0.01
FIRST_SECONDS = 1.0  # the first sample comes early, so that whoever watches sees something
PATIENCE_SECONDS = 2.0  # for the slowest source; what comes later counts in the next sample
MOST_WAIT_SECONDS = 300.0  # before a source that always fails is asked again
TRIES = 2  # failures in a row that change nothing
CLOSE_SECONDS = 0.5
_WEIGHT = 0.2  # of the newest sample in the mean cost of one

_DECIMALS = {"cpu_percent": 1, "gpu_percent": 1, "watts": 2, "cpu_watts": 2, "gpu_watts": 2, "temperature_celsius": 1}


class _Reader:
    """One source, its newest figures, and when it is to be asked again."""

    def __init__(self, source: Source, clock: Callable[[], float]) -> None:
        self.source = source
        self.figures: Figures = {}
        self.thread_seconds = 0.0
        self._clock = clock
        self._failures = 0
        self._next = -math.inf
        self._wait = 0.0
        self._thread: threading.Thread | None = None

    def begin(self, now: float, interval: float) -> "threading.Thread | None":
        """Ask it in a new thread; None where that is not due, or the last reading is still going on.

        What has been going on since the sample before counts as not told.
        """
        if self._thread is not None and self._thread.is_alive():
            self.figures = {}
            return None
        if now < self._next:
            return None
        self._next, self._wait = now + self.source.seconds, max(interval, self.source.seconds)
        self._thread = threading.Thread(target=self._read, name=f"look at {self.source.name}", daemon=True)
        self._thread.start()
        return self._thread

    def _read(self) -> None:
        try:
            figures = {name: value for name, value in self.source.read().items() if value is not None}
        except Exception:  # whatever a tool, a package or a file of the system comes up with: it is not told, no more
            figures = {}
        self._failures = 0 if figures else self._failures + 1
        if self._failures > TRIES:
            self._next = self._clock() + min(MOST_WAIT_SECONDS, 2.0 ** (self._failures - TRIES) * self._wait)
        self.figures = figures
        self.thread_seconds += time.thread_time()


def children_seconds() -> float:
    """Processor time of the programs that this process has started and that have ended."""
    times = os.times()
    return times.children_user + times.children_system


class Sampler:
    """Use it in ``with``: its threads begin and end there. ``take`` gives the newest sample, once.

    ``joules`` is what the run had used before this process.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        seconds: float,
        joules: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._readers = [_Reader(source, clock) for source in sources]
        self._seconds = seconds
        self._joules_before = joules
        self._clock = clock
        self._newest: Resources | None = None
        self._taken: Resources | None = None
        self._energy: float | None = None
        self._cost = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="look at the machine", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join(CLOSE_SECONDS)
        for reader in self._readers:
            reader.source.close()

    def take(self) -> Resources | None:
        """The newest sample, None where it was taken before. Its ``step`` is 0: the sampler knows of none."""
        newest = self._newest
        if newest is self._taken:
            return None
        self._taken = newest
        return newest

    def _work(self) -> None:
        """Until it is stopped: a first look, from which differences count, and then one sample after the other."""
        self.look()
        wait = min(FIRST_SECONDS, self._seconds)
        while not self._stopped.wait(wait):
            before = self._spent()
            self._newest = self.look()
            self._cost += _WEIGHT * (self._spent() - before - self._cost)
            wait = max(self._seconds, self._cost / MOST_SHARE)

    def _spent(self) -> float:
        """Processor time of this thread, of those of the readings, and of programs that have ended: macmon's is not in
        it."""
        return time.thread_time() + sum(reader.thread_seconds for reader in self._readers) + children_seconds()

    def look(self) -> Resources:
        """One sample now, of what is told within ``PATIENCE_SECONDS``."""
        now = self._clock()
        started = [thread for one in self._readers if (thread := one.begin(now, self._seconds)) is not None]
        deadline = time.monotonic() + PATIENCE_SECONDS
        for thread in started:
            thread.join(max(0.0, deadline - time.monotonic()))
        figures: dict[str, object] = {}
        for reader in self._readers:
            figures |= reader.figures
        return Resources(0, **self._rounded(figures))  # pyright: ignore[reportArgumentType] each has its field's type

    def _rounded(self, figures: Mapping[str, object]) -> dict[str, object]:
        """The figures with as many digits as they are worth, and the energy of the whole run."""
        energy = figures.get("energy_joules")
        if isinstance(energy, int | float):
            self._energy = max(energy, self._energy or 0.0)
        parts = [one for one in (self._joules_before, self._energy) if one is not None]
        found = {
            name: round(value, _DECIMALS.get(name)) if isinstance(value, float) else value
            for name, value in figures.items()
        }
        return found | {"energy_joules": round(sum(parts), 1) if parts else None}
