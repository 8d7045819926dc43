"""``mlxft report``, and the report that a training leaves by itself: where it is said, and that no run fails of it."""

import json
import re
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from reported_runs import write_run

from mlx_finetune.app.running import launch, supervise
from mlx_finetune.commands.report import command, try_report
from mlx_finetune.commands.train import command as train_command
from mlx_finetune.errors import RunError
from mlx_finetune.monitor.report import write
from mlx_finetune.recipe.pipeline.record import PipelineRecord, StageRecord, write_record
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.rundir import RunDir

SUPERVISE = supervise.supervise
FAKE = Path(__file__).resolve().parents[1] / "fake_child.py"
RECIPE = 'model = "tiny"\noutput_dir = "adapters/demo"\n[data]\npath = "rows.jsonl"\n'
PAGE = Path("adapters/demo/report.html")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("demo.toml").write_text(RECIPE)
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments), standalone_mode=False)


def train(monkeypatch: pytest.MonkeyPatch, mode: str, *arguments: str) -> Result:
    def start(request: launch.TrainRequest, run: RunDir, recipe: Recipe, view: launch.View) -> supervise.Supervised:
        return SUPERVISE(request, run, recipe, view, command=[sys.executable, str(FAKE), str(run.path), mode])

    monkeypatch.setattr(supervise, "supervise", start)
    return CliRunner().invoke(train_command, ["demo.toml", *arguments], standalone_mode=False)


def test_the_path_is_on_stdout_and_the_next_command_on_stderr(here: Path) -> None:
    write_run(here)
    result = call("tides")
    assert result.stdout == "adapters/tides/report.html\n"
    assert re.fullmatch(r"next: (xdg-)?open adapters/tides/report\.html\n", result.stderr)
    assert Path("adapters/tides/report.html").read_bytes().startswith(b"<!doctype html>")


def test_out_names_another_place(here: Path) -> None:
    write_run(here)
    assert call("adapters/tides", "--out", "my page.html").stdout == "my page.html\n"
    assert Path("my page.html").is_file()
    assert not Path("adapters/tides/report.html").exists()


def test_the_report_of_a_pipeline_is_about_all_its_stages(here: Path) -> None:
    folder = write_run(here).path
    (here / "adapters" / "mine").mkdir()
    folder.rename(here / "adapters" / "mine" / "tides")
    write_record(
        Path("adapters/mine"), PipelineRecord("2026", "p.toml", "/", stages=(StageRecord("tides", "train", "t"),))
    )
    assert call("mine").stdout == "adapters/mine/report.html\n"
    assert "Pipeline report" in Path("adapters/mine/report.html").read_text()
    assert Path("adapters/mine/report.md").is_file()
    assert call("mine", "--out", "page.html").stdout == "page.html\n"
    Path("adapters/mine/report.html").write_text("mine")
    found = json.loads(call("mine", "--json").stdout)
    assert (found["path"], found["is_beside_edited"]) == ("adapters/mine/report-2.html", True)
    assert found["pipeline"]["stages"][0]["name"] == "tides"


def test_an_edited_report_is_said_to_be_left(here: Path) -> None:
    write_run(here)
    call("tides")
    Path("adapters/tides/report.html").write_text("mine")
    result = call("tides")
    assert result.stdout == "adapters/tides/report-2.html\n"
    assert "adapters/tides/report.html was changed by hand" in result.stderr
    assert json.loads(call("tides", "--json").stdout)["is_beside_edited"] is True


def test_json_has_the_place_and_the_verdict(here: Path) -> None:
    write_run(here)
    found = json.loads(call("tides", "--json").stdout)
    assert found["path"] == "adapters/tides/report.html"
    assert found["num_bytes"] == Path(found["path"]).stat().st_size
    assert found["run"]["result_loss"] == 0.5
    assert found["verdict"] == "It learned it: 40 of 50 right, was 10 of 50."


def test_a_run_that_is_not_there_is_an_error_with_near_names(here: Path) -> None:
    write_run(here)
    result = call("tide")
    assert isinstance(result.exception, RunError)
    assert "tides" in result.exception.hint


@pytest.mark.parametrize(
    ("mode", "said", "code"),
    [
        ("finish", "  report for your browser: adapters/demo/report.html", 0),
        ("fail", "report for your browser: adapters/demo/report.html", 1),
        ("kill", "report for your browser: adapters/demo/report.html", 1),
    ],
)
def test_every_training_that_began_leaves_its_report(
    mode: str, said: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = train(monkeypatch, mode)
    assert result.return_value == code
    assert said in result.stderr.splitlines()
    assert PAGE.read_bytes().startswith(b"<!doctype html>")


@pytest.mark.parametrize("mode", ["refuse", "full"])
def test_a_training_that_did_not_begin_leaves_none(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "report" not in train(monkeypatch, mode).stderr
    assert not PAGE.exists()


def test_a_refusal_does_not_touch_the_report_of_the_run_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    train(monkeypatch, "finish")
    PAGE.unlink()
    assert "report" not in train(monkeypatch, "refuse").stderr
    assert not PAGE.exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (RunError("this and that"), "this and that"),
        (KeyError("a bug"), "KeyError: 'a bug'"),
    ],
)
def test_a_report_that_cannot_be_made_is_a_warning(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> Path:
        raise error

    monkeypatch.setattr(write, "write_report", refuse)
    result = train(monkeypatch, "finish")
    assert result.return_value == 0
    lines = result.stderr.splitlines()
    assert f"warning: the report could not be made ({said})" in lines
    assert "hint: try again with: mlxft report demo" in lines
    assert lines[-1] == "next: mlxft chat demo"


def test_a_folder_without_a_journal_has_no_report_and_no_warning(here: Path) -> None:
    assert try_report(RunDir(here)) == (None, [])


def test_an_evaluation_renews_the_report_and_makes_none_by_itself(here: Path) -> None:
    run = write_run(here)
    assert try_report(run, only_renew=True) == (None, [])
    page, _ = try_report(run)
    assert page is not None
    newer = json.loads(run.file("eval/test.json").read_text("utf-8")) | {"name": "newer", "measured": "2027"}
    run.file("eval/newer.json").write_text(json.dumps(newer), "utf-8")
    assert try_report(run, only_renew=True) == (page, [])
    assert "<bdi>newer</bdi>" in page.read_text("utf-8")
    page.write_text("mine", "utf-8")
    assert try_report(run, only_renew=True) == (None, [])
    assert page.read_text("utf-8") == "mine"
