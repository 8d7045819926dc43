"""Where the power comes from and how much of it the system allows: source, charge, Low Power Mode, throttling.

A number counts only with what follows it in the listing, and a word of macOS that we do not know is None: never 0.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import psutil

from mlx_finetune.hardware.system.programs import Runner

PowerMode = Literal["low", "automatic", "high"]

PMSET = "/usr/bin/pmset"
_SOURCES = {"AC Power": False, "Battery Power": True, "UPS Power": True}
_MODES: dict[str, PowerMode] = {"0": "automatic", "1": "low", "2": "high"}
_LIMIT = re.compile(r"^\s*(CPU_Scheduler_Limit|CPU_Speed_Limit)\s*=\s*(\d{1,3})[ \t]*\n", re.MULTILINE)
_NOTHING = re.compile(r"^Note: No (thermal|performance) warning level has been recorded[ \t]*\n", re.MULTILINE)
_WARNING = re.compile(r"\b(Thermal|Performance) Warning Level = (\d{1,6})[ \t]*\n")
_WARNED = {"Thermal": "macOS warns of heat", "Performance": "macOS warns of lower performance"}


@dataclass(frozen=True, slots=True)
class Power:
    """``on_battery`` is None where the source is not known, ``percent`` (0 to 100) where there is no battery."""

    on_battery: bool | None
    percent: int | None


UNKNOWN = Power(on_battery=None, percent=None)


def parse_power(text: str) -> Power:
    """The power source and the charge in the output of ``pmset -g batt``; a desktop Mac has no charge."""
    source = re.search(r"Now drawing from '([^']*)'", text)
    charge = re.search(r"\s(\d{1,3})%;", text)
    percent = int(charge[1]) if charge else None
    return Power(
        on_battery=_SOURCES.get(source[1]) if source else None,
        percent=percent if percent is not None and percent <= 100 else None,
    )


def parse_power_mode(text: str) -> PowerMode | None:
    """The mode in use in the output of ``pmset -g``: ``powermode`` where there is one, else ``lowpowermode``."""
    found = dict(re.findall(r"^\s*(lowpowermode|powermode)\s+(\d+)\s*$", text, re.MULTILINE))
    return _MODES.get(found.get("powermode", found.get("lowpowermode", "")))


def parse_power_modes(text: str) -> Mapping[str, PowerMode]:
    """Source, such as ``Battery Power``, to its mode in the output of ``pmset -g custom``; an unknown one is absent."""
    modes: dict[str, PowerMode] = {}
    for source, settings in re.findall(r"^(\S[^\n]*):[ \t]*\n((?:[ \t][^\n]*\n?)*)", text, re.MULTILINE):
        mode = parse_power_mode(settings)
        if mode is not None:
            modes[source] = mode
    return modes


def parse_throttling(text: str) -> str | None:
    """What ``pmset -g therm`` says is slowed down, in words; "" where nothing is, None where it says neither.

    Apple silicon prints no limit at all while it is nominal; a warning has a level, 0 once it is over (pmset.c).
    """
    limits = dict(_LIMIT.findall(text))
    names = {"CPU_Speed_Limit": "the processor's speed", "CPU_Scheduler_Limit": "its time for programs"}
    slowed = [f"{name} at {int(limits[key])} %" for key, name in names.items() if int(limits.get(key, 100)) < 100]
    warnings = _WARNING.findall(text)
    slowed += [f"{_WARNED[kind]} (level {int(level)})" for kind, level in warnings if int(level)]
    if slowed:
        return ", ".join(slowed)
    return "" if len(limits) == len(names) or len(_NOTHING.findall(text)) + len(warnings) == 2 else None


def read_power(system: str, run: Runner) -> Power:
    """This machine's source and charge; ``run`` starts the Mac's tool."""
    return parse_power(run([PMSET, "-g", "batt"]) or "") if system == "darwin" else _psutil_power()


def read_power_mode(on_battery: bool | None, run: Runner) -> PowerMode | None:
    """The mode that a Mac is in. Where only the settings of each source are told, those of the one in use count."""
    mode = parse_power_mode(run([PMSET, "-g"]) or "")
    if mode is not None or on_battery is None:
        return mode
    modes = parse_power_modes(run([PMSET, "-g", "custom"]) or "")
    return modes.get("Battery Power" if on_battery else "AC Power")


def _psutil_power() -> Power:
    try:
        battery = psutil.sensors_battery()
    except (OSError, ValueError):
        return UNKNOWN
    if battery is None:
        return Power(on_battery=False, percent=None)
    is_known = battery.power_plugged is not None  # pyright: ignore[reportUnnecessaryComparison] psutil's stub is wrong
    return Power(not battery.power_plugged if is_known else None, min(100, max(0, round(battery.percent))))
