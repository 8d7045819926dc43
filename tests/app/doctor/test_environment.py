import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from doctor_facts import HEALTHY, PACKAGE, TYPED

from mlx_finetune.app.doctor import environment as environment_module
from mlx_finetune.app.doctor.environment import (
    PACKAGES,
    Damage,
    Environment,
    Leftover,
    Outside,
    find_damage,
    package_problems,
    read_environment,
    read_leftovers,
    unfit_versions,
)
from mlx_finetune.app.doctor.finding import Finding, Typed

WHOLE = HEALTHY.environment


def problems(environment: Environment, *, mlx_error: str = "", typed: Typed = TYPED) -> list[Finding]:
    return list(package_problems(HEALTHY.versions, mlx_error, environment, typed))


def installed(folder: Path, **files: str) -> importlib.metadata.Distribution:
    """A package ``thing`` 1.2 in ``folder`` with ``files`` (dots for slashes), and a RECORD of them."""
    info = folder / "thing-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thing\nVersion: 1.2\n")
    lines = ["thing-1.2.dist-info/RECORD,,", "thing/__pycache__/a.pyc,,", "../../bin/thing,sha256=x,999"]
    for name, content in files.items():
        path = folder / "thing" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        lines.append(f"thing/{name}.py,sha256=x,{len(content)}")
    (info / "RECORD").write_text("\n".join(lines))
    return importlib.metadata.Distribution.at(info)


def test_a_package_is_whole_where_every_file_has_its_size(tmp_path: Path):
    assert list(find_damage([installed(tmp_path, a="x = 1\n", b="y = 2\n")])) == []


def test_missing_and_changed_files_are_counted_and_one_is_named(tmp_path: Path):
    package = installed(tmp_path, a="x = 1\n", b="y = 2\n", c="z")
    (tmp_path / "thing" / "a.py").unlink()
    (tmp_path / "thing" / "c.py").write_text("longer")
    assert list(find_damage([package])) == [Damage("thing", "1.2", 1, 1, "thing/a.py")]


def test_a_package_without_its_metadata_is_damaged_too(tmp_path: Path):
    package = installed(tmp_path, a="x")
    (tmp_path / "thing-1.2.dist-info" / "METADATA").write_bytes(b"")
    (found,) = find_damage([package])
    assert (found.package, found.num_missing, found.example) == ("thing-1.2", 1, "METADATA")


@pytest.mark.parametrize(
    ("damage", "level", "says"),
    [
        (Damage("mlx", "0.32.4", 3, 1, "mlx/lib/libmlx.so"), "blocker", "3 files are missing in mlx 0.32.4"),
        (Damage("pydantic_core", "2.50.4", 1, 0, "a.so"), "blocker", "a file is missing in pydantic_core"),
        (Damage("mlx-lm", "0.32.2", 0, 2, "mlx_lm/lora.py"), "warning", "2 files are changed in mlx-lm"),
        (Damage("pytest", "9", 7, 0, "pytest.py"), "warning", "7 files are missing in pytest"),
    ],
)
def test_only_missing_files_that_training_imports_block(damage: Damage, level: str, says: str):
    (finding,) = problems(replace(WHOLE, damaged=(damage,)))
    assert (finding.level, finding.command) == (level, "rm -r .venv && ./launchers/mlxft doctor")
    assert says in finding.message
    assert damage.example in finding.message


def test_damage_in_another_environment_is_mended_by_its_own_pip():
    damaged = (Damage("pytest", "9", 1, 0, "a.py"), Damage("mlx", "0.32.4", 2, 0, "b.so"), Damage("x", "", 1, 0, "c"))
    (finding,) = problems(replace(WHOLE, damaged=damaged), typed=PACKAGE, mlx_error="ImportError: b.so")
    assert finding.level == "blocker"
    assert "2 files are missing in mlx 0.32.4 (b.so), and more in 2 other packages" in finding.message
    assert finding.command == "/opt/env/bin/python -m pip install --force-reinstall pytest==9 mlx==0.32.4 x"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            "ImportError: dlopen(core.so): incompatible architecture (have 'x86_64', need 'arm64')",
            "another kind of pro",
        ),
        ("ImportError: dlopen(core.so): library load disallowed by system policy", "does not let mlx's library"),
        ("ImportError: Symbol not found: built for macOS 26.0 which is newer than running OS", "a newer macOS"),
        ("ImportError: libgfortran.so.5: cannot open shared object", "libgfortran.so.5"),
    ],
)
def test_why_mlx_cannot_be_imported_is_told_in_words(error: str, says: str):
    (finding,) = problems(WHOLE, mlx_error=error)
    assert (finding.level, finding.command) == ("blocker", "rm -r .venv && ./launchers/mlxft doctor")
    assert says in finding.message


def test_a_missing_package_is_told_alone():
    versions = {**HEALTHY.versions, "mlx": None, "tokenizers": None}
    (finding,) = package_problems(versions, "ModuleNotFoundError: No module named 'mlx'", WHOLE, PACKAGE)
    assert finding.message == "not installed: mlx, tokenizers"
    assert finding.command.endswith("pip install --force-reinstall mlx tokenizers")


def test_versions_are_compared_with_what_the_app_asks_for():
    asked = ["mlx<0.33,>=0.32.2; sys_platform == 'linux'", "numpy<3", "gone>1", "mlx<0; sys_platform == 'aix'", "!!"]
    found = list(unfit_versions(asked, {"mlx": "0.31.0", "numpy": "2.4.6"}.get))
    assert found == [("mlx<0.33,>=0.32.2", "0.31.0")]
    (finding,) = problems(replace(WHOLE, unfit=tuple(found)), typed=PACKAGE)
    assert (finding.level, finding.message) == ("warning", "mlx<0.33,>=0.32.2 is needed, and 0.31.0 is installed")
    assert finding.command.endswith("'mlx<0.33,>=0.32.2'")


def test_a_package_that_pythonpath_brings_in_is_found(tmp_path: Path):
    (tmp_path / "transformers").mkdir()
    (tmp_path / "transformers" / "__init__.py").touch()
    code = (
        "import os; from mlx_finetune.app.doctor.environment import read_environment as read\n"
        "print(read(os.environ, '').outside)"
    )
    root = Path(environment_module.__file__).parents[3]
    variables = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    said = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    assert f"Outside(package='transformers', folder='{tmp_path}', through='PYTHONPATH')" in said.stdout
    assert "numpy" not in said.stdout


@pytest.mark.parametrize(
    ("environment", "level", "says", "command"),
    [
        (
            replace(WHOLE, outside=(Outside("numpy", "/other", "PYTHONPATH"), Outside("mlx", "/other", "PYTHONPATH"))),
            "warning",
            "numpy, mlx come from /other through PYTHONPATH",
            "unset PYTHONPATH && ./launchers/mlxft doctor",
        ),
        (
            replace(WHOLE, outside=(Outside("numpy", "/u", "the user's packages"),)),
            "warning",
            "the user's packages",
            "export PYTHONNOUSERSITE=1 && ./launchers/mlxft doctor",
        ),
        (
            replace(WHOLE, prefix="/opt/conda", conda="/opt/conda"),
            "warning",
            "conda's environment /opt/conda",
            "conda deactivate && ./launchers/mlxft doctor",
        ),
        (
            replace(WHOLE, conda="/opt/conda"),
            "note",
            "belongs to conda in /opt/conda",
            "conda deactivate && rm -r .venv && ./launchers/mlxft doctor",
        ),
        (
            replace(WHOLE, variables={"DYLD_LIBRARY_PATH": "/x"}),
            "warning",
            "DYLD_LIBRARY_PATH",
            "unset DYLD_LIBRARY_PATH && ./launchers/mlxft doctor",
        ),
        (replace(WHOLE, variables={"MLX_DISABLE_COMPILE": "1"}), "warning", "slower", "unset MLX_DISABLE_COMPILE"),
        (
            replace(WHOLE, variables={"AGX_RELAX_CDM_CTXSTORE_TIMEOUT": "0"}),
            "warning",
            "patience",
            "unset AGX_RELAX_CDM_CTXSTORE_TIMEOUT",
        ),
    ],
)
def test_what_is_in_the_way_of_the_environment_is_named(environment: Environment, level: str, says: str, command: str):
    (finding,) = problems(environment)
    assert (finding.level, finding.command.startswith(command)) == (level, True)
    assert says in finding.message


def test_secrets_are_not_among_the_variables_that_are_shown():
    variables = {"HF_TOKEN": "hf_x", "MLX_METAL_GPU_ARCH": "applegpu_g16s", "WANDB_API_KEY": "k", "PYTHONPATH": "/x"}
    shown = read_environment(variables, "").variables
    assert shown == {"MLX_METAL_GPU_ARCH": "applegpu_g16s", "PYTHONPATH": "/x"}


# --- an unfinished setup ---


def half_made(root: Path, *, log: str = "", owner: str | None = None) -> Path:
    (root / ".venv.part").mkdir(parents=True)
    (root / ".venv.part" / "setup.log").write_text(log)
    if owner is not None:
        (root / ".venv.lock").mkdir()
        (root / ".venv.lock" / "pid").write_text(f"{owner}\n")
    return root


def test_a_half_made_environment_is_found_with_pips_reason(tmp_path: Path, shared: Callable[..., Path]):
    log = "Collecting mlx\n" + shared("macos-fixtures", "errors", "pip_no_match_rosetta.txt").read_text("utf-8")
    (left,) = read_leftovers(half_made(tmp_path, log=log))
    assert left.reason == "Could not find a version that satisfies the requirement mlx (from versions: none)"
    typed = replace(TYPED, base=str(tmp_path), root=str(tmp_path))
    (finding,) = problems(replace(WHOLE, leftovers=(left,)), typed=typed)
    assert finding.level == "warning"
    assert "the requirement mlx, as for Python under Rosetta" in finding.message
    assert finding.command == "rm -r .venv.part"


def test_a_lock_whose_process_is_gone_is_found_and_one_at_work_is_not(tmp_path: Path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = list(read_leftovers(half_made(tmp_path / "gone", owner=str(gone.pid))))
    assert [(Path(one.path).name, one.process) for one in left] == [(".venv.lock", gone.pid), (".venv.part", None)]
    assert list(read_leftovers(half_made(tmp_path / "work", owner=str(os.getpid())))) == []
    broken = list(read_leftovers(half_made(tmp_path / "broken", owner="9" * 40)))
    assert [Path(one.path).name for one in broken] == [".venv.lock", ".venv.part"]
    (finding,) = problems(replace(WHOLE, leftovers=tuple(left)))
    assert finding.command.startswith("rm -r ")
    assert ".venv.lock" in finding.message


def test_another_reason_of_pip_is_told_as_it_is():
    left = Leftover("/Users/me/mlxft/.venv.part", None, "No matching distribution found for x")
    (finding,) = problems(replace(WHOLE, leftovers=(left,)))
    assert finding.message == "a setup was left unfinished (.venv.part): No matching distribution found for x"


def test_this_environment_is_whole_and_every_package_of_it_is_looked_at():
    here = read_environment(dict(os.environ), "")
    assert here.damaged == ()
    assert here.unfit == ()
    assert set(PACKAGES[1:]) <= {name.lower() for name in names_here()}


def names_here() -> set[str]:
    return {distribution.metadata["Name"] for distribution in importlib.metadata.distributions()}
