"""How a Mac is set up: power, sleep, heat, memory pressure, the limit on the GPU's memory, quarantine marks.

Each is asked of a small program of macOS, through ``run``; what one does not say is None, and one that fails does not
blank the others. Nothing is changed, and nothing here needs an administrator.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mlx_finetune.app.doctor.finding import Finding, Typed
from mlx_finetune.hardware.device import Device, Runner
from mlx_finetune.hardware.limits import GIB
from mlx_finetune.hardware.sensors import Level, parse_level, parse_power, parse_swap
from mlx_finetune.units import format_bytes

PowerMode = Literal["automatic", "low", "high"]
QUARANTINE = "com.apple.quarantine"

_PMSET, _SYSCTL, _XATTR = "/usr/bin/pmset", "/usr/sbin/sysctl", "/usr/bin/xattr"
_POWER_MODES: Mapping[str, PowerMode] = {"0": "automatic", "1": "low", "2": "high"}
#: A working set above this share of the memory was raised by hand: the largest that macOS chooses is 0.84 (MACOS.md).
_LARGEST_SHARE = 0.85
#: And one below this was lowered: the smallest that it chooses is 0.66.
_SMALLEST_SHARE = 0.5
_LOW_PERCENT = 20


@dataclass(frozen=True, slots=True)
class MacState:
    """Settings and state of a Mac; None is "not known". Minutes of 0 mean never.

    ``power_key`` is the name under which this macOS keeps the power mode; ``low_on_battery``: it goes into Low Power
    Mode when it is unplugged. ``speed_percent`` is 100 unless the processor is held back because of heat.
    """

    power_mode: PowerMode | None = None
    power_key: str = "lowpowermode"
    low_on_battery: bool = False
    display_sleep_minutes: int | None = None
    sleep_minutes: int | None = None
    on_battery: bool | None = None
    battery_percent: int | None = None
    speed_percent: int | None = None
    pressure: Level | None = None
    swap_bytes: int | None = None
    wired_limit_mb: int | None = None
    is_virtual: bool = False
    quarantined: tuple[str, ...] = ()


def read_mac(run: Runner, paths: Sequence[str]) -> MacState:
    """Ask a Mac; ``paths`` are the existing files and folders whose quarantine mark matters."""
    settings = parse_settings(run([_PMSET, "-g"]) or "")
    custom = parse_custom(run([_PMSET, "-g", "custom"]) or "")
    power = parse_power(run([_PMSET, "-g", "batt"]) or "")
    key = "powermode" if "powermode" in settings else "lowpowermode"
    return MacState(
        power_mode=_POWER_MODES.get(settings.get(key, "")),
        power_key=key,
        low_on_battery=custom.get("Battery Power", {}).get(key) == "1",
        display_sleep_minutes=_minutes(settings, "displaysleep"),
        sleep_minutes=_minutes(settings, "sleep"),
        on_battery=power.on_battery,
        battery_percent=power.percent,
        speed_percent=parse_speed(run([_PMSET, "-g", "therm"]) or ""),
        pressure=parse_level(run([_SYSCTL, "-n", "kern.memorystatus_vm_pressure_level"]) or ""),
        swap_bytes=parse_swap(run([_SYSCTL, "-n", "vm.swapusage"]) or ""),
        wired_limit_mb=_integer(run([_SYSCTL, "-n", "iogpu.wired_limit_mb"])),
        is_virtual=_integer(run([_SYSCTL, "-n", "kern.hv_vmm_present"])) == 1,
        quarantined=parse_quarantine(run([_XATTR, "-l", *paths]) or "", paths) if paths else (),
    )


def parse_settings(text: str) -> dict[str, str]:
    """Name to value in ``pmset -g``; what stands in brackets behind a value is left out."""
    return dict(re.findall(r"^\s(\S.*?)\s+(\S+)(?:\s+\(.*)?$", text, re.MULTILINE))


def parse_custom(text: str) -> dict[str, dict[str, str]]:
    """Power source to its settings in ``pmset -g custom``; a Mac without a battery has one source."""
    parts = re.split(r"^(\w[\w ]*):\s*$", text, flags=re.MULTILINE)
    return {source: parse_settings(part) for source, part in zip(parts[1::2], parts[2::2], strict=True)}


def parse_speed(text: str) -> int | None:
    """``CPU_Speed_Limit`` in ``pmset -g therm``; 100 where it says that no warning was recorded, None for anything
    else."""
    match = re.search(r"CPU_Speed_Limit\s*=\s*(\d+)", text)
    if match is not None:
        return int(match[1]) if int(match[1]) <= 100 else None
    return 100 if "No performance warning level" in text else None


def parse_quarantine(text: str, paths: Sequence[str]) -> tuple[str, ...]:
    """Those of ``paths`` that ``xattr -l`` shows a quarantine mark for; it names the file only where it got several."""
    marks = re.findall(rf"^(?:(.+): )?{re.escape(QUARANTINE)}: ", text, re.MULTILINE)
    if len(paths) == 1:
        return tuple(paths) if marks else ()
    return tuple(path for path in paths if path in marks)


def _minutes(settings: Mapping[str, str], name: str) -> int | None:
    return _integer(settings.get(name))


def _integer(text: str | None) -> int | None:
    """The number in the answer of ``sysctl -n``, with or without its name in front."""
    number = (text or "").rpartition(":")[2].strip()
    return int(number) if number.isascii() and number.isdigit() else None


# --- what is wrong ---


def mac_problems(state: MacState, device: Device, typed: Typed) -> Iterator[Finding]:
    """What makes a Mac slow or a training on it end; nothing for one that is set up well."""
    yield from _power_problems(state, typed)
    yield from _memory_problems(state, device)
    if state.quarantined:
        shown = " ".join(typed.path(path) for path in state.quarantined)
        what = "is" if len(state.quarantined) == 1 else "are"
        message = (
            f"{_names(state.quarantined)} {what} marked as downloaded, so macOS may refuse to open what a double-click "
            "starts"
        )
        yield Finding("warning", message, f"xattr -d {QUARANTINE} {shown}")


def _names(paths: Sequence[str]) -> str:
    names = [path.rstrip("/").rpartition("/")[2] or path for path in paths]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _power_problems(state: MacState, typed: Typed) -> Iterator[Finding]:
    if state.power_mode == "low":
        yield Finding(
            "warning",
            "Low Power Mode is on: the GPU computes more slowly",
            f"sudo pmset -a {state.power_key} 0   # or in System Settings, Battery",
        )
    elif state.low_on_battery:
        message = "on battery this Mac goes into Low Power Mode, and computes more slowly then"
        yield Finding("note", message, f"sudo pmset -b {state.power_key} 0")
    if state.on_battery:
        charge = "" if state.battery_percent is None else f" ({state.battery_percent} % left)"
        message = f"it runs on battery{charge}: slower, and a training waits when the charge is low"
        is_low = state.battery_percent is not None and state.battery_percent <= _LOW_PERCENT
        yield Finding("warning" if is_low else "note", message, "pmset -g batt   # connect it to power")
    if state.speed_percent is not None and state.speed_percent < 100:
        message = f"the processor is held at {state.speed_percent} % of its speed because this Mac is hot"
        yield Finding("warning", message, "pmset -g therm   # let it cool until CPU_Speed_Limit is 100")
    if state.display_sleep_minutes == 0:
        message = "the display never sleeps; macOS can end long work on the GPU while it has to draw"
        yield Finding("note", message, "pmset displaysleepnow   # while a training runs")


def _memory_problems(state: MacState, device: Device) -> Iterator[Finding]:
    if state.pressure in ("warning", "critical"):
        swap = "" if not state.swap_bytes else f", {format_bytes(state.swap_bytes)} are swapped out"
        message = f"memory is short (pressure: {state.pressure}{swap}): close other programs before training"
        yield Finding("warning", message, "top -l 1 -o mem -n 10 -stats command,mem   # who has it")
    working_set = device.metal.working_set_bytes if device.metal is not None else None
    if not working_set or not device.memory_bytes:
        return
    share, spare = working_set / device.memory_bytes, device.memory_bytes - working_set
    is_raised = bool(state.wired_limit_mb) or share > _LARGEST_SHARE
    allowed = f"{format_bytes(working_set)} of {format_bytes(device.memory_bytes)}"
    reset = "sudo sysctl iogpu.wired_limit_mb=0   # macOS then decides itself"
    if is_raised and spare < max(4 * GIB, round(0.15 * device.memory_bytes)):
        message = f"the GPU's memory limit was raised to {allowed}: Macs froze or restarted with so little left"
        yield Finding("warning", message, reset)
    elif share < _SMALLEST_SHARE:
        lowered = "was lowered to" if state.wired_limit_mb else "is only"
        yield Finding("warning", f"the GPU's memory limit {lowered} {allowed}: fewer models fit", reset)
