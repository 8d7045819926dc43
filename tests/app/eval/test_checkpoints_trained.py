"""A real run measured afterwards: its checkpoints have the losses and answers that the training itself saw."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import train, write_recipe

from mlx_finetune import rundir
from mlx_finetune.app.eval.checkpoints.run import measure_course
from mlx_finetune.app.eval.checkpoints.setup import prepare_course
from mlx_finetune.events import Evaluated
from mlx_finetune.journal import read_events

TinyModel = Callable[..., Path]


def test_checkpoints_have_the_losses_and_answers_of_the_training(tmp_path: Path, tiny_model: TinyModel) -> None:
    run = train(write_recipe(tmp_path, tiny_model("llama")))
    seen = {
        one.event.step: one.event.loss
        for one in read_events(run.file(rundir.EVENTS))
        if isinstance(one.event, Evaluated)
    }
    lines = [json.loads(line) for line in run.file(rundir.SAMPLES).read_text().splitlines()]
    answers = {line["step"]: line["answer"] for line in lines}
    run.file(rundir.SAMPLES).unlink()  # so that every prompt is answered again
    course = prepare_course(run, given=None, max_rows=None, prompts=(), base=tmp_path, report=lambda _: None)
    report = measure_course(course, named=None, show=lambda _: None, say=lambda _: None, report=lambda *_: None).report
    assert [at.step for at in report.points] == [0, 2, 4, 6]
    for at in report.points:
        assert at.figures["loss"].value == pytest.approx(seen[at.step], rel=1e-5)
    assert {one.step: one.answer for one in report.samples} == answers
