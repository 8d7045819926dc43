"""What the machine says while it works: power source and charge, memory pressure and swap. No mlx; decides nothing.

On a Mac four figures cost two small programs (MACOS.md section 4); elsewhere psutil reads them from files. What a
source does not say, or says in a way we do not know, is None and never 0; one that fails does not blank the others.
"""

import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import psutil

from mlx_finetune.hardware.system.macos import Level, parse_level, parse_level_and_swap, parse_swap
from mlx_finetune.hardware.system.power import UNKNOWN, Power, read_power
from mlx_finetune.hardware.system.programs import Runner, find_program, run_program

FIRST_SECONDS = 1.0
_SYSCTL = "/usr/sbin/sysctl"
_LEVEL, _SWAP = "kern.memorystatus_vm_pressure_level", "vm.swapusage"


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
        return Sensors(partial(read_power, system, run), partial(read_memory, run))
    return Sensors(partial(read_power, system, run), _psutil_memory)


T = TypeVar("T")


class Aside(Generic[T]):
    """Reads in a thread, so that whoever calls never waits for a tool that hangs: a call gives what the reading begun
    by the call before has found, and ``unknown`` where that still goes on. The first waits, ``FIRST_SECONDS`` at most.
    """

    def __init__(self, read: Callable[[], T], unknown: T) -> None:
        self._read = read
        self._unknown = self._found = unknown
        self._thread: threading.Thread | None = None

    def __call__(self) -> T:
        """What was read, once; the first reading twice, as nothing else is known at the second call."""
        is_first = self._thread is None
        if self._thread is not None and self._thread.is_alive():
            return self._unknown
        found, self._found = self._found, self._unknown
        self._thread = threading.Thread(target=self._work, name="read aside", daemon=True)
        self._thread.start()
        if is_first:
            self._thread.join(FIRST_SECONDS)
            return self._found
        return found

    def _work(self) -> None:
        self._found = self._read()


def read_aside(sensors: Sensors) -> Sensors:
    """``sensors`` for a thread that must not wait."""
    nothing = Memory(level=None, swap_bytes=None)
    return Sensors(Aside(sensors.read_power, UNKNOWN), Aside(sensors.read_memory, nothing))


def read_memory(run: Runner) -> Memory:
    """A Mac's pressure and swap. Both with one program; where that fails one by one, as an unknown name fails both."""
    both = parse_level_and_swap(run([_SYSCTL, "-n", _LEVEL, _SWAP]) or "")
    if both is not None:
        return Memory(*both)
    level, swap = run([_SYSCTL, "-n", _LEVEL]), run([_SYSCTL, "-n", _SWAP])
    return Memory(parse_level(level or ""), parse_swap(swap or ""))


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
    macmon = find_program("macmon", os.environ) or "macmon"
    return parse_watts(run([macmon, "pipe", "-s", "1", "-i", "2000"]) or "")
