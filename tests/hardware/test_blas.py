import subprocess
import sys
from pathlib import Path

import pytest

from mlx_finetune.hardware import blas

PREPARED = """
import sys
from mlx_finetune.hardware import blas
report = blas.prepare()
assert blas.prepare() is report
assert "mlx" not in sys.modules and "numpy" not in sys.modules
"""
on_linux_x86 = pytest.mark.skipif(
    not (sys.platform == "linux" and blas.platform.machine() == "x86_64"), reason="OpenBLAS is loaded on Linux x86 only"
)


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@on_linux_x86
def test_mlx_multiplies_matrices_with_the_library_that_was_loaded_before_it():
    # Read from the process itself: the symbol that mlx's own library is bound to lies in OpenBLAS.
    code = (
        PREPARED
        + """
import ctypes
import mlx.core as mx
class Info(ctypes.Structure):
    _fields_ = [("file", ctypes.c_char_p)] + [(name, ctypes.c_void_p) for name in ("base", "name", "at")]
info = Info()
address = ctypes.cast(ctypes.CDLL(None).cblas_sgemm, ctypes.c_void_p)
assert ctypes.CDLL(None).dladdr(address, ctypes.byref(info))
print(report.loaded, info.file.decode() == report.path)
"""
    )
    assert run_python(code) == "True True"


@on_linux_x86
def test_the_product_is_right_with_the_loaded_library():
    code = (
        PREPARED
        + """
import mlx.core as mx, numpy as np
a = np.random.default_rng(0).normal(size=(130, 257)).astype("float32")
b = np.random.default_rng(1).normal(size=(257, 70)).astype("float32")
print(float(np.abs(np.array(mx.array(a) @ mx.array(b)) - a.astype("float64") @ b.astype("float64")).max()) < 1e-4)
"""
    )
    assert run_python(code) == "True"


@on_linux_x86
def test_denormal_results_become_zero_in_this_thread_and_in_mlx():
    code = (
        PREPARED
        + """
import mlx.core as mx
print(report.flush_to_zero, blas.flushes_to_zero(), mx.exp(mx.array(-90.0)).item() * mx.array(1e-20).item())
print((mx.array(1e-30) * mx.array(1e-12)).item())
"""
    )
    assert run_python(code).split() == ["True", "True", "0.0", "0.0"]


def test_without_preparation_denormal_numbers_are_kept():
    assert run_python("from mlx_finetune.hardware import blas; print(blas.flushes_to_zero())") == "False"


@on_linux_x86
def test_preparing_after_mlx_is_reported_as_too_late():
    code = (
        "import mlx.core\nfrom mlx_finetune.hardware import blas\nprint(blas.prepare().loaded, blas.prepare().reason)"
    )
    assert run_python(code) == "False mlx was imported before OpenBLAS could be loaded"


def test_nothing_is_done_on_a_mac(tmp_path: Path):
    report = blas.prepare_on("darwin", "arm64", [tmp_path], mlx_is_loaded=False)
    assert (report.loaded, report.path, report.flush_to_zero) == (False, None, False)
    assert "not needed" in report.reason


def test_a_missing_library_is_named_with_its_package(tmp_path: Path):
    report = blas.prepare_on("linux", "riscv64", [tmp_path], mlx_is_loaded=False)
    assert report == blas.BlasReport(False, None, False, "OpenBLAS is not installed (package ngsolve-openblas)")


def test_the_library_of_the_first_folder_that_has_one_is_taken(tmp_path: Path):
    for name in ("b", "c"):
        (tmp_path / name / "ngsolve_openblas").mkdir(parents=True)
        (tmp_path / name / "ngsolve_openblas" / "libopenblasp-r0.3.33.so").touch()
    expected = tmp_path / "b" / "ngsolve_openblas" / "libopenblasp-r0.3.33.so"
    assert blas.find_openblas([tmp_path / "a", tmp_path / "b", tmp_path / "c"]) == expected


def test_a_damaged_library_is_reported_not_raised(tmp_path: Path):
    library = tmp_path / "ngsolve_openblas" / "libopenblasp.so"
    library.parent.mkdir()
    library.write_bytes(b"not an ELF file")
    report = blas.prepare_on("linux", "riscv64", [tmp_path], mlx_is_loaded=False)
    assert not report.loaded
    assert report.path == str(library)
    assert report.reason.startswith("OpenBLAS could not be loaded: ")


def test_a_machine_without_any_libgfortran_is_told_so(tmp_path: Path):
    with pytest.raises(OSError, match=r"libgfortran\.so\.5 is not installed, and mlx carries no copy"):
        blas.load_bundled_gfortran([tmp_path])


def test_one_thread_inside_and_as_many_as_before_after_it():
    before = blas.num_threads()
    with blas.single_threaded():
        assert blas.num_threads() in (1, None)
    assert blas.num_threads() == before
