"""What goes into a checkpoint: nothing that is not finite, and everything that a resume needs."""

import json
import shutil

import pytest
from small_runs import train, write_recipe

from mlx_finetune import rundir
from mlx_finetune.errors import TrainingError
from mlx_finetune.rundir import RunDir
from mlx_finetune.train.step import Trainer


@pytest.fixture
def recipe(tiny_model, tmp_path):
    return write_recipe(tmp_path, tiny_model("llama"))


@pytest.mark.parametrize("where", ["parameters", "state"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_neither_a_weight_nor_a_moment_that_is_not_finite_is_ever_committed(recipe, monkeypatch, where, number):
    real = Trainer.apply

    def apply(self, gradients, *, learning_rate, step):
        real(self, gradients, learning_rate=learning_rate, step=step)
        if step == 2:
            arrays = getattr(self, where)
            name = max(arrays)
            arrays[name] = arrays[name] + number

    monkeypatch.setattr(Trainer, "apply", apply)
    with pytest.raises(TrainingError, match="step 3: a weight or a moment of the optimizer is not finite"):
        train(recipe, overrides=("training.save_steps=1", "eval.prompts=[]"))
    run = RunDir(recipe.with_suffix(""))
    assert [path.name for path in run.checkpoints()] == ["checkpoint-1", "checkpoint-2"]
    assert not run.file(rundir.PEFT_WEIGHTS).exists()


def test_a_checkpoint_says_where_the_journal_stood_and_holds_the_decisions_of_the_run(recipe):
    run = train(recipe, stop_after=2)
    state = json.loads((run.checkpoint(2) / rundir.TRAINER_STATE).read_text())
    manifest = json.loads((run.checkpoint(2) / rundir.MANIFEST).read_text())
    assert 0 < state["journal_bytes"] < run.file(rundir.EVENTS).stat().st_size
    assert len(state["journal_sha256"]) == 64
    assert state["samples_bytes"] == run.file(rundir.SAMPLES).stat().st_size
    assert set(manifest["files"]) >= {rundir.RUN_INFO, rundir.OPTIMIZER, rundir.MLX_WEIGHTS, rundir.TRAINER_STATE}
    kept = json.loads((run.checkpoint(2) / rundir.RUN_INFO).read_text())
    assert kept["identity"] == state["identity"]
    assert kept["resolved"]["training"]["batch_size"] == 2


def test_whoever_loads_a_fully_trained_model_takes_its_weights_as_they_are(tiny_model, tmp_path):
    base = shutil.copytree(tiny_model("llama"), tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))  # transformers prefers that name
    run = train(write_recipe(tmp_path, base), overrides=("lora=", "training.max_steps=1", "eval.prompts=[]"))
    config = json.loads((run.file(rundir.MODEL_FOLDER) / "config.json").read_text())
    assert (config["dtype"], config["torch_dtype"]) == ("float32", "float32")
