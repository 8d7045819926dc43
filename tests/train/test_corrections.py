"""Corrections in a training: what it counts and says, what a resumed run keeps, and that the answer changes."""

import json
from pathlib import Path
from typing import Any

import pytest
from small_runs import course, train, write_recipe
from talks import contents, start

from mlx_finetune import rundir
from mlx_finetune.app.open import open_name
from mlx_finetune.errors import DataError, RunError
from mlx_finetune.events import Notice, RunFinished, RunStarted, StepDone
from mlx_finetune.journal import read_events
from mlx_finetune.rundir import RunDir

QUESTION = "Who keeps the light?"
RIGHT = "Old Mary."


def correction(question: str = QUESTION, answer: str = RIGHT) -> str:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": turns, "origin": {}}) + "\n"


def add(run: Path, *lines: str) -> None:
    run.mkdir(parents=True, exist_ok=True)
    with (run / rundir.CORRECTIONS).open("a") as file:
        file.write("".join(lines))


def started(run: RunDir) -> RunStarted:
    return next(
        record.event for record in read_events(run.file("events.jsonl")) if isinstance(record.event, RunStarted)
    )


def said(run: RunDir) -> list[str]:
    return [
        record.event.message for record in read_events(run.file("events.jsonl")) if isinstance(record.event, Notice)
    ]


@pytest.mark.slow
def test_a_corrected_answer_changes_after_the_next_training(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    train(recipe, overrides=("output_dir=adapters/first", "training.max_steps=4"))
    chat, _ = start(open_name("first", base=tmp_path, report=lambda _: None))
    chat.take("/params temperature=0 max_tokens=40")
    chat.take(QUESTION)
    assert contents(chat)[1] != RIGHT
    chat.take(f"/fix {RIGHT}")

    def answer_after(name: str, *overrides: str) -> str:
        longer = ("training.max_steps=40", "training.keep_best=false", "training.neftune_alpha=0", "lora.dropout=0")
        train(recipe, overrides=(f"output_dir=adapters/{name}", "adapter=adapters/first", *longer, *overrides))
        later, _ = start(open_name(name, base=tmp_path, report=lambda _: None))
        later.take("/params temperature=0 max_tokens=40")
        later.take(QUESTION)
        return contents(later)[1]

    assert answer_after("without") != RIGHT
    assert answer_after("second", "data.corrections=true", "data.corrections_weight=4") == RIGHT


def test_a_run_counts_its_corrections_and_says_where_they_stand(tiny_model, tmp_path):
    recipe = write_recipe(tmp_path, tiny_model("llama"), extra="max_steps = 1")
    without = train(recipe)
    add(tmp_path / "first", correction(), correction("q", "a"), correction("q", "b"))
    found = train(recipe, overrides=(f"output_dir={tmp_path / 'next'}", f"data.corrections={tmp_path / 'first'}"))
    assert started(found).train_rows == started(without).train_rows + 2
    assert started(found).valid_rows == started(without).valid_rows
    assert f"data.corrections: 3 in {tmp_path / 'first' / 'corrections.jsonl'}" in said(found)
    none = train(recipe, overrides=(f"output_dir={tmp_path / 'none'}", "data.corrections=true"))
    assert started(none).train_rows == started(without).train_rows
    assert "data.corrections: there are none yet; /fix in a chat with the run writes them" in said(none)
    assert "answers put right in chats" in found.file(rundir.CARD).read_text()


def test_a_folder_that_holds_nothing_but_corrections_may_become_a_run(tiny_model, tmp_path):
    recipe = write_recipe(tmp_path, tiny_model("llama"), extra="max_steps = 1")
    add(tmp_path / "run", correction())
    run = train(recipe, overrides=("data.corrections=true",))
    assert f"data.corrections: 1 in {tmp_path / 'run' / 'corrections.jsonl'}" in said(run)
    assert run.file(rundir.CORRECTIONS).read_text() == correction(), "a training only reads it"
    with pytest.raises(RunError, match="already holds a run"):
        train(recipe)
    assert run.file(rundir.CORRECTIONS).read_text() == correction()


@pytest.mark.some(1)
@pytest.mark.parametrize(("at_first", "how"), [(0, "kill_after"), (2, "stop_after"), (2, "kill_after")])
def test_a_run_that_is_resumed_keeps_the_corrections_it_began_with(tiny_model, tmp_path, at_first, how):
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    folder = tmp_path / "run"
    for number in range(at_first):
        add(folder, correction(f"q {number}"))
    straight = tmp_path / "straight"
    add(straight, *(correction(f"q {number}") for number in range(at_first)))
    corrected = ("data.corrections=true",)
    whole = train(recipe, overrides=(f"output_dir={straight}", *corrected))
    ended: dict[str, Any] = {how: 3}
    train(recipe, overrides=corrected, **ended)
    add(folder, correction("later", "said while it was under way"))
    run = train(recipe, overrides=corrected, resume=True)
    assert [line for line in course(run) if line[0] != "sample"] == [
        line for line in course(whole) if line[0] != "sample"
    ]
    assert run.file(rundir.MLX_WEIGHTS).read_bytes() == whole.file(rundir.MLX_WEIGHTS).read_bytes()
    assert json.loads(run.file(rundir.RUN_INFO).read_text())["corrections"] == (
        {f"{folder}/corrections.jsonl": len(correction("q 0")) * 2} if at_first else {}
    )


def test_corrections_that_were_changed_or_switched_on_are_refused_on_resume_and_taken_by_a_fork(tiny_model, tmp_path):
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    corrected = ("data.corrections=true",)
    add(tmp_path / "run", correction("q 0"), correction("q 1"))
    run = train(recipe, overrides=corrected, stop_after=2)
    before = started(run).train_rows
    with pytest.raises(RunError, match=r"data.corrections: was True, is now False"):
        train(recipe, resume=True)
    text = run.file(rundir.CORRECTIONS).read_text()
    run.file(rundir.CORRECTIONS).write_text(text.replace("q 0", "q 9") + correction("q 2"))
    with pytest.raises(RunError, match="the data files have changed"):
        train(recipe, overrides=corrected, resume=True)
    run.file(rundir.CORRECTIONS).write_text(text + correction("q 2"))
    forked = train(recipe, overrides=corrected, fork=True)
    rows = [
        record.event.train_rows
        for record in read_events(forked.file("events.jsonl"))
        if isinstance(record.event, RunStarted)
    ]
    assert rows == [before, before + 1]


def test_a_finished_run_goes_on_with_its_corrections_by_fork_and_keeps_its_rows_by_extend(tiny_model, tmp_path):
    recipe = write_recipe(tmp_path, tiny_model("llama"), extra="max_steps = 2")
    run = train(recipe)
    before = started(run).train_rows
    add(run.path, correction())
    train(recipe, extend=1)
    train(recipe, overrides=("data.corrections=true",), fork=True, extend=1)
    events = [record.event for record in read_events(run.file("events.jsonl"))]
    assert [event.train_rows for event in events if isinstance(event, RunStarted)] == [before, before, before + 1]
    assert [event.step for event in events if isinstance(event, StepDone)] == [1, 2, 3, 4]
    assert run.file(rundir.CORRECTIONS).read_text() == correction()


def test_a_fork_of_what_a_run_decided_says_what_changed_and_is_compared_with_no_plan(tiny_model, tmp_path):
    recipe = write_recipe(tmp_path, tiny_model("llama"), packing='"auto"')
    run = train(recipe)
    assert json.loads(run.file("training_metrics.json").read_text())["plan"] is not None
    add(run.path, correction())
    train(run.file(rundir.RESOLVED), overrides=("data.corrections=true",), fork=True, extend=1)
    events = [record.event for record in read_events(run.file("events.jsonl"))]
    forked = [event.message for event in events if isinstance(event, Notice) and event.message.startswith("forked")]
    assert forked == ["forked: data.corrections: was False, is now True", "forked: the training rows have changed"]
    for more in (None, 1):
        if more:
            train(run.file(rundir.RESOLVED), overrides=("data.corrections=true",), extend=more)
        assert json.loads(run.file("training_metrics.json").read_text())["plan"] is None
    assert [event.planned != "" for event in events if isinstance(event, RunFinished)] == [False]


def test_a_run_of_an_earlier_version_is_resumed_without_corrections(tiny_model, tmp_path):
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    run = train(recipe, stop_after=2)
    info = json.loads(run.file(rundir.RUN_INFO).read_text())
    del info["corrections"]
    for values in (info["resolved"]["data"], info["identity"]["recipe"]):
        for key in [key for key in values if key.removeprefix("data.").startswith("corrections")]:
            del values[key]
    run.file(rundir.RUN_INFO).write_text(json.dumps(info))
    run = train(recipe, resume=True)
    steps = [
        record.event.step for record in read_events(run.file("events.jsonl")) if isinstance(record.event, StepDone)
    ]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_malformed_correction_stops_the_start_before_a_run_is_there(tiny_model, tmp_path):
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    add(tmp_path / "run", correction(), '{"messages": []}\n')
    with pytest.raises(DataError) as caught:
        train(recipe, overrides=("data.corrections=true",))
    assert [problem.where for problem in caught.value.problems] == [f"{tmp_path / 'run'}/corrections.jsonl:2"]
    assert not (tmp_path / "run" / rundir.RUN_INFO).exists()
    train(recipe, overrides=("data.corrections=false",))
