"""The token microscope as the page gets it."""

import json
from pathlib import Path
from typing import Any

from mlx_finetune.dataset.token_losses import write_microscope
from mlx_finetune.monitor.microscope import Measured, Microscope, Row, Token
from mlx_finetune.monitor.web.lens import microscope_json
from mlx_finetune.rundir import RUN_INFO, RunDir

ROW = Row(
    "rows.jsonl:3", (Token("Hi", False), Token("\u202eyes", True, 5.0, 0.1), Token("no", True, 1.0, 4.0)), ("cut",)
)


def test_tokens_come_with_their_verdicts_and_nothing_a_screen_could_obey(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    write_microscope(run, Microscope((ROW,), Measured(model="tiny", step=7)))
    found: Any = microscope_json(run)
    (row,) = found["rows"]
    assert [(text, verdict) for text, verdict, *_ in row["tokens"]] == [
        ("Hi", "context"),
        ("\\u202eyes", "learned"),
        ("no", "worse"),
    ]
    assert row["tokens"][1][3] == "learned: 0.7% before, 90% now"
    assert row["notes"] == ["cut"]
    assert found["summary"].startswith("validation rows after step 7: 2 trained tokens")
    assert {name: share for name, share, _ in found["verdicts"]}["learned"] == "50%"
    assert found["moved"][0]["tokens"][0]["after"] == "no"


def test_a_run_without_a_measurement_has_no_rows(tmp_path: Path) -> None:
    none = {task: _none(tmp_path, task) for task in ("sft", "classify", "reward")}
    assert none["sft"].startswith("Nothing was measured here yet.")
    assert none["classify"] == none["reward"]
    assert none["reward"].startswith("This run was trained to score")


def _none(folder: Path, task: str) -> str:
    (folder / RUN_INFO).write_text(json.dumps({"resolved": {"task": task}}))
    found: Any = microscope_json(RunDir(folder))
    assert found["rows"] is None
    return found["none"]
