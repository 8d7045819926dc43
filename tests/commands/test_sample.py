"""mlxft sample and mlxft eval --samples from the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from answering_runs import write_run
from click.testing import CliRunner, Result

from mlx_finetune.app.sampling.folder import LINES
from mlx_finetune.cli import root
from mlx_finetune.errors import UsageError


@pytest.fixture
def run(tmp_path: Path, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    write_run(tmp_path / "adapters" / "keeper", tiny_model("llama"))
    rows = [{"prompt": f"{number}+1=", "completion": str(number + 1)} for number in range(3)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(root, arguments, standalone_mode=False)


def test_answers_are_drawn_compared_and_kept(run: Callable[..., Result], tmp_path: Path):
    arguments = ("sample", "keeper", "--data", "sums.jsonl", "-k", "2", "--max-tokens", "2", "--out", "drawn")
    first = run(*arguments)
    assert first.exception is None, first.exception
    assert first.return_value == 0
    assert "random pick" in first.stdout
    assert "right by the rule: number" in first.stderr
    assert len((tmp_path / "drawn" / LINES).read_text().splitlines()) == 9
    again = run(*arguments, "--json")
    assert "9 of 9 answers were there already" in again.stderr
    assert json.loads(again.stdout)["num_problems"] == 3


def test_samples_and_tasks_are_two_evaluations(run: Callable[..., Result]):
    result = run("eval", "keeper", "--samples", "drawn", "--tasks", "loss")
    assert isinstance(result.exception, UsageError)
    assert "--samples and --tasks do not go together" in result.exception.message
