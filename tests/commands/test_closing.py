"""The command that goes on with a run is right where it is pasted, wherever the run lies now."""

import shlex
import subprocess
from pathlib import Path

import pytest

import mlx_finetune
from mlx_finetune import durable, rundir
from mlx_finetune.commands.closing import copied, copied_go_on, recorded_go_on_lines
from mlx_finetune.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """Started in ``project`` with a relative recipe and a relative output_dir."""
    project = tmp_path / "my project"
    (project / "adapters" / "mine").mkdir(parents=True)
    (project / "mine.toml").touch()
    info = {"recipe_path": "mine.toml", "started_in": str(project), "overrides": ["seed=5"]}
    run = RunDir(project / "adapters" / "mine")
    durable.write_json(run.file(rundir.RUN_INFO), info | {"resolved": {"output_dir": "adapters/mine"}})
    run.file(rundir.RECIPE).touch()
    monkeypatch.chdir(project)
    return run


def test_where_it_was_started_the_line_is_the_command_itself(run: RunDir) -> None:
    assert recorded_go_on_lines(run) == ["to go on: mlxft train mine.toml --set seed=5 --resume"]


def test_from_elsewhere_it_begins_with_the_way_there(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Path.cwd()
    monkeypatch.chdir(project.parent)
    (line,) = recorded_go_on_lines(run)
    assert line == f"to go on: cd {shlex.quote(str(project))} && mlxft train mine.toml --set seed=5 --resume"


@pytest.mark.parametrize("where", ["my project", "the app"])
def test_what_is_copied_works_in_a_new_terminal(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """No alias, no PATH of ours, another folder: the launcher beside the package is called, where the run began."""
    launcher = tmp_path / where / "launchers" / "mlxft"
    launcher.parent.mkdir(parents=True)
    launcher.write_text('#!/bin/sh\necho "$PWD" "$@"\n')
    launcher.chmod(0o755)
    monkeypatch.setattr(mlx_finetune, "__file__", str(tmp_path / where / "mlx_finetune" / "__init__.py"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    project = Path.cwd()
    monkeypatch.chdir("/")
    for command, said in (
        (copied_go_on(run), "train mine.toml --set seed=5 --resume"),
        (copied("mlxft chat mine", project), "chat mine"),
    ):
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=30, check=True)
        assert done.stdout == f"{project} {said}\n"


def test_a_copy_or_a_moved_run_names_itself_and_never_the_other_one(run: RunDir) -> None:
    moved = RunDir(run.path.rename(run.path.with_name("elsewhere")))
    (line,) = recorded_go_on_lines(moved)
    assert (
        line == f"to go on: mlxft train mine.toml --set seed=5 --set {shlex.quote(f'output_dir={moved.path}')} --resume"
    )


def test_where_the_recipe_is_gone_the_runs_own_copy_is_named(run: RunDir) -> None:
    Path("mine.toml").unlink()
    (line,) = recorded_go_on_lines(run)
    assert shlex.quote(str(run.file(rundir.RECIPE))) in line


def test_a_run_without_decisions_has_no_such_line(tmp_path: Path) -> None:
    assert recorded_go_on_lines(RunDir(tmp_path)) == []
    assert copied_go_on(RunDir(tmp_path)) == ""


def test_names_that_a_shell_would_split_are_quoted() -> None:
    assert RunDir(Path("adapters/erster Lauf")).name == "'erster Lauf'"
    assert RunDir(Path("adapters/mine")).name == "mine"
