"""What the machine itself lacks for MLX: processor, macOS, GPU, memory, and the wheel that was installed for it."""

import re
from collections.abc import Iterator, Sequence

from mlx_finetune.app.doctor.finding import Finding, Typed
from mlx_finetune.hardware.blas import BlasReport
from mlx_finetune.hardware.device import Device
from mlx_finetune.units import format_bytes

GB = 10**9
MIN_MEMORY_BYTES = 4 * GB
MIN_MACOS = 14
#: macOS versions from which on mlx has a wheel of its own: wiring needs 15, the M5's accelerators 26 (MACOS.md 1.1).
WHEEL_MACOS = (14, 15, 26)
#: What the M5's accelerators need: this macOS, the wheel for 26, and this generation in the GPU's name.
_ACCELERATORS_MACOS = (26, 2)
_ACCELERATORS_GENERATION = 17
SLOW_GFLOPS = 15.0


def system_problems(device: Device, typed: Typed, *, is_virtual: bool = False) -> Sequence[Finding]:
    """The first reason for which MLX cannot work on this machine at all; none on Linux."""
    if device.system != "darwin":
        return []
    if device.is_translated:
        message = "Python runs under Rosetta, where MLX cannot be installed"
        return [Finding("blocker", message, typed.rebuild(prefix="arch -arm64 "))]
    if device.machine != "arm64":
        message = f"MLX needs an Apple silicon Mac (M1 or newer), this is {device.machine}"
        return [Finding("blocker", message, "train on another machine: https://ml-explore.github.io/mlx")]
    version = device.macos_version
    if version == (10, 16):  # what every newer macOS says to programs that ask it to
        message = "macOS hides its version, because SYSTEM_VERSION_COMPAT is set"
        return [Finding("blocker", message, f"unset SYSTEM_VERSION_COMPAT && {typed.mlxft} doctor")]
    if version is not None and version[0] < MIN_MACOS:
        message = f"MLX needs macOS {MIN_MACOS} or newer, this is {device.os_name}"
        return [
            Finding("blocker", message, "open 'x-apple.systempreferences:com.apple.Software-Update-Settings.extension'")
        ]
    if device.metal is not None and not device.metal.is_available:
        if is_virtual:
            message = "this macOS runs in a virtual machine without a GPU that MLX can use"
            return [Finding("blocker", message, "start it on the Mac itself")]
        message = "MLX does not see the GPU, so training would run on the processor alone"
        return [Finding("blocker", message, f"log in at the Mac itself, then: {typed.mlxft} doctor")]
    if is_virtual:
        message = "this macOS runs in a virtual machine: its GPU is slower, and not all of MLX may work"
        return [Finding("warning", message, "start it on the Mac itself")]
    return []


def wheel_problems(tag: str | None, device: Device, typed: Typed) -> Iterator[Finding]:
    """A wheel of mlx that this macOS has outgrown, or that is too new for it."""
    match, macos = re.match(r"macosx_(\d+)_", tag or ""), device.macos_version
    if match is None or macos is None:
        return
    built_for = int(match[1])
    if built_for > macos[0]:
        yield Finding("blocker", f"mlx was installed for {tag}, and this is {device.os_name}", typed.rebuild())
    elif any(built_for < newer <= macos[0] for newer in WHEEL_MACOS):
        message = f"mlx was installed for {tag} and lacks what {device.os_name} offers"
        if _has_accelerators(device) and built_for < _ACCELERATORS_MACOS[0] and macos >= _ACCELERATORS_MACOS:
            message += ", the accelerators of this GPU above all"
        yield Finding("warning", message, typed.rebuild())
    elif _has_accelerators(device) and macos < _ACCELERATORS_MACOS:
        wanted = ".".join(map(str, _ACCELERATORS_MACOS))
        message = f"the accelerators of this GPU need macOS {wanted}, this is {device.os_name}"
        yield Finding("note", message, "open 'x-apple.systempreferences:com.apple.Software-Update-Settings.extension'")


def _has_accelerators(device: Device) -> bool:
    """True from the M5 on: its GPU calls itself applegpu_g17 or higher."""
    match = re.search(r"g(\d+)", device.metal.architecture if device.metal is not None else "")
    return match is not None and int(match[1]) >= _ACCELERATORS_GENERATION


def speed_problems(device: Device, blas: BlasReport, gflops: float | None, typed: Typed) -> Iterator[Finding]:
    """What makes MLX on a Linux processor slower than it could be."""
    if device.system != "linux":
        return
    if not blas.loaded:
        message = f"{blas.reason}: matrix products run 10 to 30 times slower than they could"
        yield Finding("warning", message, f"{typed.python} -m pip install --force-reinstall ngsolve-openblas")
    elif gflops is not None and gflops < SLOW_GFLOPS:
        message = f"only {gflops:.0f} GFLOP/s although OpenBLAS is loaded: other programs keep the processor busy"
        yield Finding("warning", message, f"OPENBLAS_NUM_THREADS=1 {typed.mlxft} doctor")
    if device.machine == "x86_64" and not blas.flush_to_zero:
        message = "denormal numbers could not be switched off, which needs glibc: single steps may be 80 times slower"
        yield Finding("warning", message, "ldd --version")


def memory_problems(device: Device, typed: Typed) -> Iterator[Finding]:
    """Too little memory for all but the smallest models."""
    if device.memory_bytes < MIN_MEMORY_BYTES:
        message = f"{format_bytes(device.memory_bytes)} of memory: only the smallest models can be trained"
        yield Finding("warning", message, f"{typed.mlxft} models list")
