"""DoRA: magnitude and direction. Merging and quantised bases are tested in test_lora.py."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from random_models import make_model

from mlx_finetune.model.adapters.layers import DoRALinear, linear_shape
from mlx_finetune.model.adapters.lora import adapter_parameters, attach_adapter, module_at
from mlx_finetune.recipe.schema import LoraRecipe

TOKENS = mx.array([[3, 14, 15, 92, 65, 35, 89]])


def make_layer(bias: bool = True) -> DoRALinear:
    mx.random.seed(2)
    layer = DoRALinear(nn.Linear(24, 16, bias=bias), rank=4, scale=1.5, dropout=0.0, key=mx.random.key(1))
    layer.lora_b = 0.2 * mx.random.normal((4, 16), key=mx.random.key(2))
    return layer


@pytest.mark.parametrize("family", ["llama", "gemma", "gpt2", "gpt_neox"])
def test_it_starts_as_its_base(family: str) -> None:
    model = make_model(family)
    plain = np.array(model(TOKENS))
    spec = attach_adapter(model, LoraRecipe.model_validate({"rank": 4, "use_dora": True}), seed=1)
    np.testing.assert_allclose(np.array(model(TOKENS)), plain, rtol=0, atol=1e-5)
    shapes = [linear_shape(module_at(make_model(family), path)) for path in spec.module_paths]
    count = sum(4 * (rows + columns) + rows for rows, columns in shapes)
    assert sum(value.size for value in adapter_parameters(model).values()) == count


def test_rows_have_the_norm_m_and_the_direction_of_the_sum() -> None:
    layer = make_layer()
    layer.m = mx.arange(1.0, 17.0)
    summed = np.array(layer.linear.weight) + 1.5 * (np.array(layer.lora_a) @ np.array(layer.lora_b)).T
    expected = summed / np.linalg.norm(summed, axis=1, keepdims=True) * np.arange(1, 17)[:, None]
    np.testing.assert_allclose(np.array(layer.row_norms()), np.linalg.norm(summed, axis=1), rtol=1e-6)
    np.testing.assert_allclose(np.array(layer.linear.weight + layer.delta()), expected, rtol=0, atol=1e-5)
    x = np.random.default_rng(0).normal(size=(5, 24)).astype(np.float32)
    bias = np.array(layer.linear.bias)
    np.testing.assert_allclose(np.array(layer(mx.array(x))), x @ expected.T + bias, rtol=0, atol=2e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_the_norm_carries_no_gradient(bias: bool) -> None:
    layer = make_layer(bias)
    layer.freeze()
    layer.unfreeze(keys=["lora_a", "lora_b", "m"], recurse=False)
    x = mx.random.normal((5, 24), key=mx.random.key(3))
    norms = layer.row_norms()

    def by_layer() -> mx.array:
        return mx.sum(mx.sin(layer(x)))

    def by_hand(a: mx.array, b: mx.array, m: mx.array) -> mx.array:
        y = (m / norms) * (x @ layer.linear.weight.T + 1.5 * (x @ a) @ b)
        return mx.sum(mx.sin(y + layer.linear.bias if bias else y))

    _, grads = nn.value_and_grad(layer, by_layer)()
    expected = mx.grad(by_hand, argnums=(0, 1, 2))(layer.lora_a, layer.lora_b, layer.m)
    assert sorted(name for name, _ in tree_flatten(grads)) == ["lora_a", "lora_b", "m"]
    for name, grad in zip(("lora_a", "lora_b", "m"), expected, strict=True):
        np.testing.assert_allclose(np.array(grads[name]), np.array(grad), rtol=0, atol=1e-5)


def test_the_norm_of_the_base_is_no_parameter() -> None:
    layer = make_layer()
    assert sorted(name for name, _ in tree_flatten(layer.parameters())) == [
        "linear.bias", "linear.weight", "lora_a", "lora_b", "m",
    ]  # fmt: skip


@pytest.mark.parametrize("bias", [False, True])
def test_fixed_norms_change_no_answer_and_are_not_used_in_training(bias: bool) -> None:
    layer = make_layer(bias)
    x = mx.random.normal((5, 24), key=mx.random.key(3))
    layer.eval()
    expected = np.array(layer(x))
    names = [name for name, _ in tree_flatten(layer.parameters())]
    layer.fix_norms()
    np.testing.assert_allclose(np.array(layer(x)), expected, rtol=0, atol=1e-6)
    assert [name for name, _ in tree_flatten(layer.parameters())] == names
    layer.m = 2 * layer.m
    layer.train()
    shift = np.array(layer.linear.bias) if bias else 0
    np.testing.assert_allclose(np.array(layer(x)) - shift, 2 * (expected - shift), rtol=0, atol=1e-5)
