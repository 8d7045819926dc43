import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf_writer
import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx_lm.models.rope_utils import Llama3RoPE
from safetensors.numpy import load_file

from mlx_finetune.errors import ModelError
from mlx_finetune.model.gguf.convert import convert_gguf

TinyModel = Callable[..., Path]
TOKENS = mx.array([[5, 70, 261, 9, 12, 80, 3, 44]])


def load_upstream(folder: Path) -> Any:
    """The model as ``mlx_lm.load`` reads the folder, its tokenizer included."""
    return mlx_lm.load(str(folder))[0]


def converted(
    tiny_model: TinyModel,
    folder: Path,
    kind: str,
    model_type: str = "llama",
    changed: Mapping[str, object] = MappingProxyType({}),
) -> Path:
    source = tiny_model(model_type)
    entries = gguf_writer.tiny_metadata(source, model_type) | {k.replace("__", "."): v for k, v in changed.items()}
    metadata = {key: value for key, value in entries.items() if value is not None}
    tensors = gguf_writer.tiny_tensors(source, kind, interleave=model_type == "llama")
    path = gguf_writer.write_gguf(folder / "m.gguf", metadata, tensors)
    target = folder / "model"
    target.mkdir()
    convert_gguf(path, target)
    return target


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_unpacked_weights_come_back_exactly_rows_of_q_and_k_in_their_order(
    tiny_model: TinyModel, tmp_path: Path, model_type: str
) -> None:
    folder = converted(tiny_model, tmp_path, "F32", model_type)
    expected = load_file(tiny_model(model_type) / "model.safetensors")
    found = load_file(folder / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_logits_of_the_converted_folder_are_those_of_the_original(tiny_model: TinyModel, tmp_path: Path) -> None:
    model = load_upstream(converted(tiny_model, tmp_path, "F32"))
    original = load_upstream(tiny_model("llama"))
    assert mx.array_equal(model(TOKENS), original(TOKENS)).item()


@pytest.mark.parametrize(("kind", "bits"), [("Q4_0", 4), ("Q4_1", 4), ("Q8_0", 8)])
def test_packed_weights_stay_packed_and_load_in_mlx_lm(
    tiny_model: TinyModel, tmp_path: Path, kind: str, bits: int
) -> None:
    folder = converted(tiny_model, tmp_path, kind)
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization"] == {"group_size": 32, "bits": bits}
    model = load_upstream(folder)
    original = load_upstream(tiny_model("llama"))
    assert model.model.layers[0].self_attn.q_proj.bits == bits
    ours, theirs = model(TOKENS), original(TOKENS)
    error = float(np.abs(np.array(ours - theirs)).mean() / np.array(theirs).std())
    assert (
        0 < error < {4: 0.35, 8: 0.02}[bits]
    )  # of the spread of the logits: a step of 1/16 or 1/256 of a weight's range


def test_q_of_the_packed_form_equals_q_of_the_unpacked_form_after_rounding(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    folder = converted(tiny_model, tmp_path, "Q8_0")
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    name = "model.layers.1.self_attn.q_proj"
    parts = [weights[f"{name}.{part}"] for part in ("weight", "scales", "biases")]
    plain = mx.dequantize(*[parts[0], *(part.astype(mx.float32) for part in parts[1:])], group_size=32, bits=8)
    expected = load_file(tiny_model("llama") / "model.safetensors")[f"{name}.weight"]
    np.testing.assert_allclose(np.array(plain), expected, atol=0.004)  # half a step of 0.4 / 127, and fp16 scales


def test_config_and_ends_are_those_of_the_original(tiny_model: TinyModel, tmp_path: Path) -> None:
    folder = converted(tiny_model, tmp_path, "F16")
    original = json.loads((tiny_model("llama") / "config.json").read_text())
    found = json.loads((folder / "config.json").read_text())
    for key in set(original) - {"dtype", "attention_bias"}:
        assert found[key] == original[key], key
    assert json.loads((folder / "generation_config.json").read_text()) == {"bos_token_id": 1, "eos_token_id": 2}


def test_bfloat16_survives(tiny_model: TinyModel, tmp_path: Path) -> None:
    folder = converted(tiny_model, tmp_path, "BF16")
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    expected = mx.array(load_file(tiny_model("llama") / "model.safetensors")["lm_head.weight"])
    assert weights["lm_head.weight"].dtype == mx.bfloat16
    np.testing.assert_allclose(
        np.array(weights["lm_head.weight"].astype(mx.float32)), np.array(expected), atol=0.4 / 128
    )


def test_stretched_frequencies_of_llama_3_are_recognised(tiny_model: TinyModel, tmp_path: Path) -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    theta = 500_000.0
    rope = Llama3RoPE(16, 131_072, False, theta, scaling | {"rope_type": "llama3"})
    plain = theta ** (np.arange(0, 16, 2) / 16)
    factors = (np.array(rope._freqs) / plain).astype(np.float32)
    source = tiny_model("llama")
    metadata = gguf_writer.tiny_metadata(source) | {"llama.rope.freq_base": theta}
    tensors = gguf_writer.tiny_tensors(source, "F32") | {"rope_freqs.weight": (factors, "F32")}
    folder = tmp_path / "model"
    folder.mkdir()
    convert_gguf(gguf_writer.write_gguf(tmp_path / "m.gguf", metadata, tensors), folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_scaling"] == scaling | {"rope_type": "llama3"}
    tensors["rope_freqs.weight"] = (factors * np.float32(1.1), "F32")
    with pytest.raises(ModelError, match="are not Llama 3's"):
        convert_gguf(gguf_writer.write_gguf(tmp_path / "n.gguf", metadata, tensors), folder)


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"general__architecture": "mamba"}, "architecture 'mamba' is not supported; llama, qwen2, qwen3 are"),
        ({"llama__block_count": 3}, "is incomplete: 9 tensors are missing"),
        ({"llama__embedding_length": 0}, "`llama.embedding_length` is 0"),
        ({"llama__expert_count": 8}, "`llama.expert_count` is set"),
        ({"llama__rope__scaling__type": "yarn"}, "rotary scaling 'yarn'"),
        ({"llama__attention__head_count": None}, "`llama.attention.head_count` is None"),
        ({"llama__rope__dimension_count": 8}, "a part of the head"),
    ],
)
def test_what_is_not_a_plain_llama_is_refused_by_name(
    tiny_model: TinyModel, tmp_path: Path, changed: dict[str, object], what: str
) -> None:
    with pytest.raises(ModelError, match=what):
        converted(tiny_model, tmp_path, "F32", changed=changed)


def test_a_tensor_that_does_not_belong_there_is_refused(tiny_model: TinyModel, tmp_path: Path) -> None:
    source = tiny_model("llama")
    tensors = gguf_writer.tiny_tensors(source, "F32") | {"blk.0.ffn_gate_exps.weight": (np.ones((2, 2), "f4"), "F32")}
    path = gguf_writer.write_gguf(tmp_path / "m.gguf", gguf_writer.tiny_metadata(source), tensors)
    with pytest.raises(ModelError, match=r"'blk\.0\.ffn_gate_exps\.weight' does not belong"):
        convert_gguf(path, tmp_path)
