"""Stop-and-resume equals never-stopped, bit for bit; what is not the same run is refused."""

import hashlib

import pytest
from small_runs import course, train, write_recipe, write_rows

from mlx_finetune import rundir
from mlx_finetune.errors import RunError


def weights_hash(run):
    names = (rundir.MLX_WEIGHTS, rundir.PEFT_WEIGHTS)
    return [hashlib.sha256(run.file(name).read_bytes()).hexdigest() for name in names]


@pytest.fixture(scope="module")
def straight(tiny_model, tmp_path_factory):
    """The uninterrupted run: dropout, NEFTune, accumulation, packing."""
    return train(write_recipe(tmp_path_factory.mktemp("straight"), tiny_model("llama")))


@pytest.mark.some(5)
@pytest.mark.parametrize("step", range(1, 6))
@pytest.mark.parametrize("how", ["stop_after", "kill_after"])
def test_a_run_interrupted_after_any_step_ends_with_the_same_bits(straight, tiny_model, tmp_path, how, step):
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    run = train(recipe, **{how: step})
    assert not run.file(rundir.PEFT_WEIGHTS).exists()
    train(recipe, resume=True)
    assert course(run) == course(straight)
    assert weights_hash(run) == weights_hash(straight)
    samples = [folder.file(rundir.SAMPLES).read_text() for folder in (run, straight)]
    assert samples[0] == samples[1]


def test_many_interruptions_change_nothing(straight, tiny_model, tmp_path):
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    run = train(recipe, stop_after=1)
    for step in (2, 3):
        train(recipe, resume=True, stop_after=step)
    train(recipe, resume=True, kill_after=5)
    train(recipe, resume=True)
    assert course(run) == course(straight)
    assert weights_hash(run) == weights_hash(straight)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(straight, tiny_model, tmp_path):
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    run = train(recipe, kill_after=5)
    damaged = run.checkpoint(4) / rundir.OPTIMIZER
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    train(recipe, resume=True)
    assert weights_hash(run) == weights_hash(straight)
    assert "checkpoint-4 is damaged" in run.file(rundir.EVENTS).read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("training.learning_rate=2e-2",), "training.learning_rate: was 0.01, is now 0.02"),
        (("seed=12",), "seed: was 11, is now 12"),
        (("lora.dropout=0.0",), "lora.dropout"),
    ],
)
def test_another_recipe_is_refused_with_the_difference(tiny_model, tmp_path, change, message):
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    run = train(recipe, stop_after=1)
    with pytest.raises(RunError, match="not the run that was started") as error:
        train(recipe, overrides=change, resume=True)
    assert message in error.value.message
    assert "--fork" in error.value.hint
    train(recipe, overrides=change, fork=True)
    assert run.file(rundir.PEFT_WEIGHTS).exists()


def test_other_data_and_another_model_are_refused(tiny_model, tmp_path):
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    train(recipe, stop_after=1)
    write_rows(tmp_path / "rows.jsonl", 25)
    with pytest.raises(RunError, match="the data files have changed"):
        train(recipe, resume=True)
    write_rows(tmp_path / "rows.jsonl")
    with pytest.raises(RunError, match="model"):
        train(recipe, overrides=(f"model={tiny_model('llama', seed=1)}",), resume=True)


def test_settings_that_change_no_weight_may_change_on_resume(straight, tiny_model, tmp_path):
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    run = train(recipe, stop_after=3)
    train(recipe, resume=True, overrides=("training.keep_checkpoints=1", "training.save_steps=5", "chat.top_k=3"))
    assert weights_hash(run) == weights_hash(straight)
    assert [path.name for path in run.checkpoints()][-1] == "checkpoint-6"


def test_a_finished_run_is_neither_overwritten_nor_resumed_but_can_be_extended(straight, tiny_model, tmp_path):
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    run = train(recipe)
    before = weights_hash(run)
    with pytest.raises(RunError, match="already holds a run"):
        train(recipe)
    with pytest.raises(RunError, match="has finished"):
        train(recipe, resume=True)
    assert weights_hash(run) == before
    train(recipe, extend=2, kill_after=7)
    train(recipe, resume=True)
    assert [entry[1] for entry in course(run) if entry[0] == "step"] == list(range(1, 9))
    assert run.checkpoint(8).is_dir()


def test_two_trainings_in_one_folder_are_refused(tiny_model, tmp_path):
    from pathlib import Path

    from mlx_finetune.rundir import RunDir
    from mlx_finetune.train.start.admission import Request, admit

    first = admit(RunDir(tmp_path / "run"), Request(Path("recipe.toml")))
    with pytest.raises(RunError, match="is training in"):
        admit(RunDir(tmp_path / "run"), Request(Path("recipe.toml")))
    first.release()
    admit(RunDir(tmp_path / "run"), Request(Path("recipe.toml"))).release()
