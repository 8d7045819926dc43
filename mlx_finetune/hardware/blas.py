"""Loads a fast BLAS into the process before mlx on Linux, and switches denormal numbers off. Nothing of it runs on a Mac.

The mlx wheel for Linux is linked to the reference BLAS: 3 to 6 GFLOP/s in fp32 on two cores. An OpenBLAS whose symbols
are global before mlx is loaded takes their place: about 190 (DESIGN.md section 1). Matmuls over denormal numbers run
80x slower (PERF.md section 4), hence flush-to-zero; threads inherit it from the one that starts them, so this comes
first there as well. Neither is undone: both belong to the process. Standard library only.
"""

import ctypes
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_LIBRARY = Path("cmeel.prefix", "lib")
_NAMES = ("libopenblas.so", "libopenblas.so.0")

_FENV_BYTES = 32  # fenv_t of glibc on x86-64: 28 bytes of the x87 unit, then MXCSR
_MXCSR_OFFSET = 28
_FLUSH_TO_ZERO = 0x8040  # bit 15: results, bit 6: operands


@dataclass(frozen=True, slots=True)
class BlasReport:
    """What ``prepare`` did. ``reason`` says in words why something was not done, or what was."""

    loaded: bool
    path: str | None
    flush_to_zero: bool
    reason: str


def prepare() -> BlasReport:
    """Load OpenBLAS and set flush-to-zero, once for the process; later calls return the first report.

    Call it before the first ``import mlx.core``; after that it is too late, and the report says so. Never raises.
    """
    return _prepare_once()


@cache
def _prepare_once() -> BlasReport:
    return prepare_on(
        sys.platform, platform.machine(), [Path(entry) for entry in sys.path if entry], "mlx.core" in sys.modules
    )


def prepare_on(system: str, machine: str, folders: Sequence[Path], mlx_is_loaded: bool) -> BlasReport:
    """``prepare`` with everything it depends on given: ``sys.platform``, machine, import folders, mlx loaded already."""
    if system != "linux":
        return BlasReport(False, None, False, "not needed here: mlx brings its own fast matrix product")
    flushed = machine == "x86_64" and set_flush_to_zero()
    if mlx_is_loaded:
        return BlasReport(False, None, flushed, "mlx was imported before OpenBLAS could be loaded")
    library = find_openblas(folders)
    if library is None:
        return BlasReport(False, None, flushed, "OpenBLAS is not installed (package cmeel-openblas)")
    try:
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    except OSError as error:
        return BlasReport(False, str(library), flushed, f"OpenBLAS could not be loaded: {error}")
    return BlasReport(True, str(library), flushed, "OpenBLAS was loaded before mlx")


def find_openblas(folders: Sequence[Path]) -> Path | None:
    """The OpenBLAS of the package ``cmeel-openblas`` in the first of ``folders`` (as in ``sys.path``) that has one."""
    for folder in folders:
        for name in _NAMES:
            candidate = folder / _LIBRARY / name
            if candidate.is_file():
                return candidate
    return None


def set_flush_to_zero() -> bool:
    """Treat denormal operands and results as zero in this thread and those it starts; True where that took."""
    try:
        libm = ctypes.CDLL("libm.so.6")
        environment = ctypes.create_string_buffer(_FENV_BYTES)
        if libm.fegetenv(environment) != 0:
            return False
        mxcsr = ctypes.c_uint32.from_buffer(environment, _MXCSR_OFFSET)
        mxcsr.value |= _FLUSH_TO_ZERO
        return libm.fesetenv(environment) == 0 and flushes_to_zero()
    except (OSError, AttributeError):
        return False


def flushes_to_zero() -> bool:
    """True where this thread's arithmetic turns a denormal result into zero; measured, not remembered."""
    smallest_normal = sys.float_info.min
    return smallest_normal / 4 == 0.0
