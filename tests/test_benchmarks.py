"""The scripts in benchmarks/ as a person meets them: every option says what it is for, and help needs no path."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_every_option_has_a_help_text(script: Path) -> None:
    tree = ast.parse(script.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    options = [node for node in calls if isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument"]
    silent = [ast.unparse(node.args[0]) for node in options if "help" not in [word.arg for word in node.keywords]]
    assert silent == []


@pytest.mark.parametrize("name", ["plan_truth", "versus_mlx_lm"])
def test_help_is_printed_from_anywhere(name: str, tmp_path: Path) -> None:
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=bare, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--work WORK" in done.stdout


def test_a_race_without_results_has_no_table(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks/versus_mlx_lm.py"), "--table", "--work", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"nothing is measured in {tmp_path}" in done.stderr
    assert not done.stdout
