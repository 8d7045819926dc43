"""What macOS prints about the machine it runs on, as values: ``sysctl``, ``system_profiler``, ``vm_stat``.

Nothing here runs anything. A line counts only with its end, so that a listing that was cut short gives None, never
another number; what is missing or not understood is None too, never 0.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

Level = Literal["normal", "warning", "critical"]

_LEVELS: dict[str, Level] = {"1": "normal", "2": "warning", "4": "critical"}
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_MOST_LEVELS = 8  # of cores; there are three at most so far
_USED = ("Anonymous pages", "Pages wired down", "Pages occupied by compressor")


@dataclass(frozen=True, slots=True)
class Cores:
    """Physical cores of one kind, under Apple's name for it: Super, Performance, Efficiency."""

    name: str
    count: int


@dataclass(frozen=True, slots=True)
class Hardware:
    """What ``system_profiler`` knows of a Mac; it takes a second, so it is asked where nobody else answers."""

    chip: str | None = None
    model: str | None = None
    memory_bytes: int | None = None
    num_cores: int | None = None
    cores: tuple[Cores, ...] = ()
    gpu_cores: int | None = None


def parse_sysctl(text: str) -> Mapping[str, str]:
    """Name to value of the lines ``name: value`` that are whole."""
    lines = (line.partition(":") for line in text.split("\n")[:-1])
    return {name.strip(): value.strip() for name, colon, value in lines if colon}


def count(text: str | None) -> int | None:
    """A number above 0; None for anything else."""
    return int(text) or None if text is not None and re.fullmatch(r"[0-9]{1,18}", text) else None


def parse_cores(values: Mapping[str, str]) -> tuple[Cores, ...]:
    """The kinds of cores in a listing of ``sysctl hw``, fastest first; empty unless they add up to all cores.

    Two kinds may have the same name.
    """
    found: list[Cores] = []
    for level in range(_MOST_LEVELS):
        number = count(values.get(f"hw.perflevel{level}.physicalcpu"))
        if number is None:
            break
        name = values.get(f"hw.perflevel{level}.name") or ("Efficiency" if level else "Performance")
        found.append(Cores(name, number))
    total = count(values.get("hw.physicalcpu"))
    return tuple(found) if sum(one.count for one in found) == total else ()


def parse_memory_and_chip(text: str) -> tuple[int | None, str | None]:
    """Bytes and name in ``sysctl -n hw.memsize machdep.cpu.brand_string``; a name alone will do, a number will not."""
    lines = [line.strip() for line in text.split("\n")[:-1]]
    memory = count(lines[0]) if len(lines) == 2 else None
    chip = lines[-1] if lines and len(lines) <= 2 else ""
    return memory, None if not chip or chip.isdigit() else chip


def parse_hardware(text: str) -> Hardware:
    """``system_profiler -json`` of SPHardwareDataType, SPDisplaysDataType, or both; all None where it is damaged."""
    try:
        sections = json.loads(text)
    except (ValueError, RecursionError):
        return Hardware()
    main, display = (_first(sections, name) for name in ("SPHardwareDataType", "SPDisplaysDataType"))
    num_cores, cores = _processors(main.get("number_processors"))
    size = re.fullmatch(r"([0-9]{1,6}) (GB|TB)", str(main.get("physical_memory")))
    return Hardware(
        chip=_text(main.get("chip_type")),
        model=_text(main.get("machine_model")),
        memory_bytes=(int(size[1]) * _UNITS[size[2][0]] or None) if size else None,
        num_cores=num_cores,
        cores=cores,
        gpu_cores=count(_text(display.get("sppci_cores"))),
    )


def _first(sections: object, name: str) -> Mapping[str, object]:
    """The first entry of one section; empty where there is none."""
    entries = cast(dict[str, object], sections).get(name) if isinstance(sections, dict) else None
    first = cast(list[object], entries)[0] if isinstance(entries, list) and entries else None
    return cast(dict[str, object], first) if isinstance(first, dict) else {}


def _text(value: object) -> str | None:
    return value.strip() or None if isinstance(value, str) else None


def _processors(value: object) -> tuple[int | None, tuple[Cores, ...]]:
    """``proc 8:4:4`` is all, performance, efficiency; ``proc 12:0:8:4`` has super cores in front; a VM says 2."""
    if isinstance(value, int) and not isinstance(value, bool):
        return (value if value > 0 else None), ()
    match = re.fullmatch(r"proc ([0-9]{1,4})((?::[0-9]{1,4}){2,3})", str(value))
    if match is None:
        return None, ()
    total, numbers = count(match[1]), [int(part) for part in match[2].split(":")[1:]]
    names = ("Super", "Performance", "Efficiency")[-len(numbers) :]
    cores = tuple(Cores(name, number) for name, number in zip(names, numbers, strict=True) if number)
    return total, cores if sum(numbers) == total else ()


def parse_used_memory(text: str) -> int | None:
    """Bytes in use by ``vm_stat``: (anonymous - purgeable + wired + compressor) pages of the size in its heading."""
    page = re.search(r"page size of (\d+) bytes\)", text)
    pages = {name: int(number) for name, number in re.findall(r"^([A-Z][^:\n]*):\s+(\d{1,15})\.", text, re.MULTILINE)}
    if page is None or not pages.keys() >= {*_USED, "Pages purgeable"}:
        return None
    used = sum(pages[name] for name in _USED) - pages["Pages purgeable"]
    return used * int(page[1]) if used > 0 else None


def parse_free_share(text: str) -> tuple[int, float] | None:
    """``(bytes of memory, free share of it)`` in the output of ``memory_pressure`` or ``memory_pressure -Q``."""
    total = re.search(r"The system has (\d{1,18}) \(", text)
    free = re.search(r"System-wide memory free percentage: (\d{1,3})%", text)
    if total is None or free is None or not int(total[1]) or int(free[1]) > 100:
        return None
    return int(total[1]), int(free[1]) / 100


def parse_level(text: str) -> Level | None:
    """The pressure in ``kern.memorystatus_vm_pressure_level``, with or without its name in front."""
    return _LEVELS.get(text.rpartition(":")[2].strip())


def parse_swap(text: str) -> int | None:
    """Bytes of swap in use from ``vm.swapusage``. A number without its unit may be cut short, so it is no number."""
    match = re.search(r"\bused = (\d+(?:[.,]\d+)?)([KMGT])(?:\s|$)", text)
    return round(float(match[1].replace(",", ".")) * _UNITS[match[2]]) if match else None


def parse_level_and_swap(text: str) -> tuple[Level | None, int | None] | None:
    """Both in the output of one ``sysctl -n`` with both names, in that order; None where it is not two lines."""
    lines: Sequence[str] = text.strip().split("\n")
    return (parse_level(lines[0]), parse_swap(lines[1])) if len(lines) == 2 else None
