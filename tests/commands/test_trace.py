"""``mlxft trace`` as it is typed: answers on stdout, talk on stderr, JSON for programs, one sentence for a slip."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from conftest import ROOT
from small_runs import train, write_recipe

from mlx_finetune.commands import trace as module
from mlx_finetune.commands.trace import command
from mlx_finetune.errors import RunError, UsageError
from mlx_finetune.rundir import RunDir


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory) -> RunDir:
    folder = tmp_path_factory.mktemp("place")
    settings = ("training.save_at=[0, 1.0]", "training.save_steps=6", "training.max_steps=2", "eval.prompts=[]")
    return train(write_recipe(folder, tiny_model("llama")), overrides=(*settings, "training.keep_best=false"))


def call(*arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments), catch_exceptions=False, standalone_mode=False)


def test_the_answers_go_to_stdout_and_the_next_command_to_stderr(run):
    found = call(str(run.path), "--per-category", "2", "--answer-tokens", "2")
    assert found.return_value == 0
    assert found.stdout.startswith("2 checkpoints reloaded with the loss saved (at most ")
    assert "all: too few probes to say; " in found.stdout
    assert f"next: mlxft report {run.path}" in found.stderr
    again = call(str(run.path), "--per-category", "2", "--answer-tokens", "2", "--json")
    summary = json.loads(again.stdout)
    assert [step["step"] for step in summary["steps"]] == [0, 2]
    assert [category["name"] for category in summary["categories"]] == ["all"]


def test_an_interrupt_is_no_traceback(run, monkeypatch):
    from mlx_finetune.app.trace import run as trace_module

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(trace_module, "trace_run", interrupt)
    found = call(str(run.path))
    assert found.return_value == module.INTERRUPTED
    assert found.stdout == ""
    assert "what was measured is kept, and the same command goes on" in found.stderr


def test_an_export_is_read_by_the_example_of_the_documents(run, tmp_path):
    found = call(str(run.path), "--export", str(tmp_path / "out"))
    assert found.stdout.splitlines()[-1] == str(tmp_path / "out" / "series.json")
    example = [sys.executable, str(ROOT / "docs" / "trace_example.py"), str(tmp_path / "out")]
    lines = subprocess.run(example, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[0].startswith("step 0: moved by 0.000")
    assert lines[1].startswith("step 2: moved by ")
    assert float(lines[1].split("moved by ")[1].split(",")[0]) > 0


def test_slips_are_one_sentence(run, tmp_path: Path):
    with pytest.raises(UsageError, match="--dense belongs to --export FOLDER"):
        call(str(run.path), "--dense")
    with pytest.raises(RunError, match="is not a run folder"):
        call(str(tmp_path / "none"))
    with pytest.raises(RunError, match="is a checkpoint, not a run"):
        call(str(run.checkpoint(2)))


def test_a_column_that_no_row_has_is_refused_with_those_there_are(run):
    with pytest.raises(UsageError, match="no row has the column 'knd'") as caught:
        call(str(run.path), "--category", "knd")
    assert caught.value.hint.startswith("columns are ")
