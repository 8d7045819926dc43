"""Rows of a run in tokens, as the monitor's page asks for them: with the run's own recipe, folder and tokenizer."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_finetune.app.data.row_view import RowViewer
from mlx_finetune.errors import MlxftError, RunError
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.rundir import RUN_INFO, RunDir

ANSWER = "red \x1b[31m\u202ered"


@pytest.fixture
def run(tmp_path: Path, tiny_model: Callable[..., Path]) -> RunDir:
    model = tiny_model("llama")
    turns = [[("user", f"Number {n}"), ("assistant", ANSWER if n == 1 else "Yes")] for n in range(30)]
    rows = [{"messages": [{"role": role, "content": text} for role, text in row]} for row in turns]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"path": "rows.jsonl", "val_split": 0.2, "test_split": 0.0, "max_seq_length": 64}
    recipe = Recipe.model_validate({"model": str(model), "output_dir": "out", "data": data})
    run = RunDir(tmp_path / "adapters" / "demo")
    run.path.mkdir(parents=True)
    facts = {"resolved": recipe.model_dump(mode="json"), "started_in": str(tmp_path), "model_folder": str(model)}
    run.file(RUN_INFO).write_text(json.dumps(facts))
    return run


def test_rows_are_shown_a_few_at_a_time_with_what_is_learned_of_them(run: RunDir) -> None:
    viewer = RowViewer()
    found: Any = viewer.rows(run, "train", 0, 2)
    assert found["splits"]["train"] + found["splits"]["valid"] == 30
    assert found["splits"]["valid"] > 0
    first = found["rows"][0]
    assert first["where"] == "rows.jsonl:1"
    learned = "".join(text for _, text, state in first["tokens"] if state == "learned")
    assert learned.startswith("Yes")
    assert "Number" not in learned
    assert first["num_learned"] == sum(state == "learned" for _, _, state in first["tokens"])
    assert [row["where"] for row in viewer.rows(run, "train", 1, 1)["rows"]] == [found["rows"][1]["where"]]  # pyright: ignore[reportGeneralTypeIssues, reportIndexIssue]
    assert viewer.rows(run, "train", 10_000, 5)["rows"] == []
    assert viewer.rows(run, "test", 0, 5)["rows"] == []


def test_what_a_screen_could_obey_is_written_out(run: RunDir) -> None:
    found = json.dumps(RowViewer().rows(run, "train", 0, 50)["rows"], ensure_ascii=False)
    found += json.dumps(RowViewer().rows(run, "valid", 0, 50)["rows"], ensure_ascii=False)
    assert "\\\\x1b" in found
    assert "\\\\u202e" in found
    assert "\u202e" not in found


def test_the_tokenizer_that_was_kept_with_the_run_goes_before_the_one_of_the_model(run: RunDir) -> None:
    model = Path(json.loads(run.file(RUN_INFO).read_text())["model_folder"])
    for path in model.glob("*token*"):
        shutil.copy(path, run.path)
    facts = json.loads(run.file(RUN_INFO).read_text()) | {"model_folder": str(run.path.parent / "gone")}
    run.file(RUN_INFO).write_text(json.dumps(facts))
    assert RowViewer().rows(run, "train", 0, 1)["rows"]


def test_what_cannot_be_shown_is_said_and_nothing_is_fetched(run: RunDir) -> None:
    facts = json.loads(run.file(RUN_INFO).read_text())
    run.file(RUN_INFO).write_text(json.dumps(facts | {"model_folder": "/nowhere"}))
    with pytest.raises(RunError, match="is not on this disk"):
        RowViewer().rows(run, "train", 0, 1)
    run.file(RUN_INFO).write_text(json.dumps(facts | {"started_in": "/nowhere"}))
    with pytest.raises(MlxftError, match=r"rows\.jsonl"):
        RowViewer().rows(run, "train", 0, 1)
    run.file(RUN_INFO).write_text("{}")
    with pytest.raises(RunError, match="cannot be read"):
        RowViewer().rows(run, "train", 0, 1)
    run.file(RUN_INFO).unlink()
    with pytest.raises(RunError, match="has not come to its first step"):
        RowViewer().rows(run, "train", 0, 1)
