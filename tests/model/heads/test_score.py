"""A score head: its first weights, its scores of token rows, and its way to the disk and back."""

import json

import mlx.core as mx
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from saved_adapters import save_adapter

from mlx_finetune import rundir
from mlx_finetune.errors import ModelError
from mlx_finetune.model.adapters.files import load_adapter
from mlx_finetune.model.adapters.lora import attach_adapter
from mlx_finetune.model.heads.files import head_file, read_head
from mlx_finetune.model.heads.score import HeadSpec, ScoreHead, attach_head, detach_head, find_head, first_weight
from mlx_finetune.model.heads.token_scores import ScoringModel
from mlx_finetune.model.inside.split import SplitModel
from mlx_finetune.model.load import load_model
from mlx_finetune.model.sources.fetch import LocalModel
from mlx_finetune.recipe.schema import LoraRecipe

SPEC = HeadSpec("classify", 3, ("bad", "good", "so\u2028 so"))
ROWS = [np.arange(1, length + 1, dtype=np.int32) for length in (5, 1, 9, 3)]


@pytest.fixture
def load_tiny(tiny_model):
    def load(model_type: str):
        local = LocalModel("tiny", tiny_model(model_type), "folder", None, "", None)
        return load_model(local, quantize=None, compute_dtype="float32", on_gpu=False)

    return load


def head_of(model) -> ScoreHead:
    head = find_head(model)
    assert head is not None
    return head


def with_head(model, spec: HeadSpec = SPEC, seed: int = 4) -> SplitModel:
    split = SplitModel(model)
    attach_head(split, spec, first_weight(spec, split.hidden_size, seed))
    return split


def test_the_first_weights_are_a_function_of_the_seed_and_the_shape():
    spec = HeadSpec("reward", 100)
    weight = first_weight(spec, 400, 7)
    assert weight.dtype == mx.float32
    assert mx.array_equal(weight, first_weight(HeadSpec("classify", 100), 400, 7))
    assert not mx.array_equal(weight, first_weight(spec, 400, 8))
    assert float(mx.std(weight)) == pytest.approx(0.02, rel=0.02)
    assert abs(float(mx.mean(weight))) < 5e-4


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gpt_neox"])
def test_scores_in_a_batch_are_those_of_each_row_alone(load_tiny, model_type):
    """Whatever stands behind a row's last token is not read; positions inside are those of the same forward pass."""
    model = load_tiny(model_type).model
    split = with_head(model)
    scoring = ScoringModel(model)
    done: list[int] = []
    together, inside = scoring.last(ROWS, done.append), scoring.every(ROWS)
    assert together.shape == (4, 3)
    assert together.dtype == np.float32
    assert done[-1] == 4
    for number, ids in enumerate(ROWS):
        hidden = split.hidden(mx.array(ids[None]), None)[0]
        expected = np.asarray(hidden.astype(mx.float32) @ head_of(model).weight.T)
        assert np.allclose(inside[number], expected, atol=1e-5)
        assert np.allclose(together[number], expected[-1], atol=1e-5)


def test_a_model_without_a_head_scores_nothing(load_tiny):
    model = load_tiny("llama").model
    with pytest.raises(ModelError, match="no score head"):
        ScoringModel(model)
    with_head(model)
    detach_head(model)
    assert find_head(model) is None


def test_peft_reads_the_head_from_the_adapter_and_mlx_lm_sees_none(load_tiny, tmp_path):
    loaded = load_tiny("llama")
    spec = attach_adapter(loaded.model, LoraRecipe.model_validate({"rank": 4}), seed=3)
    with_head(loaded.model)
    save_adapter(tmp_path, loaded.model, spec, loaded.info)
    config = json.loads((tmp_path / rundir.ADAPTER_CONFIG).read_text())
    assert config["modules_to_save"] == ["score"]
    assert config["task_type"] == "SEQ_CLS"
    assert config["id2label"] == {"0": "bad", "1": "good", "2": "so\u2028 so"}
    with safe_open(tmp_path / rundir.PEFT_WEIGHTS, "numpy") as file:
        assert np.array_equal(file.get_tensor("base_model.model.score.weight"), head_of(loaded.model).weight)
    with safe_open(tmp_path / rundir.MLX_WEIGHTS, "numpy") as file:
        assert not [name for name in file.keys() if "score" in name]  # noqa: SIM118


@pytest.mark.parametrize("from_peft", [False, True])
def test_the_head_comes_back_bit_for_bit(load_tiny, tmp_path, from_peft):
    """From our own file, or, as from another tool, from PEFT's alone."""
    loaded = load_tiny("llama")
    spec = attach_adapter(loaded.model, LoraRecipe.model_validate({"rank": 4}), seed=3)
    with_head(loaded.model)
    before = ScoringModel(loaded.model).last(ROWS)
    save_adapter(tmp_path, loaded.model, spec, loaded.info)
    if from_peft:
        (tmp_path / rundir.HEAD_WEIGHTS).unlink()
        (tmp_path / rundir.MLX_WEIGHTS).unlink()
    again = load_tiny("llama").model
    load_adapter(again, tmp_path)
    found = read_head(tmp_path)
    assert found is not None
    assert found[0] == SPEC
    attach_head(SplitModel(again), *found)
    assert np.array_equal(ScoringModel(again).last(ROWS), before)


def test_a_head_that_cannot_be_right_is_refused(load_tiny, tmp_path):
    model = load_tiny("llama").model
    split = with_head(model)
    path = tmp_path / rundir.HEAD_WEIGHTS
    whole = head_file(head_of(model))
    path.write_bytes(whole[:-8])
    with pytest.raises(ModelError, match=r"head\.safetensors"):
        read_head(tmp_path)
    save_file({"score.weight": np.ones((3, 64), np.float32)}, path, {"task": "classify", "labels": '["a", "b"]'})
    with pytest.raises(ModelError, match="2 labels for 3 outputs"):
        read_head(tmp_path)
    with pytest.raises(ModelError, match="has the shape"):
        attach_head(split, SPEC, mx.zeros((3, 5)))
    head_of(model).weight = mx.full((3, 64), float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        head_file(head_of(model))
    assert read_head(tmp_path / "nowhere") is None
