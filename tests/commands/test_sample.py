"""mlxft sample and mlxft eval --samples from the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from answering_runs import write_run
from click.testing import CliRunner, Result
from safetensors.numpy import save_file

from mlx_finetune.app.sampling.folder import COMPARISON, LINES
from mlx_finetune.cli import root
from mlx_finetune.errors import DataError, RunError, UsageError
from mlx_finetune.model.heads.score import WEIGHT
from mlx_finetune.monitor.pipeline.facts import Picks
from mlx_finetune.monitor.report.typed import read_json
from mlx_finetune.rundir import HEAD_WEIGHTS


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
    picks = read_json(tmp_path / "drawn" / COMPARISON, Picks)  # what a pipeline shows of its stage
    assert picks is not None
    assert (picks.num_problems, picks.k, picks.samples) == (3, 2, "sums.jsonl")
    assert [way.name for way in picks.ways] == ["greedy", "random", "majority", "oracle"]
    again = run(*arguments, "--json")
    assert "9 of 9 answers were there already" in again.stderr
    assert json.loads(again.stdout)["num_problems"] == 3
    assert "no answer is right" in again.stderr
    assert "next: " not in again.stderr


def test_right_answers_that_were_cut_teach_a_verifier_that_other_problems_judge(
    run: Callable[..., Result], tmp_path: Path
):
    options = ("-k", "1", "--temperature", "0.01", "--max-tokens", "2", "--rule", "exact")
    run("sample", "keeper", "--data", "sums.jsonl", *options, "--out", "first")
    said = [json.loads(line) for line in (tmp_path / "first" / LINES).read_text().splitlines()]
    rows = [{"prompt": one["prompt"], "completion": one["completion"]} for one in said if one["sample"] == 0]
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = run("sample", "keeper", "--data", "said.jsonl", *options, "--out", "drawn")
    assert "every right answer was cut at the limit" in found.stderr
    assert "next: mlxft train RECIPE --set data.path=drawn/verifier   (a verifier)" in found.stderr
    assert "mlxft sample keeper --data OTHER_PROBLEMS --out OTHER_FOLDER" in found.stderr
    assert "--samples drawn" not in found.stderr, "a verifier is not judged by what taught it"


@pytest.mark.parametrize("out", ["sums.jsonl", "sums.jsonl/x"])
@pytest.mark.parametrize(
    "command",
    [
        ("sample", "keeper", "--data", "sums.jsonl", "--out"),
        ("eval", "keeper", "--data", "sums.jsonl", "--out"),
        ("eval", "keeper", "--samples", "drawn", "--out"),
        ("eval", "keeper", "--sinks", "--out"),
        ("trace", "keeper", "--export"),
    ],
)
def test_a_folder_that_cannot_be_one_is_refused_before_anything_is_loaded(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], out: str
):
    monkeypatch.setattr("mlx_finetune.app.eval.subject.open_name", None)
    result = run(*command, out)
    assert isinstance(result.exception, RunError)
    assert result.exception.message.endswith(f"{command[-1]} must name a folder")
    assert result.exception.hint == f"choose another {command[-1]}"


def test_a_folder_with_other_things_is_refused_before_anything_is_loaded(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("mlx_finetune.app.eval.subject.open_name", None)
    result = run("sample", "keeper", "--data", "sums.jsonl", "--out", "adapters/keeper")
    assert isinstance(result.exception, RunError)
    assert result.exception.message.startswith("adapters/keeper is no folder of samples: it holds ")


def test_a_classifier_draws_no_answers(run: Callable[..., Result], tmp_path: Path):
    metadata = {"format": "mlx", "task": "classify", "labels": '["a", "b"]'}
    save_file({WEIGHT: np.ones((2, 64), np.float32)}, tmp_path / "adapters" / "keeper" / HEAD_WEIGHTS, metadata)
    result = run("sample", "keeper", "--data", "sums.jsonl", "--out", "drawn")
    assert isinstance(result.exception, UsageError)
    assert result.exception.message == (
        "keeper is a classifier: it gives labels and no answers, so there is nothing to draw"
    )
    assert not (tmp_path / "drawn").exists()


@pytest.mark.parametrize("command", [("eval", "keeper", "--data"), ("sample", "keeper", "--out", "drawn", "--data")])
def test_what_is_wrong_with_named_rows_is_said_without_keys_of_a_recipe(
    run: Callable[..., Result], tmp_path: Path, command: tuple[str, ...]
):
    (tmp_path / "asked.jsonl").write_text('{"question": "a"}\n')
    result = run(*command, "asked.jsonl")
    assert isinstance(result.exception, DataError)
    rows = '{"messages": [...]}, {"prompt": ..., "completion": ...}, {"text": ...} and the like'
    assert result.exception.hint == f"rows are {rows}: rename the columns of the file to these"


def test_samples_and_tasks_are_two_evaluations(run: Callable[..., Result]):
    result = run("eval", "keeper", "--samples", "drawn", "--tasks", "loss")
    assert isinstance(result.exception, UsageError)
    assert "--samples and --tasks do not go together" in result.exception.message
