"""Watts, joules and degrees of a Mac: the chip's own counters (extra ``energy``), and macmon where it is installed.

``zeus-apple-silicon`` reads counters of energy inside this process, so its watts are exact means since the last look.
macmon runs as one process beside the training for as long as that takes, because starting it costs more than what it
measures; it ends by itself once nobody reads its pipe. Its watts are those of the whole machine, so they count where it
is there; the counters tell those of processor and GPU.
"""

import json
import math
import os
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Protocol, cast

from mlx_finetune.hardware.sampling.source import Figures, Source
from mlx_finetune.hardware.sensors import read_watts

_MOST_WATTS = 1000.0
_MOST_DEGREES = 150.0
_MOST_BYTES = 1 << 20
_LATE_LINES = 3  # so many are missing before macmon counts as silent


class Counters(Protocol):
    """What ``zeus_apple_silicon.AppleEnergyMetrics`` has: mJ, or None where this chip does not tell."""

    cpu_total_mj: int | None
    gpu_mj: int | None
    gpu_sram_mj: int | None
    dram_mj: int | None
    ane_mj: int | None


class Monitor(Protocol):
    """What ``zeus_apple_silicon.AppleEnergyMonitor`` offers."""

    def get_cumulative_energy(self) -> Counters:
        """Energy since some fixed moment before."""
        ...


def open_monitor() -> Monitor | None:
    """The counters of this chip; None where the package is not installed or they cannot be opened."""
    try:
        return cast(Monitor, import_module("zeus_apple_silicon").AppleEnergyMonitor())
    except (ImportError, OSError, RuntimeError, AttributeError):
        return None


class Chip:
    """Mean watts of processor, GPU and chip since the last reading, and the joules of the chip since the first."""

    def __init__(self, monitor: Monitor, clock: Callable[[], float] = time.monotonic) -> None:
        self._monitor = monitor
        self._clock = clock
        self._before: tuple[float, dict[str, int]] | None = None
        self._joules = 0.0

    def read(self) -> Figures:
        """``cpu_watts``, ``gpu_watts``, ``watts``, ``energy_joules``; nothing at the first reading."""
        now, before = (self._clock(), _millijoules(self._monitor.get_cumulative_energy())), self._before
        self._before = now
        if before is None or now[0] <= before[0]:
            return {}
        used = {name: value - before[1][name] for name, value in now[1].items() if name in before[1]}
        used = {
            name: value / 1000 for name, value in used.items() if value >= 0
        }  # a counter that began anew is left out
        if not used:
            return {}
        seconds, joules = now[0] - before[0], sum(used.values())
        self._joules += joules
        watts = {name: used[name] / seconds for name in used}
        return {
            "cpu_watts": watts.get("cpu"),
            "gpu_watts": watts.get("gpu"),
            "watts": joules / seconds,
            "energy_joules": self._joules,
        }


def _millijoules(counters: Counters) -> dict[str, int]:
    """The counters that this chip has, by part."""
    parts = {
        "cpu": counters.cpu_total_mj,
        "gpu": counters.gpu_mj,
        "gpu_sram": counters.gpu_sram_mj,
        "dram": counters.dram_mj,
        "ane": counters.ane_mj,
    }
    return {name: value for name, value in parts.items() if value is not None}


@dataclass(frozen=True, slots=True)
class MacmonLine:
    """What one line of ``macmon pipe`` says; None where it does not. ``watts`` are the machine's, else the chip's."""

    watts: float | None = None
    cpu_watts: float | None = None
    gpu_watts: float | None = None
    temperature_celsius: float | None = None
    gpu_percent: float | None = None


def parse_macmon(text: str) -> MacmonLine:
    """The last line of ``text``, in the words of macmon 0.8 or of those before it."""
    try:
        fields = json.loads(text.strip().splitlines()[-1])
    except (ValueError, IndexError, RecursionError):
        return MacmonLine()
    if not isinstance(fields, dict):
        return MacmonLine()
    values = cast(dict[str, object], fields)
    temperatures = values.get("temp")
    degrees = cast(dict[str, object], temperatures) if isinstance(temperatures, dict) else {}
    warm = [one for key in ("cpu_temp_avg", "gpu_temp_avg") if (one := _within(degrees.get(key), _MOST_DEGREES))]
    usage = values.get("gpu_usage")
    pair = cast(list[object], usage) if isinstance(usage, list) and len(cast(list[object], usage)) == 2 else [0, None]
    busy = _within(values.get("gpu_active_ratio", pair[1]), 1.0)
    return MacmonLine(
        watts=_within(values.get("sys_power"), _MOST_WATTS) or _within(values.get("all_power"), _MOST_WATTS) or None,
        cpu_watts=_within(values.get("cpu_power"), _MOST_WATTS),
        gpu_watts=_within(values.get("gpu_power"), _MOST_WATTS),
        temperature_celsius=max(warm, default=None),
        gpu_percent=None if busy is None else 100 * busy,
    )


def _within(value: object, most: float) -> float | None:
    """A number from 0 to ``most``; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and 0 <= value <= most else None


Spawn = Callable[[Sequence[str]], "subprocess.Popen[bytes]"]


def spawn_reading(command: Sequence[str]) -> "subprocess.Popen[bytes]":
    """Start ``command`` with a pipe from its output, whose reading never waits."""
    silent = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=silent, stdout=subprocess.PIPE, stderr=silent, close_fds=False)
    assert process.stdout is not None, "it was started with a pipe"
    os.set_blocking(process.stdout.fileno(), False)
    return process


class Macmon:
    """Reads what one macmon has printed since the last time; one that ends is started again at the next reading."""

    def __init__(
        self, path: str, *, seconds: float, clock: Callable[[], float] = time.monotonic, spawn: Spawn = spawn_reading
    ) -> None:
        self._command = (path, "pipe", "-s", "0", "-i", str(max(500, round(1000 * seconds))))
        self._patience = _LATE_LINES * max(0.5, seconds)
        self._clock = clock
        self._spawn = spawn
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""
        self._heard = 0.0
        self._figures: Figures = {}
        self._joules: float | None = None
        self._is_closed = False

    def read(self) -> Figures:
        """Its figures with ``energy_joules`` since the first; nothing before its first line. Raises ``OSError`` where
        it has ended or gone silent."""
        if self._is_closed:
            return {}
        if self._process is None:
            self._process, self._rest, self._heard, self._figures = self._spawn(self._command), b"", self._clock(), {}
            return {}
        now = self._clock()
        if lines := self._new_lines(self._process):
            self._figures = self._add(lines, now - self._heard)
            self._heard = now
        elif now - self._heard > self._patience:
            self._end()
            raise TimeoutError("macmon is silent")
        return self._figures

    def _new_lines(self, process: "subprocess.Popen[bytes]") -> list[bytes]:
        assert process.stdout is not None, "it was started with a pipe"
        try:
            content = os.read(process.stdout.fileno(), _MOST_BYTES)
        except BlockingIOError:
            return []
        if not content:
            self._end()
            raise ChildProcessError("macmon has ended")
        *lines, self._rest = (self._rest[-_MOST_BYTES:] + content).split(b"\n")
        return lines

    def _add(self, lines: Sequence[bytes], seconds: float) -> Figures:
        """The figures of the newest line; the watts of all count for the ``seconds`` since the line before."""
        read = [parse_macmon(line.decode("utf-8", "replace")) for line in lines]
        watts = [one.watts for one in read if one.watts is not None]
        if watts:
            self._joules = (self._joules or 0.0) + sum(watts) / len(watts) * seconds
        return {**asdict(read[-1]), "energy_joules": self._joules}

    def close(self) -> None:
        """End it, and begin none again."""
        self._is_closed = True
        self._end()

    def _end(self) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
            with process:  # closes the pipe and waits
                pass


def energy_sources(monitor: Monitor | None, macmon: str | None, *, seconds: float) -> Sequence[Source]:
    """Those there are; what both tell, watts and joules of all, is macmon's, but watts of the parts are the chip's."""
    found: list[Source] = []
    if macmon is not None:
        beside = Macmon(macmon, seconds=seconds)
        found.append(Source("macmon", beside.read, close=beside.close))
    if monitor is not None:
        chip = Chip(monitor)
        found.append(Source("chip", chip.read if macmon is None else lambda: _parts(chip.read())))
    return found


def _parts(figures: Figures) -> Figures:
    return {name: figures.get(name) for name in ("cpu_watts", "gpu_watts")}


class PowerMeter:
    """Watts from the moment it is made: those of the machine for two seconds by macmon, else those of the chip."""

    def __init__(
        self,
        monitor: Monitor | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        read: Callable[[], float | None] = read_watts,
    ) -> None:
        self._chip = None if monitor is None else Chip(monitor, clock)
        self._found: list[float] = []
        self._read_machine = read
        if self._chip is not None:
            self._chip.read()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        watts = self._read_machine()
        if watts is not None:
            self._found.append(watts)

    def watts(self) -> float | None:
        """None where no sensor has answered."""
        self._thread.join(timeout=1.0)
        if self._found:
            return self._found[0]
        watts = self._chip.read().get("watts") if self._chip is not None else None
        return watts if isinstance(watts, float) and watts > 0 else None
