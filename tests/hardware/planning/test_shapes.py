"""Parameter counts from a config alone agree with the tensors on disk and with adapters attached for real."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

from mlx_finetune.hardware.planning.shapes import ModelShape, adapter_parameters, read_shape, target_linears
from mlx_finetune.recipe.schema import LoraRecipe

FAMILIES = ("llama", "gemma", "gpt2", "gpt_neox", "qwen3")


def lora(**values: object) -> LoraRecipe:
    return LoraRecipe.model_validate(values)


def shape_of(folder: Path) -> ModelShape:
    return read_shape(json.loads((folder / "config.json").read_text("utf-8")))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_parameters_counted_from_the_config_are_those_on_disk(tiny_model: Callable[..., Path], model_type: str) -> None:
    folder = tiny_model(model_type)
    shape = shape_of(folder)
    with safe_open(folder / "model.safetensors", "np") as file:
        names = [name for name in file.keys() if not name.endswith((".attn.bias", ".masked_bias"))]  # noqa: SIM118
        stored = sum(math.prod(file.get_slice(name).get_shape()) for name in names)
        tied = [name for name in names if name.startswith("lm_head")] if not shape.has_own_head else []
        stored -= sum(math.prod(file.get_slice(name).get_shape()) for name in tied)
    assert shape.is_exact
    assert shape.num_parameters == stored


SMOLLM2 = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}
PYTHIA = {
    "model_type": "gpt_neox",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "vocab_size": 50304,
    "max_position_embeddings": 2048,
}
DIALOGPT = {
    "model_type": "gpt2",
    "n_embd": 1024,
    "n_layer": 24,
    "n_head": 16,
    "vocab_size": 50257,
    "n_positions": 1024,
}


@pytest.mark.parametrize(
    ("config", "count"), [(SMOLLM2, 134_515_008), (PYTHIA, 1_414_647_808), (DIALOGPT, 354_823_168)]
)
def test_published_parameter_counts_are_met_exactly(config: dict[str, object], count: int) -> None:
    assert read_shape(config).num_parameters == count


def test_adapter_parameters_are_the_sum_of_rank_times_in_plus_out() -> None:
    shape = read_shape(SMOLLM2)
    by_hand = 30 * 16 * ((576 + 576) + 2 * (576 + 192) + (576 + 576) + 2 * (576 + 1536) + (1536 + 576))
    assert adapter_parameters(shape, lora()) == by_hand == 4_884_480
    assert adapter_parameters(shape, lora(rank=8, target_modules=["q_proj"], num_layers=16)) == 16 * 8 * 1152
    assert adapter_parameters(shape, lora(rank=1, target_modules=["q_proj"], use_dora=True)) == 30 * (1152 + 576)


def test_c_proj_means_attention_and_mlp_both() -> None:
    names = [one.name for one in target_linears(read_shape(DIALOGPT), lora(target_modules=["c_proj"]))]
    assert names == ["attn.c_proj", "mlp.c_proj"]


def test_attention_leaves_out_the_mlp() -> None:
    names = [one.name for one in target_linears(read_shape(PYTHIA), lora(target_modules="attention"))]
    assert names == ["attention.query_key_value", "attention.dense"]


def test_an_unknown_family_is_counted_like_llama_and_says_so() -> None:
    known, unknown = read_shape(SMOLLM2), read_shape({**SMOLLM2, "model_type": "brand_new"})
    assert known.is_exact
    assert not unknown.is_exact
    assert unknown.num_parameters == known.num_parameters


def test_a_missing_size_is_named() -> None:
    with pytest.raises(ValueError, match="`hidden_size`"):
        read_shape({"model_type": "llama"})
