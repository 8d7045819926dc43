"""How a Mac is set up: sleep, heat, memory pressure, the GPU's memory limit, quarantine marks. Power is in Device.

Each is asked of a small program of macOS, through ``run``; what one does not say is None, and one that fails does not
blank the others. Nothing is changed, and nothing here needs an administrator.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mlx_finetune.app.doctor.finding import Finding, Typed
from mlx_finetune.hardware.device import Device
from mlx_finetune.hardware.limits import GIB
from mlx_finetune.hardware.sensors import system_sensors
from mlx_finetune.hardware.system.macos import Level
from mlx_finetune.hardware.system.power import PMSET, parse_power_modes, parse_throttling
from mlx_finetune.hardware.system.programs import Runner
from mlx_finetune.units import format_bytes

QUARANTINE = "com.apple.quarantine"

_SYSCTL, _XATTR = "/usr/sbin/sysctl", "/usr/bin/xattr"
#: A working set above this share of the memory was raised by hand: the largest that macOS chooses is 0.84 (MACOS.md).
_LARGEST_SHARE = 0.85
#: And one below this was lowered: the smallest that it chooses is 0.66.
_SMALLEST_SHARE = 0.5
_LOW_PERCENT = 20


@dataclass(frozen=True, slots=True)
class MacState:
    """Settings and state of a Mac; None is "not known". Minutes of 0 mean never.

    ``power_key`` is the name under which this macOS keeps the power mode; ``low_on_battery``: it goes into Low Power
    Mode when it is unplugged. ``throttled`` says in words what is held back, "" where nothing is.
    """

    power_key: str = "lowpowermode"
    low_on_battery: bool = False
    display_sleep_minutes: int | None = None
    sleep_minutes: int | None = None
    throttled: str | None = None
    pressure: Level | None = None
    swap_bytes: int | None = None
    wired_limit_mb: int | None = None
    is_virtual: bool = False
    quarantined: tuple[str, ...] = ()


def read_mac(run: Runner, paths: Sequence[str]) -> MacState:
    """Ask a Mac; ``paths`` are the existing files and folders whose quarantine mark matters."""
    settings = parse_settings(run([PMSET, "-g"]) or "")
    modes = parse_power_modes(run([PMSET, "-g", "custom"]) or "")
    heat = run([PMSET, "-g", "therm"])
    memory = system_sensors(system="darwin", run=run).read_memory()
    return MacState(
        power_key="powermode" if "powermode" in settings else "lowpowermode",
        low_on_battery=modes.get("Battery Power") == "low",
        display_sleep_minutes=_integer(settings.get("displaysleep")),
        sleep_minutes=_integer(settings.get("sleep")),
        throttled=parse_throttling(f"{heat}\n") if heat else None,
        pressure=memory.level,
        swap_bytes=memory.swap_bytes,
        wired_limit_mb=_integer(run([_SYSCTL, "-n", "iogpu.wired_limit_mb"])),
        is_virtual=_integer(run([_SYSCTL, "-n", "kern.hv_vmm_present"])) == 1,
        quarantined=parse_quarantine(run([_XATTR, "-l", *paths]) or "", paths) if paths else (),
    )


def parse_settings(text: str) -> dict[str, str]:
    """Name to value in ``pmset -g``; what stands in brackets behind a value is left out."""
    return dict(re.findall(r"^\s(\S.*?)\s+(\S+)(?:\s+\(.*)?$", text, re.MULTILINE))


def parse_quarantine(text: str, paths: Sequence[str]) -> tuple[str, ...]:
    """Those of ``paths`` that ``xattr -l`` shows a quarantine mark for; it names the file only where it got several."""
    marks = re.findall(rf"^(?:(.+): )?{re.escape(QUARANTINE)}: ", text, re.MULTILINE)
    if len(paths) == 1:
        return tuple(paths) if marks else ()
    return tuple(path for path in paths if path in marks)


def _integer(text: str | None) -> int | None:
    """The number in the answer of ``sysctl -n``, with or without its name in front."""
    number = (text or "").rpartition(":")[2].strip()
    return int(number) if number.isascii() and number.isdigit() else None


# --- what is wrong ---


def mac_problems(state: MacState, device: Device, typed: Typed) -> Iterator[Finding]:
    """What makes a Mac slow or a training on it end; nothing for one that is set up well."""
    yield from _power_problems(state, device)
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


def _power_problems(state: MacState, device: Device) -> Iterator[Finding]:
    power = device.power
    if device.is_low_power:
        yield Finding(
            "warning",
            "Low Power Mode is on (System Settings, Battery): the GPU computes more slowly",
            f"sudo pmset -a {state.power_key} 0",
        )
    elif state.low_on_battery:
        message = "on battery this Mac goes into Low Power Mode, and computes more slowly then"
        yield Finding("note", message, f"sudo pmset -b {state.power_key} 0")
    if power.on_battery:
        charge = "" if power.percent is None else f" ({power.percent} % left)"
        message = (
            f"it runs on battery{charge}: a training is slower, and waits when the charge is low; connect it to power"
        )
        is_low = power.percent is not None and power.percent <= _LOW_PERCENT
        yield Finding("warning" if is_low else "note", message, "pmset -g batt")
    if state.throttled:
        message = f"this Mac is held back because it is hot: {state.throttled}; let it cool"
        yield Finding("warning", message, "pmset -g therm")
    if state.display_sleep_minutes == 0:
        message = (
            "the display never sleeps; let it during a training, as macOS can end long work on the GPU while it draws"
        )
        yield Finding("note", message, "pmset displaysleepnow")


def _memory_problems(state: MacState, device: Device) -> Iterator[Finding]:
    if state.pressure in ("warning", "critical"):
        swap = "" if not state.swap_bytes else f", {format_bytes(state.swap_bytes)} are swapped out"
        message = f"memory is short (pressure: {state.pressure}{swap}): close other programs before training"
        yield Finding("warning", message, "top -l 1 -o mem -n 10 -stats command,mem")
    working_set = device.metal.working_set_bytes if device.metal is not None else None
    if not working_set or not device.memory_bytes:
        return
    share, spare = working_set / device.memory_bytes, device.memory_bytes - working_set
    assert device.metal is not None
    is_raised = bool(state.wired_limit_mb) or device.metal.is_working_set_raised or share > _LARGEST_SHARE
    allowed = f"{format_bytes(working_set)} of {format_bytes(device.memory_bytes)}"
    reset = "sudo sysctl iogpu.wired_limit_mb=0"
    if is_raised and spare < max(4 * GIB, round(0.15 * device.memory_bytes)):
        message = f"the GPU's memory limit was raised to {allowed}: Macs froze with so little left. 0 is macOS's own"
        yield Finding("warning", message, reset)
    elif share < _SMALLEST_SHARE:
        lowered = "was lowered to" if state.wired_limit_mb else "is only"
        yield Finding("warning", f"the GPU's memory limit {lowered} {allowed}: fewer models fit", reset)
