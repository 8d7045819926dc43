"""What the machine says while it works: power source and charge, memory pressure and swap. No mlx; decides nothing.

On a Mac four figures cost three small programs (MACOS.md section 4); elsewhere psutil reads them from files. What a
source does not say, or says in a way we do not know, is None and never 0; one that fails does not blank the others.
"""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import psutil

from mlx_finetune.hardware.device import Runner, run_program

Level = Literal["normal", "warning", "critical"]

_LEVELS: dict[str, Level] = {"1": "normal", "2": "warning", "4": "critical"}
_SOURCES = {"AC Power": False, "Battery Power": True, "UPS Power": True}
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True, slots=True)
class Power:
    """``on_battery`` is None where the source is not known, ``percent`` (0 to 100) where there is no battery."""

    on_battery: bool | None
    percent: int | None


@dataclass(frozen=True, slots=True)
class Memory:
    """macOS's own judgement of the memory pressure (None elsewhere), and the swap in use."""

    level: Level | None
    swap_bytes: int | None


@dataclass(frozen=True, slots=True)
class Sensors:
    """Where power and memory are read from; tests put their own readers here."""

    read_power: Callable[[], Power]
    read_memory: Callable[[], Memory]


def system_sensors(*, system: str = sys.platform, run: Runner = run_program) -> Sensors:
    """The sensors of this machine; ``run`` starts the Mac's tools."""
    if system == "darwin":
        return Sensors(partial(_mac_power, run), partial(_mac_memory, run))
    return Sensors(_psutil_power, _psutil_memory)


def parse_power(text: str) -> Power:
    """The power source and the charge in the output of ``pmset -g batt``; a desktop Mac has no charge."""
    source = re.search(r"Now drawing from '([^']*)'", text)
    charge = re.search(r"\s(\d{1,3})%;", text)
    percent = int(charge[1]) if charge else None
    return Power(
        on_battery=_SOURCES.get(source[1]) if source else None,
        percent=percent if percent is not None and percent <= 100 else None,
    )


def parse_level(text: str) -> Level | None:
    """The pressure in ``kern.memorystatus_vm_pressure_level``, with or without its name in front."""
    return _LEVELS.get(text.rpartition(":")[2].strip())


def parse_swap(text: str) -> int | None:
    """Bytes of swap in use from ``vm.swapusage``. A number without its unit may be cut short, so it is no number."""
    match = re.search(r"\bused = (\d+(?:[.,]\d+)?)([KMGT])(?:\s|$)", text)
    return round(float(match[1].replace(",", ".")) * _UNITS[match[2]]) if match else None


def _mac_power(run: Runner) -> Power:
    return parse_power(run(["/usr/bin/pmset", "-g", "batt"]) or "")


def _mac_memory(run: Runner) -> Memory:
    """Two calls, because one unknown name makes sysctl fail for both."""
    level = run(["/usr/sbin/sysctl", "-n", "kern.memorystatus_vm_pressure_level"])
    swap = run(["/usr/sbin/sysctl", "-n", "vm.swapusage"])
    return Memory(parse_level(level or ""), parse_swap(swap or ""))


def _psutil_power() -> Power:
    try:
        battery = psutil.sensors_battery()
    except (OSError, ValueError):
        return Power(None, None)
    if battery is None:
        return Power(on_battery=False, percent=None)
    is_known = battery.power_plugged is not None  # pyright: ignore[reportUnnecessaryComparison] psutil's stub is wrong
    return Power(not battery.power_plugged if is_known else None, min(100, max(0, round(battery.percent))))


def _psutil_memory() -> Memory:
    try:
        return Memory(level=None, swap_bytes=psutil.swap_memory().used)
    except (OSError, ValueError):
        return Memory(level=None, swap_bytes=None)


def parse_watts(text: str) -> float | None:
    """Watts of the whole machine, else of the chip, in a line of ``macmon pipe``; None where neither stands there."""
    try:
        fields = json.loads(text.strip().splitlines()[-1])
        found = next((fields[key] for key in ("sys_power", "all_power") if fields.get(key)), None)
    except (ValueError, IndexError, AttributeError, KeyError, TypeError):
        return None
    return float(found) if isinstance(found, int | float) and 0 < found < 1000 else None


def read_watts(*, system: str = sys.platform, run: Runner = run_program) -> float | None:
    """Watts over the next two seconds, from ``macmon`` where that is installed on a Mac; None everywhere else."""
    if system != "darwin":
        return None
    return parse_watts(run(["macmon", "pipe", "-s", "1", "-i", "2000"]) or "")
