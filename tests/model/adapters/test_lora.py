"""LoRA: where adapters go, what they compute, and that the base is untouched."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.switch_layers import SwitchGLU
from random_models import make_model

from mlx_finetune.errors import ModelError
from mlx_finetune.model.adapters.layers import dense_weight, linear_shape
from mlx_finetune.model.adapters.lora import (
    adapter_layers,
    adapter_parameters,
    attach_adapter,
    detach_adapter,
    find_target_modules,
    full_parameters,
    module_at,
)
from mlx_finetune.model.inside.noise import derive_key, use_noise
from mlx_finetune.recipe.schema import LoraRecipe

TOKENS = mx.array([[3, 14, 15, 92, 65, 35, 89]])
FAMILIES = ["llama", "gemma", "gpt2", "gpt_neox"]


def recipe(**fields: Any) -> LoraRecipe:
    return LoraRecipe.model_validate({"rank": 4, **fields})


def randomise(model: nn.Module) -> None:
    for number, layer in enumerate(adapter_layers(model).values()):
        layer.lora_b = 0.2 * mx.random.normal(layer.lora_b.shape, key=mx.random.key(number))


def inside(paths: tuple[str, ...]) -> set[str]:
    return {path.split(".", 3)[3] for path in paths}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_attached_adapter_changes_no_bit_until_it_is_trained_and_detaching_restores_the_modules(family: str) -> None:
    model = make_model(family)
    plain = model(TOKENS)
    before = dict(model.named_modules())
    attach_adapter(model, recipe(), seed=1)
    assert mx.array_equal(model(TOKENS), plain)
    randomise(model)
    assert np.abs(np.array(model(TOKENS) - plain)).max() > 0.1
    detach_adapter(model)
    after = dict(model.named_modules())
    assert after.keys() == before.keys()
    assert all(after[path] is module for path, module in before.items())
    assert mx.array_equal(model(TOKENS), plain)
    assert not tree_flatten(model.trainable_parameters())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("use_dora", [False, True])
def test_attached_equals_merged_weights(family: str, use_dora: bool) -> None:
    model = make_model(family)
    attach_adapter(model, recipe(alpha=8.0, use_dora=use_dora), seed=1)
    randomise(model)
    attached = np.array(model(TOKENS))
    layers = adapter_layers(model)
    detach_adapter(model)
    for path, layer in layers.items():
        linear = module_at(model, path)
        linear.weight = linear.weight + layer.delta()
    np.testing.assert_allclose(np.array(model(TOKENS)), attached, rtol=0, atol=1e-5)


def test_the_formula_of_one_layer_by_hand() -> None:
    model = make_model("llama")
    attach_adapter(model, recipe(rank=2, alpha=6.0, target_modules=["q_proj"]), seed=1)
    randomise(model)
    layer = adapter_layers(model)["model.layers.0.self_attn.q_proj"]
    x = np.linspace(-1, 1, 64, dtype=np.float32)[None]
    w, a, b = (np.array(value) for value in (layer.linear.weight, layer.lora_a, layer.lora_b))
    np.testing.assert_allclose(np.array(layer(mx.array(x))), x @ w.T + 3.0 * (x @ a) @ b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(64,), (1, 1, 64), (2, 5, 64)])
def test_answering_is_the_formula_of_training_in_fewer_operations(shape: tuple[int, ...]) -> None:
    model = make_model("llama")
    attach_adapter(model, recipe(rank=2, alpha=6.0, target_modules=["q_proj"]), seed=1)
    randomise(model)
    layer = adapter_layers(model)["model.layers.0.self_attn.q_proj"]
    x = mx.random.normal(shape, key=mx.random.key(0))
    layer.train()
    trained = np.array(layer(x))
    layer.eval()
    np.testing.assert_allclose(np.array(layer(x)), trained, rtol=0, atol=1e-5)
    layer.linear.set_dtype(mx.bfloat16)
    assert layer(x.astype(mx.bfloat16)).dtype == mx.bfloat16


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("llama", {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}
                  | {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}),
        ("gemma", {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}
                  | {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}),
        ("gpt2", {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}),
        ("gpt_neox", {"attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"}),
    ],
)  # fmt: skip
def test_all_linear_and_attention_take_exactly_these_layers_in_every_block(family: str, names: set[str]) -> None:
    model = make_model(family)
    found = find_target_modules(model, recipe())
    assert inside(found) == names
    assert len(found) == 2 * len(names)
    attention = find_target_modules(model, recipe(target_modules="attention"))
    assert inside(attention) == {name for name in names if name.startswith(("self_attn", "attn", "attention"))}


def test_a_name_means_every_layer_that_ends_with_it_and_a_longer_one_means_fewer() -> None:
    model = make_model("gpt2")
    assert inside(find_target_modules(model, recipe(target_modules=["c_proj"]))) == {"attn.c_proj", "mlp.c_proj"}
    assert inside(find_target_modules(model, recipe(target_modules=["attn.c_proj"]))) == {"attn.c_proj"}
    assert inside(find_target_modules(make_model("gpt_neox"), recipe(target_modules=["dense"]))) == {"attention.dense"}


def test_the_last_blocks_only() -> None:
    model = make_model("llama")
    spec = attach_adapter(model, recipe(target_modules=["v_proj", "q_proj"], num_layers=1), seed=1)
    assert spec.module_paths == ("model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj")
    assert spec.num_layers == 1
    assert spec.target_modules == ("q_proj", "v_proj")
    with pytest.raises(ModelError, match="num_layers = 3, but the model has 2 blocks"):
        find_target_modules(make_model("llama"), recipe(num_layers=3))


def test_an_unknown_name_is_refused_with_what_there_is_and_the_nearest() -> None:
    with pytest.raises(ModelError, match="no linear layer of this model is called 'q_prj'") as caught:
        find_target_modules(make_model("llama"), recipe(target_modules=["v_proj", "q_prj"]))
    assert caught.value.hint.startswith("did you mean q_proj? its linear layers are: down_proj (2), gate_proj (2)")
    with pytest.raises(ModelError, match="'lm_head'"):
        find_target_modules(make_model("llama"), recipe(target_modules=["lm_head"]))
    with pytest.raises(ModelError, match="'attention' finds no layer"):
        find_target_modules(make_model("mamba"), recipe(target_modules="attention"))


class _Experts(nn.Module):
    """A block as mixtures of experts have it."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.Module()
        self.self_attn.q_proj = nn.Linear(8, 8)
        self.mlp = nn.Module()
        self.mlp.gate = nn.Linear(8, 4)
        self.mlp.switch_mlp = SwitchGLU(8, 16, 4)
        self.per_layer_input_gate = nn.Linear(8, 8)


class _MixtureModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [_Experts()]


def test_routers_and_per_layer_projections_never_get_one_and_experts_are_refused_by_name() -> None:
    model = _MixtureModel()
    assert find_target_modules(model, recipe(target_modules="attention")) == ("layers.0.self_attn.q_proj",)
    for names in ("all-linear", ["up_proj"]):
        with pytest.raises(ModelError, match=r"mixture of experts.*\(down_proj, gate_proj, up_proj\)"):
            find_target_modules(model, recipe(target_modules=names))
    for name in ("gate", "per_layer_input_gate"):
        with pytest.raises(ModelError, match=f"called '{name}'"):
            find_target_modules(model, recipe(target_modules=[name]))


@pytest.mark.parametrize(
    ("family", "targets", "expected"),
    [  # r (in + out), summed by hand: llama q 64+64, k and v 64+32, o 64+64, gate and up 64+96, down 96+64
        ("llama", "all-linear", 2 * 4 * (128 + 96 + 96 + 128 + 160 + 160 + 160)),
        ("gpt2", ["c_attn", "c_proj", "c_fc"], 2 * 4 * (256 + 128 + 320 + 320)),
        ("gpt_neox", ["query_key_value"], 2 * 4 * 256),
    ],
)
def test_the_parameter_count_is_the_sum_of_r_times_in_plus_out(family: str, targets: Any, expected: int) -> None:
    model = make_model(family)
    attach_adapter(model, recipe(target_modules=targets), seed=1)
    trainable = dict(tree_flatten(model.trainable_parameters()))
    assert sum(value.size for value in trainable.values()) == expected
    assert sorted(trainable) == list(adapter_parameters(model))


def test_initial_weights_depend_on_seed_and_path_alone() -> None:
    both, one, other = make_model("llama"), make_model("llama"), make_model("llama")
    attach_adapter(both, recipe(), seed=1)
    mx.random.seed(99)
    attach_adapter(one, recipe(target_modules=["v_proj"]), seed=1)
    attach_adapter(other, recipe(target_modules=["v_proj"]), seed=2)
    name = "model.layers.0.self_attn.v_proj.lora_a"
    first = np.array(adapter_parameters(both)[name])
    np.testing.assert_array_equal(np.array(adapter_parameters(one)[name]), first)
    assert not np.array_equal(np.array(adapter_parameters(other)[name]), first)
    assert first.shape == (64, 4)
    assert first.dtype == np.float32
    assert 0.9 / 8 < np.abs(first).max() <= 1 / 8
    assert not np.any(np.array(adapter_parameters(both)["model.layers.0.self_attn.v_proj.lora_b"]))


def test_rslora_scales_by_the_square_root_of_the_rank() -> None:
    spec = attach_adapter(make_model("llama"), recipe(rank=64, alpha=16.0, use_rslora=True), seed=1)
    assert spec.scale == 2.0
    assert attach_adapter(make_model("llama"), recipe(rank=64, alpha=16.0), seed=1).scale == 0.25


def test_gradients_reach_a_and_b_only_and_dropout_acts_in_training_alone() -> None:
    model = make_model("gpt_neox")
    attach_adapter(model, recipe(dropout=0.5), seed=1)
    randomise(model)

    def loss() -> mx.array:
        with use_noise(derive_key(1)):
            return mx.sum(mx.square(model(TOKENS)))

    quiet = loss().item()
    model.train()
    value, grads = nn.value_and_grad(model, loss)()
    assert value.item() != quiet
    assert {name.rpartition(".")[2] for name, _ in tree_flatten(grads)} == {"lora_a", "lora_b"}
    assert all(np.array(grad).any() for _, grad in tree_flatten(grads))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("use_dora", [False, True])
def test_quantised_bases_of_every_width_work(bits: int, use_dora: bool) -> None:
    model = make_model("llama", intermediate_size=128)
    nn.quantize(model, 32, bits)
    model.freeze()
    plain = np.array(model(TOKENS))
    spec = attach_adapter(model, recipe(use_dora=use_dora), seed=1)
    assert linear_shape(module_at(model, spec.module_paths[0]).linear) == (64, 128)
    np.testing.assert_allclose(np.array(model(TOKENS)), plain, rtol=0, atol=1e-5 if use_dora else 0)
    randomise(model)
    attached = np.array(model(TOKENS))
    layers = adapter_layers(model)
    detach_adapter(model)
    for path, layer in layers.items():
        parent = module_at(model, path.rpartition(".")[0])
        merged = nn.Linear(1, 1, bias=False)
        merged.weight = dense_weight(layer.linear) + layer.delta()
        setattr(parent, path.rpartition(".")[2], merged)
    np.testing.assert_allclose(np.array(model(TOKENS)), attached, rtol=0, atol=2e-5)
    assert np.abs(attached - plain).max() > 0.1


def test_a_half_precision_base_keeps_its_type_and_the_adapter_float32() -> None:
    model = make_model("llama")
    model.set_dtype(mx.bfloat16)
    plain = model(TOKENS)
    attach_adapter(model, recipe(), seed=1)
    assert {value.dtype for value in adapter_parameters(model).values()} == {mx.float32}
    assert model(TOKENS).dtype == mx.bfloat16
    assert mx.array_equal(model(TOKENS), plain)


def test_full_fine_tuning_trains_every_weight_in_float32() -> None:
    model = make_model("gemma")
    model.set_dtype(mx.bfloat16)
    parameters = full_parameters(model)
    assert sorted(name for name, _ in tree_flatten(model.parameters())) == list(parameters)
    assert {value.dtype for value in parameters.values()} == {mx.float32}
    assert len(tree_flatten(model.trainable_parameters())) == len(parameters)


def test_full_fine_tuning_of_quantised_weights_is_refused() -> None:
    model = make_model("llama", intermediate_size=128)
    nn.quantize(model, 32, 4)
    with pytest.raises(ModelError, match=r"every weight is to be trained, but .* is quantised"):
        full_parameters(model)
