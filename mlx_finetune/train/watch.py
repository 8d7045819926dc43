"""Watches the machine between two steps: tells sleep and a clock that was set, asks for a pause when power or memory
run short.

Clocks are read at every look (about a microsecond), sensors at most every 5 s. Nothing in here is an input of the
training: a run that was paused ends with the bits of one that was not.
"""

import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlx_finetune.events import Continued, Event, Paused, TimeJump
from mlx_finetune.hardware.sampling.source import Source
from mlx_finetune.hardware.sampling.sources import system_sources
from mlx_finetune.hardware.sensors import Memory, Sensors, read_aside, system_sensors
from mlx_finetune.hardware.system.power import UNKNOWN, Power
from mlx_finetune.train.signals import StopRequest
from mlx_finetune.units import format_bytes

SAMPLE_SECONDS = 5.0
#: How long a pause sleeps before it looks for a stop request again.
WAIT_SECONDS = 0.2
#: A difference of two clocks that grows by more than this at once is no drift.
JUMP_SECONDS = 2.0
#: Readings taken further apart than this were interrupted, and say nothing about each other.
READING_SECONDS = 0.1
BATTERY_MARGIN_PERCENT = 5
SWAP_GROWTH_BYTES = 2**30
SAMPLES_IN_A_ROW = 3
BEARABLE_SAMPLES = 60  # five minutes


@dataclass(frozen=True, slots=True)
class Clocks:
    """Seconds: ``wall`` since 1970; ``continuous`` goes on while the machine sleeps, ``awake`` stops then."""

    wall: Callable[[], float]
    continuous: Callable[[], float]
    awake: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Everything that is asked and done outside this process while a run is at work.

    ``find_sources`` gives what is sampled for a run in a folder every so many seconds (``hardware.sampling``);
    ``environment`` is that of this process, ``tuned`` what it was given for keys that are "auto" (``hardware.metal``).
    """

    sensors: Sensors
    clocks: Clocks
    sleep: Callable[[float], None]
    find_sources: Callable[[Path, float], Sequence[Source]] = lambda folder, seconds: ()
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    tuned: Mapping[str, int] = field(default_factory=dict[str, int])
    system: str = sys.platform


def system_surroundings() -> Surroundings:
    """This machine."""
    sensors = system_sensors()
    if sys.platform == "darwin":  # where each figure is asked of a program
        sensors = read_aside(sensors)

    def find_sources(folder: Path, seconds: float) -> Sequence[Source]:
        return system_sources(folder, seconds=seconds, environment=os.environ)

    return Surroundings(sensors, system_clocks(), time.sleep, find_sources, environment=os.environ)


def system_clocks() -> Clocks:
    """This machine's clocks. Where two of them are one and the same, sleep looks like a clock that was set.

    macOS: CLOCK_UPTIME_RAW is CLOCK_MONOTONIC_RAW without the sleep (clock_gettime(3)); CLOCK_MONOTONIC goes on too,
    but is adjusted. Linux: CLOCK_MONOTONIC stands still during suspend, CLOCK_BOOTTIME does not.
    """
    for continuous, awake in (("CLOCK_MONOTONIC_RAW", "CLOCK_UPTIME_RAW"), ("CLOCK_BOOTTIME", "CLOCK_MONOTONIC")):
        if hasattr(time, continuous) and hasattr(time, awake):
            return Clocks(time.time, _clock(getattr(time, continuous)), _clock(getattr(time, awake)))
    return Clocks(time.time, time.monotonic, time.monotonic)


def _clock(number: int) -> Callable[[], float]:
    return lambda: time.clock_gettime(number)


class Watch:
    """Looked at by the loop between two steps; ``min_battery_percent`` 0 never pauses for the battery.

    ``power`` and ``memory`` are what was read last.
    """

    def __init__(
        self, around: Surroundings, *, min_battery_percent: int, emit: Callable[[Event], None], stop: StopRequest
    ) -> None:
        self._around = around
        self._emit = emit
        self._stop = stop
        self._battery = _Battery(min_battery_percent)
        self._memory = _MemoryShortage()
        self._reading = _read(around.clocks)
        self._next_sample = -math.inf
        self.power, self.memory = UNKNOWN, Memory(level=None, swap_bytes=None)

    def reason_to_pause(self) -> str | None:
        """Why training should wait now, None where it may go on; jumps of time since the last call are reported."""
        self._report_jumps()
        if self._reading.continuous >= self._next_sample:
            self.power, self.memory = self._around.sensors.read_power(), self._around.sensors.read_memory()
            self._battery.add(self.power)
            self._memory.add(self.memory)
            self._next_sample = self._around.clocks.continuous() + SAMPLE_SECONDS
        return self._battery.reason or self._memory.reason

    def pause(self, step: int, reason: str, report: Callable[[int], None] = lambda step: None) -> None:
        """Wait until nothing speaks against going on, or a stop is asked for. ``step`` has been saved before.

        ``report`` is called with it while nothing else happens.
        """
        self._emit(Paused(step, reason))
        started = self._around.clocks.continuous()
        while self.reason_to_pause() is not None:
            if self._stop.signal_number:
                return
            self._around.sleep(WAIT_SECONDS)
            report(step)
        self._emit(Continued(step, round(self._reading.continuous - started, 3)))

    def _report_jumps(self) -> None:
        before, now = self._reading, _read(self._around.clocks)
        self._reading = now
        asleep = (now.continuous - now.awake) - (before.continuous - before.awake)
        if asleep > JUMP_SECONDS:
            self._emit(TimeJump(round(asleep, 3), was_asleep=True))
        set_by = (now.wall - now.continuous) - (before.wall - before.continuous)
        if abs(set_by) > JUMP_SECONDS:
            self._emit(TimeJump(round(set_by, 3), was_asleep=False))


@dataclass(frozen=True, slots=True)
class _Reading:
    """The three clocks at one instant."""

    wall: float
    continuous: float
    awake: float


def _read(clocks: Clocks) -> _Reading:
    """All clocks at once: again where the machine slept, or this process was held, between two of them."""
    while True:
        continuous = clocks.continuous()
        reading = _Reading(clocks.wall(), continuous, clocks.awake())
        if clocks.continuous() - continuous <= READING_SECONDS:
            return reading


class _Battery:
    """A pause from ``least`` percent on battery, to mains or a little above; what is not known changes nothing."""

    def __init__(self, least: int) -> None:
        self._least = least
        self.reason: str | None = None

    def add(self, power: Power) -> None:
        if power.on_battery is False:
            self.reason = None
        elif power.on_battery and power.percent is not None and self._least:
            if power.percent <= self._least:
                self.reason = f"the battery is at {power.percent}% (hardware.min_battery_percent = {self._least})"
            elif power.percent >= self._least + BATTERY_MARGIN_PERCENT:
                self.reason = None


class _MemoryShortage:
    """A pause after ``SAMPLES_IN_A_ROW`` samples of short memory, to as many without pressure (MACOS.md section 4).

    A process that waits keeps its weights, so pressure may never be normal again: ``BEARABLE_SAMPLES`` without a
    critical one end a pause as well. Swap counts from the first sample, after a pause from the last one: what was
    swapped out stays there for long.
    """

    def __init__(self) -> None:
        self._swap_before: int | None = None
        self._in_a_row = 0
        self._bearable_in_a_row = 0
        self.reason: str | None = None

    def add(self, memory: Memory) -> None:
        if self._swap_before is None:
            self._swap_before = memory.swap_bytes
        shortage = self._shortage(memory)
        is_over = memory.level in ("normal", None)
        turns = shortage is not None if self.reason is None else is_over
        self._in_a_row = self._in_a_row + 1 if turns else 0
        is_bearable = self.reason is not None and memory.level != "critical"
        self._bearable_in_a_row = self._bearable_in_a_row + 1 if is_bearable else 0
        if self._in_a_row < SAMPLES_IN_A_ROW and self._bearable_in_a_row < BEARABLE_SAMPLES:
            return
        self._in_a_row = self._bearable_in_a_row = 0
        if self.reason is None:
            self.reason = shortage
        else:
            self.reason, self._swap_before = None, memory.swap_bytes

    def _shortage(self, memory: Memory) -> str | None:
        if memory.level == "critical":
            return "memory is short: macOS reports critical pressure"
        if memory.swap_bytes is None or self._swap_before is None:
            return None
        grown = memory.swap_bytes - self._swap_before
        return f"memory is short: {format_bytes(grown)} more are swapped out" if grown > SWAP_GROWTH_BYTES else None
