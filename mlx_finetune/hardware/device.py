"""The machine we run on, as one frozen value: system, processor, memory, and the GPU where MLX can use one.

``read_device`` asks the machine; everything it asks with is an argument, so that any Mac can be described in a test.
mlx is imported only inside ``read_metal``. Nothing here decides anything: limits follow in ``hardware.limits``.
"""

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import psutil

#: Runs a program and returns its standard output, or None where it is missing, fails or takes more than 5 s.
Runner = Callable[[Sequence[str]], str | None]


@dataclass(frozen=True, slots=True)
class Metal:
    """What MLX says of the GPU. Sizes are None on its CPU backend, where ``name`` is the processor's."""

    is_available: bool
    name: str
    architecture: str
    working_set_bytes: int | None
    max_buffer_bytes: int | None


@dataclass(frozen=True, slots=True)
class Device:
    """This machine. ``system`` is "darwin" or "linux"; ``is_translated``: Python runs under Rosetta.

    ``gpu_cores`` is None where nobody tells, ``wheel_tag`` the platform that MLX's Metal wheel was built for.
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

    @property
    def backend(self) -> str:
        """Where MLX computes: "Metal GPU", "CPU", or "none" where mlx could not be asked."""
        if self.metal is None:
            return "none"
        return "Metal GPU" if self.metal.is_available else "CPU"

    @property
    def macos_version(self) -> tuple[int, int] | None:
        """``(15, 6)`` on macOS 15.6, None elsewhere."""
        match = re.fullmatch(r"macOS (\d+)(?:\.(\d+))?.*", self.os_name)
        return (int(match[1]), int(match[2] or 0)) if match else None


def read_device(
    *, metal: Metal | None, system: str = sys.platform, machine: str | None = None, run: Runner | None = None
) -> Device:
    """This machine; ``metal`` comes from ``read_metal``, or is None where mlx cannot be imported."""
    run = run or run_program
    machine = machine or platform.machine()
    memory = psutil.virtual_memory()
    return Device(
        system=system,
        os_name=_os_name(system, run),
        machine=machine,
        chip=_chip(system, run) or (metal.name if metal else "") or machine,
        num_cores=_usable_cores(),
        memory_bytes=memory.total,
        available_bytes=memory.available,
        is_translated=system == "darwin" and _sysctl("sysctl.proc_translated", run) == "1",
        metal=metal,
        gpu_cores=read_gpu_cores(run) if system == "darwin" else None,
        wheel_tag=read_wheel_tag("mlx-metal"),
    )


def read_chip(system: str = sys.platform, run: "Runner | None" = None) -> str | None:
    """The processor's name as the system tells it; None where it does not."""
    return _chip(system, run or run_program)


def read_gpu_cores(run: Runner) -> int | None:
    """GPU cores of a Mac: the register of devices answers in milliseconds, the system profiler in a second."""
    listing = run(["/usr/sbin/ioreg", "-r", "-d", "1", "-w", "0", "-c", "IOAccelerator"])
    found = parse_gpu_cores(listing or "")
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
        return value if isinstance(value, int) else None

    return Metal(
        is_available=is_available,
        name=str(info.get("device_name", "")),
        architecture=str(info.get("architecture", "")),
        working_set_bytes=size("max_recommended_working_set_size"),
        max_buffer_bytes=size("max_buffer_length"),
    )


def run_program(command: Sequence[str], *, timeout_seconds: float = 5.0) -> str | None:
    """Standard output of ``command``, stripped; None where it is missing, fails or takes too long.

    In the C locale, as its output is parsed. Descriptors are left alone (Python's own are not inherited), so that a
    program named by its whole path is spawned and not forked: the caller may be a training process of many GB.
    """
    in_c = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_seconds,
            check=False,
            env=in_c,
            close_fds=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _sysctl(name: str, run: Runner) -> str | None:
    return run(["/usr/sbin/sysctl", "-n", name])


def _chip(system: str, run: Runner) -> str | None:
    if system == "darwin":
        return _sysctl("machdep.cpu.brand_string", run)
    listing = run(["lscpu"]) or ""
    match = re.search(r"^Model name:\s*(\S.*?)\s*$", listing, re.MULTILINE)
    return match[1] if match else None


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
