"""Figures of the whole machine and of this process: processor, memory, disk, footprint, heat. psutil where it tells.

On a Mac ``vm_stat`` knows what is compressed, ``footprint`` what Metal holds for this process, ``pmset`` what is slowed
down; without them psutil's coarser figures count.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from mlx_finetune.hardware.planning.disk import free_bytes
from mlx_finetune.hardware.sampling.source import Figures
from mlx_finetune.hardware.system.macos import parse_free_share, parse_used_memory
from mlx_finetune.hardware.system.power import PMSET, parse_throttling
from mlx_finetune.hardware.system.programs import Runner

_UNITS = {"B": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}
_IDLE = ("idle", "iowait")
_WITHIN_OTHERS = ("guest", "guest_nice")  # counted as user and nice already
#: Sensors of Linux that are the processor's, best first; where none of them is there, the hottest of all counts.
_PROCESSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal")


def read_processor_times() -> Mapping[str, float]:
    """Seconds that all cores have spent on each kind of work since the machine started."""
    return psutil.cpu_times()._asdict()


class Processor:
    """Share of all cores that was busy since the last reading."""

    def __init__(self, read_times: Callable[[], Mapping[str, float]] = read_processor_times) -> None:
        self._read_times = read_times
        self._before: tuple[float, float] | None = None

    def read(self) -> Figures:
        """``cpu_percent``; nothing at the first reading, and none where the counters did not move."""
        times = {name: value for name, value in self._read_times().items() if name not in _WITHIN_OTHERS}
        total, idle = sum(times.values()), sum(times.get(name, 0.0) for name in _IDLE)
        before, self._before = self._before, (total, idle)
        if before is None or total <= before[0]:
            return {}
        busy = 1 - (idle - before[1]) / (total - before[0])
        return {"cpu_percent": 100 * min(1.0, max(0.0, busy))}


def read_memory(system: str, run: Runner) -> Figures:
    """``memory_used_bytes`` and ``memory_total_bytes``."""
    memory = psutil.virtual_memory()
    if system != "darwin":
        return {"memory_used_bytes": memory.total - memory.available, "memory_total_bytes": memory.total}
    used = parse_used_memory(run(["/usr/bin/vm_stat"]) or "")
    if used is None and (free := parse_free_share(run(["/usr/bin/memory_pressure", "-Q"]) or "")) is not None:
        used = round(free[0] * (1 - free[1]))
    return {"memory_used_bytes": used, "memory_total_bytes": memory.total}


def read_disk(folder: Path) -> Figures:
    """``disk_free_bytes`` on the volume of ``folder``."""
    return {"disk_free_bytes": free_bytes(folder)}


def read_resident() -> Figures:
    """``process_bytes`` as the resident size of this process, which on a Mac misses part of what Metal holds."""
    return {"process_bytes": psutil.Process().memory_info().rss}


def read_footprint(pid: int, run: Runner) -> Figures:
    """``process_bytes`` as a Mac's Activity Monitor counts it."""
    return {"process_bytes": parse_footprint(run(["/usr/bin/footprint", "-p", str(pid)]) or "")}


def parse_footprint(text: str) -> int | None:
    """Bytes in the heading: ``Python [62283]: 64-bit    Footprint: 199.2 GB (16384 bytes per page)``."""
    match = re.search(r"\bFootprint: (\d{1,12}(?:[.,]\d+)?) ([KMGT]?B) ", text)
    return round(float(match[1].replace(",", ".")) * _UNITS[match[2]]) or None if match else None


def read_throttling(run: Runner) -> Figures:
    """``throttled``: what a Mac slows down for the heat, "" where nothing is."""
    printed = run([PMSET, "-g", "therm"])
    return {"throttled": None if printed is None else parse_throttling(printed + "\n")}


def read_temperature() -> Figures:
    """``temperature_celsius`` of a Linux machine's processor, None where it has no sensor."""
    sensors = psutil.sensors_temperatures()
    chosen = next((sensors[name] for name in _PROCESSORS if sensors.get(name)), None)
    entries = chosen if chosen is not None else [entry for group in sensors.values() for entry in group]
    return {"temperature_celsius": max((entry.current for entry in entries if 0 < entry.current < 150), default=None)}
