"""A checkpoint of save_at says what its loss was, and a fresh model that loads it has the same."""

import json

import pytest
from small_runs import train, write_recipe

from mlx_finetune import rundir
from mlx_finetune.model.adapters.files import load_adapter
from mlx_finetune.model.load import load_model, on_gpu
from mlx_finetune.model.reload_check import KEY, TOLERANCE, ReloadCheck, loss_of
from mlx_finetune.model.sources.fetch import fetch_model
from mlx_finetune.train.losses import chunk_rows


@pytest.fixture
def model_folder(tiny_model):
    return tiny_model("llama")


def fresh(folder):
    local = fetch_model(str(folder), report=lambda _: None)
    return load_model(local, quantize=None, compute_dtype="float32", on_gpu=on_gpu()).model


def saved_check(folder):
    return ReloadCheck.from_json(json.loads((folder / rundir.TRAINER_STATE).read_bytes()).get(KEY))


def test_a_reloaded_checkpoint_has_the_loss_it_was_saved_with(model_folder, tmp_path):
    settings = ("training.save_at=[0, 1]", "training.save_steps=3", "eval.prompts=[]", "training.learning_rate=0.05")
    run = train(write_recipe(tmp_path, model_folder), overrides=settings)
    losses = {}
    for step in (0, 6):
        check = saved_check(run.checkpoint(step))
        assert check is not None
        model = fresh(model_folder)
        load_adapter(model, run.checkpoint(step))
        losses[step] = check.loss
        assert loss_of(model, check, chunk_rows) == pytest.approx(check.loss, abs=TOLERANCE)
    assert abs(losses[0] - losses[6]) > 1e-3  # or a checkpoint of the wrong step would pass
    assert saved_check(run.checkpoint(3)) is None  # the others cost no forward pass


@pytest.mark.parametrize(
    "value",
    [
        None,
        7,
        {},
        {"ids": [[1, 2]], "positions": [[2]], "loss": 1.0},
        {"ids": [[1, 2]], "positions": [[0]], "loss": 1.0},
        {"ids": [[1, 2]], "positions": [], "loss": 1.0},
        {"ids": [[1, -2]], "positions": [[1]], "loss": 1.0},
        {"ids": [[1, "a"]], "positions": [[1]], "loss": 1.0},
    ],
)
def test_what_is_no_check_is_none(value):
    assert ReloadCheck.from_json(value) is None


def test_a_check_survives_its_json():
    check = ReloadCheck(((1, 2, 3), (4, 5)), ((1, 2), (1,)), 1.25)
    assert ReloadCheck.from_json(json.loads(json.dumps(check.to_json()))) == check
