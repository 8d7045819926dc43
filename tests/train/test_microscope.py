"""The token losses that the end of a training keeps; it can neither change nor fail the run."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_runs import course, train, write_recipe

from mlx_finetune import rundir
from mlx_finetune.app.microscope import measure
from mlx_finetune.dataset.token_losses import hash_result, read_microscope
from mlx_finetune.events import Event, RunFinished
from mlx_finetune.journal import read_events
from mlx_finetune.rundir import RunDir
from mlx_finetune.train import microscope
from mlx_finetune.train.signals import StopRequest

TinyModel = Callable[..., Path]


@pytest.fixture(name="recipe")
def recipe_fixture(tmp_path: Path, tiny_model: TinyModel) -> Path:
    return write_recipe(tmp_path, tiny_model("llama"))


def _losses(found, side: str) -> list[float]:
    return [getattr(token, side) for row in found.rows for token in row.tokens if token.is_target]


def _last(run: rundir.RunDir) -> Event:
    return [record.event for record in read_events(run.file(rundir.EVENTS))][-1]


@pytest.mark.some(2)
@pytest.mark.parametrize("kind", ["adapter", "dora", "packed", "full"])
def test_a_training_keeps_what_the_command_would_measure(recipe: Path, kind: str):
    text = recipe.read_text()
    if kind == "full":
        before, _, after = text.partition("[lora]")
        recipe.write_text(before + after[after.index("[data]") :])
    overrides = {"dora": ("lora.use_dora=true",), "packed": ("data.packing=true",)}.get(kind, ())
    run = train(recipe, overrides=overrides)
    kept = read_microscope(run)
    assert kept is not None
    again = measure(str(run.path), (), "", base=recipe.parent, report=lambda _: None).microscope
    assert [row.where for row in kept.rows] == [row.where for row in again.rows]
    assert kept.measured == again.measured
    assert kept.measured.adapter_sha256 == hash_result(run)
    for side in ("base", "tuned"):
        np.testing.assert_allclose(_losses(kept, side), _losses(again, side), atol=2e-4)
    assert _losses(kept, "base") != _losses(kept, "tuned")
    assert isinstance(_last(run), RunFinished)


def test_the_mean_of_all_rows_is_the_loss_of_the_evaluation(recipe: Path):
    run = train(recipe, overrides=("eval.microscope_rows=64",))
    kept = read_microscope(run)
    finished = _last(run)
    assert kept is not None
    assert isinstance(finished, RunFinished)
    assert np.mean(_losses(kept, "base")) == pytest.approx(finished.first_loss, abs=1e-4)
    assert np.mean(_losses(kept, "tuned")) == pytest.approx(finished.result_loss, abs=1e-4)


def test_the_result_is_measured_also_where_the_last_weights_are_others(recipe: Path):
    diverging = ("training.learning_rate=10.0", "training.lr_scheduler=constant", "training.warmup_steps=0")
    diverging += ("training.eval_steps=1", "training.max_steps=5")
    run = train(recipe, overrides=(*diverging, "eval.microscope_rows=64"))
    kept, finished = read_microscope(run), _last(run)
    assert kept is not None
    assert isinstance(finished, RunFinished)
    assert kept.measured.step == finished.result_step != finished.step
    assert np.mean(_losses(kept, "tuned")) == pytest.approx(finished.result_loss, abs=1e-4)


def test_it_changes_no_bit_of_a_run_also_where_it_goes_on(recipe: Path):
    on, off = (
        train(recipe, overrides=(f"output_dir={recipe.parent / name}", f"eval.microscope_rows={rows}"))
        for name, rows in (("on", 4), ("off", 0))
    )
    assert read_microscope(off) is None
    for name, rows in (("on", 4), ("off", 0)):
        overrides = (f"output_dir={recipe.parent / name}", f"eval.microscope_rows={rows}")
        train(recipe, overrides=overrides, extend=3)
    assert course(on) == course(off)
    assert on.file(rundir.MLX_WEIGHTS).read_bytes() == off.file(rundir.MLX_WEIGHTS).read_bytes()
    kept = read_microscope(on)
    assert kept is not None
    assert kept.measured.adapter_sha256 == hash_result(on)


def test_rows_that_were_chosen_stay_chosen_when_the_run_goes_on(recipe: Path):
    run = train(recipe)
    lines = [row.where.rpartition(":")[2] for row in (read_microscope(run) or pytest.fail("none")).rows]
    measure(str(run.path), [int(lines[1])], "", base=recipe.parent, report=lambda _: None)
    train(recipe, extend=2)
    kept = read_microscope(run)
    assert kept is not None
    assert kept.measured.chosen == lines[1]
    assert [row.where.rpartition(":")[2] for row in kept.rows] == [lines[1]]
    assert kept.measured.adapter_sha256 == hash_result(run)


@pytest.mark.parametrize("error", [RuntimeError("[metal::malloc] out of memory"), KeyError("x"), MemoryError()])
def test_what_goes_wrong_is_a_line_and_the_run_is_finished(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], error: Exception
):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(microscope, "measure_losses", fail)
    run = train(recipe)
    assert isinstance(_last(run), RunFinished)
    assert json.loads(run.file(rundir.RUN_INFO).read_text())["status"] == "finished"
    assert read_microscope(run) is None
    assert f"no microscope.json was written: {type(error).__name__}" in capfd.readouterr().err


def test_a_full_disk_is_a_line_without_a_traceback(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    def fail(run: RunDir, _: object) -> None:
        raise OSError(28, "No space left on device", str(run.file(rundir.MICROSCOPE)))

    monkeypatch.setattr(microscope, "write_microscope", fail)
    run = train(recipe)
    said = capfd.readouterr().err
    assert isinstance(_last(run), RunFinished)
    assert "no microscope.json was written: [Errno 28] No space left on device" in said
    assert "Traceback" not in said


class FullLog(io.StringIO):
    def write(self, s: str, /) -> int:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("out of memory")])
def test_a_log_that_cannot_be_written_to_does_not_fail_a_finished_run(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    def fail(*_: object) -> None:
        monkeypatch.setattr(sys, "stderr", FullLog())
        raise error

    monkeypatch.setattr(microscope, "write_microscope", fail)
    run = train(recipe)
    assert json.loads(run.file(rundir.RUN_INFO).read_text())["status"] == "finished"
    assert read_microscope(run) is None


def test_a_signal_leaves_it_out_and_the_run_is_finished(recipe: Path, capfd: pytest.CaptureFixture[str]):
    def stop_at_the_end(event: Event, stop: StopRequest) -> None:
        if isinstance(event, RunFinished):
            stop.request(2)

    run = train(recipe, on_event=stop_at_the_end)
    assert isinstance(_last(run), RunFinished)
    assert json.loads(run.file(rundir.RUN_INFO).read_text())["status"] == "finished"
    assert read_microscope(run) is None
    assert "stopped while token losses were measured" in capfd.readouterr().err


def test_without_validation_rows_there_is_none(recipe: Path):
    assert read_microscope(train(recipe, overrides=("data.val_split=0.0",))) is None
