"""Sinks and experts: the formulas, and folders that mlxft and mlx-lm load."""

from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from new_models import made

from mlx_finetune.errors import ModelError
from mlx_finetune.hardware.planning.shapes import read_shape
from mlx_finetune.model.cpu.blockwise import is_chain
from mlx_finetune.model.files.config import read_config
from mlx_finetune.model.inside.parts import blocks, flat_arrays
from mlx_finetune.model.inside.split import SplitModel
from mlx_finetune.model.load import load_model
from mlx_finetune.model.scratch import weights
from mlx_finetune.model.sources.fetch import LocalModel

IDS = mx.array([[5, 9, 200, 31, 77, 4, 9]])


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLXFT_CACHE", str(tmp_path / "cache"))


def loaded(local: LocalModel):
    return load_model(local, quantize=None, compute_dtype="float32", on_gpu=False).model


def attention(q: mx.array, k: mx.array, v: mx.array, sinks: mx.array) -> mx.array:
    """Causal attention whose softmax has one more logit a head, written out; (B, heads, T, D)."""
    repeats = q.shape[1] // k.shape[1]
    k, v = mx.repeat(k, repeats, axis=1), mx.repeat(v, repeats, axis=1)
    scores = (q * q.shape[-1] ** -0.5) @ k.swapaxes(-1, -2)
    length = q.shape[2]
    scores = mx.where(mx.arange(length)[:, None] >= mx.arange(length)[None], scores, -1e9)
    more = mx.broadcast_to(sinks[None, :, None, None], (*scores.shape[:-1], 1))
    return mx.softmax(mx.concatenate([more, scores], axis=-1), axis=-1)[..., 1:] @ v


def check_sinks() -> None:
    """``mx.fast`` with sinks has the value and the gradients of the formula, those of the sinks too."""
    mx.random.seed(0)
    q, k, v = (mx.random.normal((2, heads, 6, 16)) for heads in (4, 2, 2))
    sinks, cotangent = mx.random.normal((4,)), mx.random.normal((2, 4, 6, 16))

    def fast(*arrays: mx.array) -> mx.array:
        return mx.fast.scaled_dot_product_attention(*arrays[:3], scale=0.25, mask="causal", sinks=arrays[3])

    arrays = [q, k, v, sinks]
    values, slopes = mx.vjp(lambda *a: [fast(*a)], arrays, [cotangent])
    expected, wanted = mx.vjp(lambda *a: [attention(*a)], arrays, [cotangent])
    for one, other in zip([*values, *slopes], [*expected, *wanted], strict=True):
        assert mx.allclose(one, other, atol=1e-5)


def test_fast_attention_with_sinks_has_the_gradients_of_the_formula() -> None:
    check_sinks()


@pytest.mark.metal
def test_fast_attention_with_sinks_has_the_gradients_of_the_formula_on_a_gpu() -> None:
    check_sinks()


def test_sinks_at_minus_infinity_are_plain_attention(tmp_path: Path) -> None:
    with_sinks, plain = made(tmp_path, attention_sinks=True), made(tmp_path)
    model, other = loaded(with_sinks), loaded(plain)
    at_zero = model(IDS)
    assert not mx.allclose(at_zero, other(IDS), atol=1e-5)
    for layer in blocks(model):
        cast(Any, layer).self_attn.sinks = mx.full((4,), -float("inf"))
    assert mx.allclose(model(IDS), other(IDS), atol=1e-6)


@pytest.mark.parametrize("options", [{"attention_sinks": True}, {"num_experts": 4}])
def test_mlx_lm_runs_the_file_in_the_folder_and_mlxft_its_own(tmp_path: Path, options: dict[str, Any]) -> None:
    local = made(tmp_path, **options)
    theirs = mlx_lm.load(str(local.folder), trust_remote_code=True)[0]
    assert mx.array_equal(loaded(local)(IDS), theirs(IDS))
    with pytest.raises(ValueError, match="trust_remote_code"):
        mlx_lm.load(str(local.folder))
    (local.folder / weights.OWN_FILE).write_text("raise SystemExit('this must never run')")
    loaded(local)


def test_other_code_in_a_folder_is_refused_as_ever(tmp_path: Path) -> None:
    local = made(tmp_path)
    path = local.folder / "config.json"
    path.write_text(path.read_text().replace("{", '{"model_file": "mlxft_scratch.py", ', 1))
    with pytest.raises(ModelError, match="brings its own code"):
        loaded(local)


def test_a_token_goes_through_its_best_experts(tmp_path: Path) -> None:
    """Two of four, weighted by their shares of both; written out with plain matrices."""
    model = loaded(made(tmp_path, num_experts=4))
    experts = cast(Any, blocks(model)[0]).mlp
    x = mx.random.normal((1, 3, 64))
    shares = np.array(mx.softmax(x @ experts.gate.weight.T, axis=-1))[0]
    stacks = [np.array(one.weight) for one in (experts.switch_mlp.gate_proj, experts.switch_mlp.up_proj)]
    down = np.array(experts.switch_mlp.down_proj.weight)
    expected = np.zeros((3, 64))
    for place, (token, share) in enumerate(zip(np.array(x)[0], shares, strict=True)):
        best = np.argsort(-share)[:2]
        for one in best:
            gate, up = (stack[one] @ token for stack in stacks)
            expected[place] += share[one] / share[best].sum() * (down[one] @ (gate / (1 + np.exp(-gate)) * up))
    assert np.abs(np.array(experts(x))[0] - expected).max() < 1e-5


@pytest.mark.parametrize("options", [{}, {"attention_sinks": True}, {"num_experts": 4, "attention_sinks": True}])
def test_plan_and_trainer_know_the_parts(tmp_path: Path, options: dict[str, Any]) -> None:
    local = made(tmp_path, **options)
    model = loaded(local)
    shape = read_shape(read_config(local.folder))
    assert shape.num_parameters == sum(value.size for value in flat_arrays(model).values())
    split = SplitModel(model)
    assert split.is_split
    assert is_chain(split)
