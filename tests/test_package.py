import ast
import importlib.metadata
import importlib.resources
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import mlx_finetune
from mlx_finetune.cli import COMMANDS

ROOT = Path(__file__).resolve().parent.parent

#: None of these may be imported to show a help text: each costs more than click itself, or leads to what does.
TOO_DEAR = [
    *(
        "mlx",
        "mlx_lm",
        "transformers",
        "numpy",
        "pydantic",
        "rich",
        "prompt_toolkit",
        "huggingface_hub",
        "platformdirs",
    ),
    *("subprocess", "mlx_finetune.events", "mlx_finetune.recipe.schema"),
]

SHOW_EVERY_HELP = f"""
import contextlib, io, json, sys
from mlx_finetune.cli import root
seen, found = set(sys.modules), {{}}
for name in {["", *COMMANDS]!r}:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            root.main([*filter(None, [name]), "--help"], standalone_mode=False)
        except Exception as error:
            found[name] = [repr(error)]
            continue
    assert out.getvalue().startswith("Usage:"), name
    found[name] = sorted(module for module in set(sys.modules) - seen if module in {TOO_DEAR!r})
    seen = set(sys.modules)
print(json.dumps(found))
"""


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def imported_by_help() -> dict[str, list[str]]:
    return json.loads(run_python(SHOW_EVERY_HELP))


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_imports_nothing_that_is_dear(imported_by_help: dict[str, list[str]], name: str):
    assert imported_by_help[name] == []


def test_the_public_names_are_sorted_and_there():
    assert mlx_finetune.__all__ == sorted(mlx_finetune.__all__)
    assert dir(mlx_finetune) == mlx_finetune.__all__
    assert [name for name in mlx_finetune.__all__ if getattr(mlx_finetune, name, None) is None] == []
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = mlx_finetune.nonsense  # pyright: ignore[reportAttributeAccessIssue]


def test_the_public_names_are_the_ones_declared_to_type_checkers():
    tree = ast.parse((ROOT / "mlx_finetune" / "__init__.py").read_text())
    declared = {
        alias.name
        for block in tree.body
        if isinstance(block, ast.If)
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert declared | {"__version__"} == set(mlx_finetune.__all__)


def test_importing_the_package_imports_none_of_its_modules():
    code = "import mlx_finetune, sys; print([name for name in sys.modules if name.startswith('mlx_finetune.')])"
    assert run_python(code) == "[]\n"


def test_the_installed_version_is_the_one_in_the_source():
    assert importlib.metadata.version("mlx-finetune") == mlx_finetune.__version__


# The locked requirements


def locked(name: str) -> dict[str, str]:
    """Package -> version of requirements/NAME."""
    text = (ROOT / "requirements" / name).read_text()
    return dict(re.findall(r"^([A-Za-z0-9_.-]+)(?:\[[a-z,]+\])?==([^\s;\\]+)", text, re.MULTILINE))


@pytest.mark.parametrize("name", ["run.txt", "dev.txt"])
def test_every_locked_package_has_a_hash_and_no_address(name: str):
    text = (ROOT / "requirements" / name).read_text()
    blocks = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]
    assert len(blocks) > 30
    assert [block for block in blocks if "--hash=sha256:" not in block] == []
    assert "://" not in text
    assert "--index" not in text
    assert "--find-links" not in text


def test_development_adds_to_what_runs_and_changes_nothing_of_it():
    run, dev = locked("run.txt"), locked("dev.txt")
    assert {name: dev.get(name) for name in run} == run
    assert {"pytest", "hypothesis", "ruff", "basedpyright", "tombi"} <= set(dev) - set(run)


def test_every_declared_dependency_is_locked():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = [*project["project"]["dependencies"], *project["dependency-groups"]["build"]]
    names = {re.split(r"[\[<>=;]", line)[0].strip() for line in declared}
    assert names <= set(locked("run.txt"))
    development = {re.split(r"[\[<>=;]", line)[0].strip() for line in project["dependency-groups"]["dev"]}
    assert development <= set(locked("dev.txt"))


def test_one_lock_serves_linux_and_the_mac():
    text = (ROOT / "requirements" / "run.txt").read_text()
    assert re.search(r"^mlx-metal==\S+ ; sys_platform == 'darwin'", text, re.MULTILINE)
    assert re.search(r"^mlx-cpu==\S+ ; sys_platform == 'linux'", text, re.MULTILINE)


def test_the_files_of_the_monitors_page_are_part_of_the_package_with_their_licence():
    """The wheel holds everything below mlx_finetune (see [tool.hatch.build.targets.wheel])."""
    folder = importlib.resources.files("mlx_finetune.monitor.web") / "static"
    names = {entry.name for entry in folder.iterdir()}
    assert {"index.html", "page.css", "main.js", "theme.js", "icon.svg", "uplot.js", "uplot.css"} <= names
    assert "v1.6.32" in (folder / "uplot.js").read_text("utf-8")[:200]
    assert "Leon Sorokin" in (folder / "uplot-LICENSE.txt").read_text("utf-8")
    assert '"/mlx_finetune"' in (ROOT / "pyproject.toml").read_text("utf-8")
    tracked = subprocess.run(
        ["git", "ls-files", "mlx_finetune/monitor/web/static"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if not tracked.returncode:  # what git does not know is left out of the wheel
        assert {Path(line).name for line in tracked.stdout.splitlines()} == names
