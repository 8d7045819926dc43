import re
from pathlib import Path

import pytest
from doctor_facts import PACKAGE, TYPED

from mlx_finetune.app.doctor import finding as finding_module
from mlx_finetune.app.doctor.finding import Finding, how_to_type, in_order


def checkout(folder: Path) -> Path:
    """The package folder of a checkout made in ``folder``."""
    (folder / "launchers").mkdir(parents=True)
    (folder / "launchers" / "mlxft").touch()
    (folder / "mlx_finetune").mkdir()
    return folder / "mlx_finetune"


def test_in_a_checkout_the_launcher_is_typed_from_the_current_folder(tmp_path: Path):
    package = checkout(tmp_path / "a b")
    root = tmp_path / "a b"
    typed = how_to_type(package=package, base=root, prefix=f"{root}/.venv", python="/p/python", which=lambda _: None)
    assert (typed.mlxft, typed.is_own, typed.root) == ("./launchers/mlxft", True, str(root))
    assert typed.rebuild() == "rm -r .venv && ./launchers/mlxft doctor"
    away = how_to_type(package=package, base=Path("/"), prefix="/usr", python="/p/python", which=lambda _: None)
    assert away.mlxft == f"'{str(root)[1:]}/launchers/mlxft'"
    assert not away.is_own
    assert away.rebuild() == f"{away.mlxft} doctor"


def test_mlxft_is_typed_where_the_shell_finds_it(tmp_path: Path):
    package = checkout(tmp_path)
    typed = how_to_type(package=package, base=tmp_path, prefix="/usr", python="/p/python", which=lambda _: "/bin/mlxft")
    assert typed.mlxft == "mlxft"


@pytest.mark.parametrize(
    ("argv0", "mlxft"),
    [("/opt/my env/bin/mlxft", "'/opt/my env/bin/mlxft'"), ("/x/__main__.py", "/opt/python -m mlx_finetune")],
)
def test_without_a_checkout_and_off_path_the_call_itself_is_repeated(tmp_path: Path, argv0: str, mlxft: str):
    typed = how_to_type(
        package=tmp_path, base=tmp_path, argv0=argv0, prefix="/opt", python="/opt/python", which=lambda _: None
    )
    assert (typed.mlxft, typed.root) == (mlxft, "")
    assert typed.rebuild() == "/opt/python -m pip install --force-reinstall mlx-finetune"


def test_packages_of_a_foreign_environment_are_installed_alone_and_quoted():
    assert TYPED.install(["mlx==1"]) == "rm -r .venv && ./launchers/mlxft doctor"
    assert PACKAGE.install(["mlx<1"]) == "/opt/env/bin/python -m pip install --force-reinstall 'mlx<1'"


def test_a_path_that_looks_like_an_option_is_typed_as_a_path():
    assert TYPED.path("/Users/me/mlxft/-rf") == "./-rf"
    assert TYPED.path("/Volumes/My Disk") == "'/Volumes/My Disk'"
    assert TYPED.tool("hf") == ".venv/bin/hf"


def test_the_next_command_can_be_typed_where_the_user_is(tmp_path: Path):
    assert TYPED.train("my recipe.toml") == "./launchers/mlxft train 'my recipe.toml'"
    assert TYPED.train("") == "cd /Users/me/mlxft && ./launchers/mlxft train recipes/quickstart.toml"
    assert PACKAGE.train("") == "mlxft recipe copy quickstart mine.toml && mlxft train mine.toml"
    package = checkout(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "quickstart.toml").touch()
    here = how_to_type(package=package, base=tmp_path, prefix="/usr", python="/p", which=lambda _: None)
    assert here.train("") == "./launchers/mlxft train recipes/quickstart.toml"


def test_in_a_window_that_a_double_click_opened_every_path_is_whole(tmp_path: Path):
    package = checkout(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "quickstart.toml").touch()
    typed = how_to_type(
        package=package, base=None, prefix=f"{tmp_path}/.venv", python="/p/python", which=lambda _: None
    )
    assert typed.mlxft == f"{tmp_path}/launchers/mlxft"
    assert typed.rebuild() == f"rm -r {tmp_path}/.venv && {tmp_path}/launchers/mlxft doctor"
    assert typed.train("") == f"cd {tmp_path} && ./launchers/mlxft train recipes/quickstart.toml"


def test_the_same_finding_is_told_once_and_the_worst_first():
    note, warning, blocker = (Finding(level, "x", "y") for level in ("note", "warning", "blocker"))
    assert in_order([note, warning, note, blocker]) == (blocker, warning, note)


def test_no_command_has_a_comment_as_zsh_takes_it_for_words():
    """Interactive zsh, the shell of macOS, knows no comments: what stands behind # would be arguments."""
    folder = Path(finding_module.__file__).parent
    for path in folder.glob("*.py"):
        code = [line for line in path.read_text("utf-8").splitlines() if re.search(r"[\"'].*\s# .*[\"']", line)]
        assert [line for line in code if "re.compile" not in line] == [], path.name
