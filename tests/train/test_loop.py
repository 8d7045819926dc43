"""When a run evaluates, saves and ends; driven through real small runs."""

import dataclasses
import json
import math

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file
from small_runs import course, train, write_recipe

from mlx_finetune import rundir
from mlx_finetune.errors import TrainingError
from mlx_finetune.events import CheckpointSaved, Notice, StepDone
from mlx_finetune.journal import read_events
from mlx_finetune.train import loop
from mlx_finetune.train.objectives import next_token, registry


@pytest.fixture
def recipe(tiny_model, tmp_path):
    return write_recipe(tmp_path, tiny_model("llama"))


def steps_of(run):
    return [entry[1] for entry in course(run) if entry[0] == "step"]


def evaluations(run):
    return {entry[1]: entry[2] for entry in course(run) if entry[0] == "evaluation"}


def test_it_evaluates_before_the_first_step_at_every_interval_and_at_the_end(recipe):
    run = train(recipe, overrides=("training.max_steps=5", "training.eval_steps=2"))
    assert list(evaluations(run)) == [0, 2, 4, 5]
    assert [entry[1] for entry in course(run) if entry[0] == "sample"] == [0, 2, 4, 5]


def test_the_result_is_the_best_checkpoint_or_the_last_one(recipe):
    """A learning rate this large makes the later evaluations worse."""
    settings = ("training.learning_rate=0.5", "training.eval_steps=1", "training.max_steps=4", "eval.prompts=[]")
    run = train(recipe, overrides=settings)
    losses = evaluations(run)
    best = min((step for step in losses if step), key=lambda step: losses[step])
    metrics = json.loads(run.file(rundir.METRICS).read_text())
    assert metrics["first_eval_loss"] == losses[0]
    published = run.file(rundir.MLX_WEIGHTS).read_bytes()
    assert published == (run.checkpoint(best) / rundir.MLX_WEIGHTS).read_bytes()
    other = f"output_dir={run.path.parent / 'last'}"
    last = train(recipe, overrides=(*settings, "training.keep_best=false", other))
    assert last.file(rundir.MLX_WEIGHTS).read_bytes() == (last.checkpoint(4) / rundir.MLX_WEIGHTS).read_bytes()


def test_rotation_keeps_the_newest_the_best_and_those_asked_for(recipe):
    settings = ("training.save_steps=1", "training.keep_checkpoints=1", "training.save_at=[0.3]", "eval.prompts=[]")
    run = train(recipe, overrides=settings)
    metrics = json.loads(run.file(rundir.METRICS).read_text())
    kept = {int(path.name.split("-")[1]) for path in run.checkpoints()}
    assert kept == {2, 6, metrics["best_step"]}


def test_early_stopping_ends_after_evaluations_without_improvement(recipe):
    settings = ("training.learning_rate=5.0", "training.eval_steps=1", "training.early_stopping_patience=2")
    run = train(recipe, overrides=(*settings, "training.max_steps=50", "eval.prompts=[]"))
    assert 2 <= len(steps_of(run)) < 50
    assert json.loads(run.file(rundir.METRICS).read_text())["reason"] == "early_stopping"


def test_max_minutes_ends_a_run_cleanly_with_an_evaluation(recipe):
    run = train(recipe, overrides=("training.max_minutes=1e-5", "training.max_steps=50"))
    assert steps_of(run) == [1]
    assert list(evaluations(run)) == [0, 1]
    assert json.loads(run.file(rundir.METRICS).read_text())["reason"] == "max_minutes"


def poison(monkeypatch, step):
    """Make the loss of one step infinite."""
    compute = loop.Trainer.compute

    def poisoned(self, batches, at):
        gradients, result = compute(self, batches, at)
        return gradients, dataclasses.replace(result, loss=float("inf")) if at == step else result

    monkeypatch.setattr(loop.Trainer, "compute", poisoned)


def test_a_loss_that_is_not_finite_stops_the_run_with_the_rows_and_good_weights(recipe, monkeypatch):
    poison(monkeypatch, step=3)
    with pytest.raises(TrainingError, match=r"step 4: loss inf.*rows.jsonl:\d+"):
        train(recipe)
    newest = recipe.parent / "run" / "checkpoint-2" / rundir.MLX_WEIGHTS
    assert all(np.isfinite(value).all() for value in load_file(newest).values())


def test_a_loss_that_is_not_finite_can_be_skipped_and_is_counted(recipe, monkeypatch):
    poison(monkeypatch, step=3)
    run = train(recipe, overrides=('training.on_nonfinite="skip"',))
    assert steps_of(run) == [1, 2, 3, 4, 5, 6]
    notices = [r.event for r in read_events(run.file(rundir.EVENTS)) if isinstance(r.event, Notice)]
    assert any("step 4" in notice.message and "left out" in notice.message for notice in notices)
    assert json.loads(run.file(rundir.METRICS).read_text())["skipped_steps"] == 1


def test_weights_that_are_not_finite_are_never_committed(recipe, monkeypatch):
    apply = loop.Trainer.apply

    def broken(self, gradients, *, learning_rate, step):
        apply(self, gradients, learning_rate=learning_rate, step=step)
        name = next(iter(self.parameters))
        self.parameters[name] = self.parameters[name] * float("nan")

    monkeypatch.setattr(loop.Trainer, "apply", broken)
    with pytest.raises(TrainingError):
        train(recipe, overrides=("training.eval_steps=6", "eval.prompts=[]"))
    assert not list((recipe.parent / "run").glob("checkpoint-*"))


def test_a_third_objective_needs_nothing_of_the_loop(recipe, monkeypatch):
    """Label smoothing as an objective of its own: sum of (1 - e) nll + e * mean over the vocabulary."""
    calls = []

    def smoothed(head, hidden, positions, targets):
        calls.append(targets.shape)
        loss_sum = next_token.next_token_loss(head, hidden, positions, targets)
        return 0.9 * loss_sum + 0.1 * targets.size * mx.log(mx.array(300.0))

    base = next_token.next_token("sft")
    plain = train(recipe, overrides=("training.max_steps=2", "eval.prompts=[]"))
    changed = dataclasses.replace(base, name="smoothed", loss=smoothed)
    monkeypatch.setitem(registry.OBJECTIVES, "sft", lambda recipe: changed)
    other = f"output_dir={recipe.parent / 'smoothed'}"
    run = train(recipe, overrides=("training.max_steps=2", "eval.prompts=[]", other))
    assert calls
    expected = 0.9 * evaluations(plain)[0] + 0.1 * math.log(300)
    assert evaluations(run)[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("model_type", ["gemma", "gpt2", "gpt_neox"])
def test_other_architectures_train_evaluate_and_save(tiny_model, tmp_path, model_type):
    recipe = write_recipe(tmp_path, tiny_model(model_type))
    packing = "false" if model_type == "gpt2" else "true"
    run = train(recipe, overrides=("training.max_steps=2", f"data.packing={packing}", "eval.prompts=[]"))
    losses = evaluations(run)
    assert losses[2] < losses[0]
    assert run.checkpoint(2).is_dir()


def test_step_0_is_saved_where_save_at_asks_for_it(recipe):
    settings = ("training.save_at=[0, 0.5]", "training.keep_checkpoints=1", "training.save_steps=6", "eval.prompts=[]")
    run = train(recipe, overrides=settings)
    assert {"checkpoint-0", "checkpoint-3", "checkpoint-6"} <= {path.name for path in run.checkpoints()}
    events = [record.event for record in read_events(run.file(rundir.EVENTS))]
    assert [event.step for event in events if isinstance(event, CheckpointSaved)].count(0) == 1
    weights = load_file(run.checkpoint(0) / rundir.MLX_WEIGHTS)
    assert all(not value.any() for name, value in weights.items() if name.endswith("lora_b"))


def test_a_run_that_is_killed_right_after_step_0_was_saved_goes_on_to_the_same_bits(recipe, tmp_path):
    settings = ("training.save_at=[0]", "training.save_steps=6", "eval.prompts=[]")
    straight = train(recipe, overrides=(*settings, f"output_dir={tmp_path / 'straight'}"))
    run = train(recipe, overrides=settings, kill_after=1)
    assert [path.name for path in run.checkpoints()] == ["checkpoint-0"]
    train(recipe, overrides=settings, resume=True)
    assert course(run) == course(straight)
    assert run.file(rundir.MLX_WEIGHTS).read_bytes() == straight.file(rundir.MLX_WEIGHTS).read_bytes()


def train_with_losses(recipe, monkeypatch, losses, *overrides):
    """A run whose validation loss after each step is the next of ``losses``."""
    step = 0

    def note(event, stop):
        nonlocal step
        step = event.step if isinstance(event, StepDone) else step

    monkeypatch.setattr(loop.Trainer, "loss", lambda self, batch, value: ([losses[step]], 1))
    settings = ("training.eval_steps=1", f"training.max_steps={len(losses) - 1}", "eval.prompts=[]")
    return train(recipe, overrides=(*settings, *overrides), on_event=note)


@pytest.mark.parametrize("keeps_best", [True, False])
def test_a_validation_loss_that_keeps_rising_is_told_once(recipe, monkeypatch, keeps_best):
    losses = [2.0, 1.0, 1.1, 1.2, 1.3, 1.4, 1.0]
    run = train_with_losses(recipe, monkeypatch, losses, f"training.keep_best={str(keeps_best).lower()}")
    events = [record.event for record in read_events(run.file(rundir.EVENTS))]
    (warned,) = [at for at, one in enumerate(events) if isinstance(one, Notice) and "has risen 3 times" in one.message]
    assert max(one.step for one in events[:warned] if isinstance(one, StepDone)) == 4
    assert ("the best weights are kept" in str(events[warned])) == keeps_best


def test_the_best_trained_weights_are_the_result_also_where_the_start_was_better(recipe, monkeypatch):
    run = train_with_losses(recipe, monkeypatch, [1.0, 1.5, 1.2, 1.4, 1.3])
    metrics = json.loads(run.file(rundir.METRICS).read_text())
    assert (metrics["first_eval_loss"], metrics["last_eval_loss"]) == (1.0, 1.3)
    assert (metrics["best_eval_loss"], metrics["best_step"], metrics["result_step"]) == (1.2, 2, 2)
    assert run.file(rundir.MLX_WEIGHTS).read_bytes() == (run.checkpoint(2) / rundir.MLX_WEIGHTS).read_bytes()
    assert (
        "1.2000 at its best (step 2), which is the result; the start was better still"
        in run.file(rundir.CARD).read_text()
    )
