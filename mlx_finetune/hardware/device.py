"""The machine we run on, as one frozen value: system, processor, memory, and the GPU where MLX can use one.

``read_device`` asks the machine; everything it asks with is an argument, so that any Mac can be described in a test.
mlx is imported only inside ``read_metal``. Nothing here decides anything: limits follow in ``hardware.limits``.
"""

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

from mlx_finetune.hardware.system.macos import (
    Cores,
    Hardware,
    count,
    parse_cores,
    parse_hardware,
    parse_memory_and_chip,
    parse_sysctl,
    parse_used_memory,
)
from mlx_finetune.hardware.system.power import UNKNOWN, Power, PowerMode, read_power, read_power_mode
from mlx_finetune.hardware.system.programs import Runner, run_program

_SYSCTL = "/usr/sbin/sysctl"
_MAX_BUFFER_SHARE = 0.75  # of the working set that macOS itself sets, on every Mac published so far (MACOS.md 1.2)


@dataclass(frozen=True, slots=True)
class Metal:
    """What MLX says of the GPU. Sizes are None on its CPU backend, where ``name`` is the processor's."""

    is_available: bool
    name: str
    architecture: str
    working_set_bytes: int | None
    max_buffer_bytes: int | None

    @property
    def is_working_set_raised(self) -> bool:
        """True where the GPU may use more than macOS allows by itself: ``iogpu.wired_limit_mb`` was set."""
        if self.working_set_bytes is None or self.max_buffer_bytes is None:
            return False
        return self.working_set_bytes > 1.01 * self.max_buffer_bytes / _MAX_BUFFER_SHARE


@dataclass(frozen=True, slots=True)
class Device:
    """This machine. ``system`` is "darwin" or "linux"; ``is_translated``: Python runs under Rosetta.

    ``gpu_cores`` and ``power_mode`` are None where nobody tells, and so are the two fields of ``power``; ``cores`` are
    the kinds of physical ones, fastest first, empty where nobody tells. ``wheel_tag`` is the platform that MLX's Metal
    wheel was built for, ``model`` Apple's identifier such as "Mac14,7".
    """

    system: str
    os_name: str
    machine: str
    chip: str
    num_cores: int
    memory_bytes: int
    available_bytes: int
    is_translated: bool
    metal: Metal | None
    gpu_cores: int | None = None
    wheel_tag: str | None = None
    model: str | None = None
    cores: tuple[Cores, ...] = ()
    power: Power = UNKNOWN
    power_mode: PowerMode | None = None

    @property
    def backend(self) -> str:
        """Where MLX computes: "Metal GPU", "CPU", or "none" where mlx could not be asked."""
        if self.metal is None:
            return "none"
        return "Metal GPU" if self.metal.is_available else "CPU"

    @property
    def macos_version(self) -> tuple[int, int] | None:
        """``(15, 6)`` on macOS 15.6, None elsewhere."""
        return parse_macos_version(self.os_name)

    @property
    def is_low_power(self) -> bool | None:
        """True in Low Power Mode, None where nobody tells."""
        return None if self.power_mode is None else self.power_mode == "low"

    @property
    def is_virtual(self) -> bool:
        """True in a virtual Mac, whose GPU has none of the real one's features."""
        return (self.model or "").startswith("VirtualMac") or "(Virtual)" in self.chip


def read_device(
    *, metal: Metal | None, system: str = sys.platform, machine: str | None = None, run: Runner | None = None
) -> Device:
    """This machine; ``metal`` comes from ``read_metal``, or is None where mlx cannot be imported.

    Each tool is asked once; what one of them does not tell is asked of the next, and is None in the end.
    """
    run = run or run_program
    machine = machine or platform.machine()
    memory = psutil.virtual_memory()
    facts = _Mac(run) if system == "darwin" else None
    known = facts.hardware if facts else Hardware()
    total = known.memory_bytes or memory.total
    used = parse_used_memory(run(["/usr/bin/vm_stat"]) or "") if facts else None
    power = read_power(system, run)
    return Device(
        system=system,
        os_name=_os_name(system, run),
        machine=machine,
        chip=known.chip or ("" if facts else _linux_chip(run)) or (metal.name if metal else "") or machine,
        num_cores=known.num_cores or _usable_cores(),
        memory_bytes=total,
        available_bytes=memory.available if used is None or used >= total else total - used,
        is_translated=facts is not None and facts.is_translated,
        metal=metal,
        gpu_cores=known.gpu_cores,
        wheel_tag=read_wheel_tag("mlx-metal"),
        model=known.model,
        cores=known.cores,
        power=power,
        power_mode=read_power_mode(power.on_battery, run) if facts else None,
    )


class _Mac:
    """What a Mac's small tools say; the system profiler, which takes a second, fills only what they leave open."""

    def __init__(self, run: Runner) -> None:
        values = parse_sysctl(_lines(run, _SYSCTL, "hw"))
        memory, chip = parse_memory_and_chip(_lines(run, _SYSCTL, "-n", "hw.memsize", "machdep.cpu.brand_string"))
        gpu_cores = parse_gpu_cores(run(_REGISTER) or "")
        slow = Hardware()
        if chip is None or gpu_cores is None:
            asked = ("SPHardwareDataType", "SPDisplaysDataType")
            slow = parse_hardware(run(["/usr/sbin/system_profiler", "-json", *asked]) or "")
        self.is_translated = _is_translated(run)
        self.hardware = Hardware(
            chip=chip or slow.chip,
            model=values.get("hw.model") or slow.model,
            memory_bytes=memory or count(values.get("hw.memsize")) or slow.memory_bytes,
            num_cores=count(values.get("hw.logicalcpu") or values.get("hw.ncpu")) or slow.num_cores,
            cores=parse_cores(values) or slow.cores,
            gpu_cores=gpu_cores or slow.gpu_cores,
        )


def _lines(run: Runner, *command: str) -> str:
    """What a program printed, with the end of its last line, which is whole: the program has ended well."""
    printed = run(command)
    return "" if printed is None else printed + "\n"


def read_chip(system: str = sys.platform, run: Runner | None = None) -> str | None:
    """The processor's name as the system tells it; None where it does not."""
    run = run or run_program
    if system != "darwin":
        return _linux_chip(run) or None
    return run([_SYSCTL, "-n", "machdep.cpu.brand_string"])


def read_macos_version(run: Runner) -> tuple[int, int] | None:
    """``(15, 6)``; None where the tool does not answer."""
    return parse_macos_version(_os_name("darwin", run))


def parse_macos_version(os_name: str) -> tuple[int, int] | None:
    """``macOS 15.6.1`` as ``(15, 6)``; None for any other system."""
    match = re.fullmatch(r"macOS (\d+)(?:\.(\d+))?.*", os_name)
    return (int(match[1]), int(match[2] or 0)) if match else None


_REGISTER = ("/usr/sbin/ioreg", "-r", "-d", "1", "-w", "0", "-c", "IOAccelerator")


def read_gpu_cores(run: Runner) -> int | None:
    """GPU cores of a Mac: the register of devices answers in milliseconds, the system profiler in a second."""
    found = parse_gpu_cores(run(_REGISTER) or "")
    if found is None:
        found = parse_gpu_cores(run(["/usr/sbin/system_profiler", "-json", "SPDisplaysDataType"]) or "")
    return found


def parse_gpu_cores(text: str) -> int | None:
    """The count in a listing of ``ioreg`` (plain or as a property list) or of ``system_profiler -json``."""
    for pattern in (
        r'"gpu-core-count"\s*=\s*(\d+)',
        r"<key>gpu-core-count</key>\s*<integer>(\d+)</integer>",
        r'"GPUConfigurationVariable"\s*=\s*\{[^}]*"num_cores"\s*=\s*(\d+)',
        r'"sppci_cores"\s*:\s*"(\d+)"',
    ):
        match = re.search(pattern, text)
        if match is not None:
            return int(match[1]) or None
    return None


def read_wheel_tag(package: str) -> str | None:
    """The platform an installed wheel was built for, such as ``macosx_15_0_arm64``; None where it is not installed."""
    try:
        wheel = importlib.metadata.distribution(package).read_text("WHEEL") or ""
    except importlib.metadata.PackageNotFoundError:
        return None
    tags = [line.split(":", 1)[1].strip() for line in wheel.splitlines() if line.startswith("Tag:")]
    return tags[0].rsplit("-", 1)[-1] if tags else None


def read_metal() -> Metal:
    """Ask MLX. Raises ``ImportError`` where mlx is missing or broken; on Linux call ``blas.prepare`` before."""
    import mlx.core as mx

    info: Mapping[str, object] = dict(mx.device_info())
    return parse_metal(info, is_available=mx.metal.is_available())


def parse_metal(info: Mapping[str, object], *, is_available: bool) -> Metal:
    """``mx.device_info()`` as a value; only two of its keys exist on the CPU backend (MACOS.md section 1.2)."""

    def size(key: str) -> int | None:
        value = info.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None

    return Metal(
        is_available=is_available,
        name=str(info.get("device_name", "")),
        architecture=str(info.get("architecture", "")),
        working_set_bytes=size("max_recommended_working_set_size"),
        max_buffer_bytes=size("max_buffer_length"),
    )


def _is_translated(run: Runner) -> bool:
    """Rosetta; the name is unknown on old systems, where ``sysctl`` then fails."""
    return (run([_SYSCTL, "-n", "sysctl.proc_translated"]) or "").rpartition(":")[2].strip() == "1"


def _linux_chip(run: Runner) -> str:
    match = re.search(r"^Model name:\s*(\S.*?)\s*$", run(["lscpu"]) or "", re.MULTILINE)
    return match[1] if match else ""


def _os_name(system: str, run: Runner) -> str:
    if system == "darwin":
        return f"macOS {run(['/usr/bin/sw_vers', '-productVersion']) or '(unknown)'}"
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return platform.platform()
    return release.get("PRETTY_NAME", release.get("NAME", "Linux"))


def _usable_cores() -> int:
    """Cores this process may run on; fewer than there are inside a container or under ``taskset``."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
