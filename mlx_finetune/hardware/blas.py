"""Loads a fast BLAS before mlx on Linux, and switches denormal numbers off. Nothing of it runs on a Mac.

The mlx wheel for Linux is linked to the reference BLAS: 5 GFLOP/s in fp32 on two cores of an EPYC (AVX2). An OpenBLAS
whose symbols are global before mlx is loaded takes its place: 155 there. The one we load (package ngsolve-openblas)
picks its kernels for the processor at hand; the one of cmeel-openblas 0.3.31 is built for AVX-512 only and ends the
process with an illegal instruction elsewhere. It asks for libgfortran.so.5, which a fresh machine need not have; mlx
carries a copy under another name, so that copy is loaded with its name put right (``load_bundled_gfortran``).

Matmuls over denormal numbers run 80x slower (PERF.md section 4), hence flush-to-zero; threads inherit it from the one
that starts them, so it comes first as well. Neither is undone: both belong to the process. Standard library only.
"""

import ctypes
import os
import platform
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_GFORTRAN = b"libgfortran.so.5"
_FENV_BYTES = 32  # fenv_t of glibc on x86-64: 28 bytes of the x87 unit, then MXCSR
_MXCSR_OFFSET = 28
_FLUSH_TO_ZERO = 0x8040  # bit 15: results, bit 6: operands


@dataclass(frozen=True, slots=True)
class BlasReport:
    """What ``prepare`` did. ``reason`` says in words what was done, or why not."""

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
    folders = [Path(entry) for entry in sys.path if entry]
    return prepare_on(sys.platform, platform.machine(), folders, mlx_is_loaded="mlx.core" in sys.modules)


def prepare_on(system: str, machine: str, folders: Sequence[Path], *, mlx_is_loaded: bool) -> BlasReport:
    """``prepare`` with what it depends on given: ``sys.platform``, the machine, where packages are imported from."""
    if system != "linux":
        return BlasReport(False, None, False, "not needed: mlx brings its own fast matrix product here")
    flushed = machine == "x86_64" and set_flush_to_zero()
    if mlx_is_loaded:
        return BlasReport(False, None, flushed, "mlx was imported before OpenBLAS could be loaded")
    library = find_openblas(folders)
    if library is None:
        return BlasReport(False, None, flushed, "OpenBLAS is not installed (package ngsolve-openblas)")
    problem = _load_globally(library, folders)
    if problem:
        return BlasReport(False, str(library), flushed, f"OpenBLAS could not be loaded: {problem}")
    return BlasReport(True, str(library), flushed, "OpenBLAS was loaded before mlx")


def num_threads() -> int | None:
    """Threads of the BLAS that ``prepare`` loaded, None where there is none. The last bits of a sum depend on it."""
    report = prepare()
    if not report.loaded or report.path is None:
        return None
    return int(ctypes.CDLL(report.path).openblas_get_num_threads())


def use_threads(count: int | str) -> None:
    """Let the BLAS that ``prepare`` loaded use ``count`` threads from now on; nothing happens where there is none.

    Nor for a word, which leaves it with those it has.
    """
    report = prepare()
    if report.loaded and report.path is not None and isinstance(count, int):
        ctypes.CDLL(report.path).openblas_set_num_threads(count)


@contextmanager
def single_threaded() -> Generator[None]:
    """One BLAS thread inside, as many as before after it; nothing happens where ``prepare`` loaded no BLAS.

    For decoding: its products are too small to share, and a second thread waits long beside any busy process.
    """
    report, threads = prepare(), num_threads()
    if threads is None or report.path is None:
        yield
        return
    library = ctypes.CDLL(report.path)
    library.openblas_set_num_threads(1)
    try:
        yield
    finally:
        library.openblas_set_num_threads(threads)


def find_openblas(folders: Sequence[Path]) -> Path | None:
    """The OpenBLAS of the package ``ngsolve-openblas`` in the first of ``folders`` (as in ``sys.path``) that has it."""
    for folder in folders:
        for candidate in sorted(folder.glob("ngsolve_openblas/libopenblas*.so")):
            return candidate
    return None


def _load_globally(library: Path, folders: Sequence[Path]) -> str:
    try:
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
        return ""
    except OSError as error:
        if _GFORTRAN.decode() not in str(error):
            return str(error)
    try:
        load_bundled_gfortran(folders)
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
        return ""
    except OSError as error:
        return str(error)


def load_bundled_gfortran(folders: Sequence[Path]) -> None:
    """Load the libgfortran that the package ``mlx-cpu`` carries so that it answers to ``libgfortran.so.5``.

    Wheels carry it as ``libgfortran-HASH.so.5.0.0`` and write that into the file as its own name (DT_SONAME), which is
    what the loader compares with the name a library asks for. The copy in memory gets the plain name in its place,
    padded with zeros; nothing is written to the disk. Raises ``OSError`` where there is none or it does not load.
    """
    bundled = [path for folder in folders for path in sorted(folder.glob("mlx_cpu.libs/libgfortran-*.so*"))]
    if not bundled:
        raise OSError(f"{_GFORTRAN.decode()} is not installed, and mlx carries no copy of it")
    for companion in sorted(bundled[0].parent.glob("libquadmath-*.so*")):
        ctypes.CDLL(str(companion))
    own_name = bundled[0].name.encode()
    content = (
        bundled[0].read_bytes().replace(b"\0" + own_name + b"\0", b"\0" + _GFORTRAN.ljust(len(own_name), b"\0") + b"\0")
    )
    descriptor = os.memfd_create(_GFORTRAN.decode())
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(content)
        ctypes.CDLL(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


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
