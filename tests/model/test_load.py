import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model as upstream_load
from safetensors.numpy import load_file, save_file
from tiny import MODEL_TYPES, write_tiny_model

from mlx_finetune.errors import ModelError
from mlx_finetune.model import load as load_module
from mlx_finetune.model.inside.parts import blocks, embedding, flat_arrays, head
from mlx_finetune.model.load import LoadedModel, load_model, on_gpu
from mlx_finetune.model.sources.fetch import LocalModel, fetch_model

TinyModel = Callable[..., Path]
TOKENS = mx.array([[5, 70, 261, 9, 12, 80, 3, 44]])


def local(folder: Path) -> LocalModel:
    return fetch_model(str(folder), report=lambda _: None)


def load(
    folder: Path, *, quantize: int | None = None, dtype: str = "float32", gpu: bool = False, dequantize: bool = False
) -> LoadedModel:
    return load_model(local(folder), quantize=quantize, compute_dtype=dtype, on_gpu=gpu, dequantize=dequantize)


def with_config(folder: Path, **changed: object) -> Path:
    write_tiny_model(folder, "llama")
    config = json.loads((folder / "config.json").read_text()) | changed
    kept = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_architecture_loads_frozen_with_its_facts(tiny_model: TinyModel, model_type: str) -> None:
    found = load(tiny_model(model_type))
    assert tree_flatten(found.model.trainable_parameters()) == []
    assert not found.model.training
    info = found.info
    assert (info.model_type, info.num_layers, info.hidden_size, info.vocab_size) == (model_type, 2, 64, 299)
    assert (info.context_length, info.stored_bits, info.revision) == (512, None, None)
    assert info.num_parameters == sum(array.size for array in flat_arrays(found.model).values())
    assert {array.dtype for array in flat_arrays(found.model).values()} == {mx.float32}


def test_nothing_that_loading_freed_stays_in_the_cache(tiny_model: TinyModel) -> None:
    loaded = load(tiny_model("llama"))
    assert mx.get_cache_memory() == 0, loaded.info.name


def test_parameters_of_the_tiny_llama_are_counted_as_by_hand(tiny_model: TinyModel) -> None:
    attention = 64 * 64 + 2 * 64 * 32 + 64 * 64
    expected = 2 * 299 * 64 + 2 * (attention + 3 * 64 * 128 + 2 * 64) + 64
    assert load(tiny_model("llama")).info.num_parameters == expected
    assert load(tiny_model("llama"), quantize=4, gpu=True).info.num_parameters == expected


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_logits_are_those_of_mlx_lm(tiny_model: TinyModel, model_type: str) -> None:
    upstream, _ = upstream_load(tiny_model(model_type))
    assert mx.array_equal(load(tiny_model(model_type)).model(TOKENS), upstream(TOKENS)).item()


@pytest.mark.parametrize(("name", "dtype"), [("bfloat16", mx.bfloat16), ("float16", mx.float16)])
def test_every_number_gets_the_compute_type(tiny_model: TinyModel, name: str, dtype: mx.Dtype) -> None:
    plain, packed = load(tiny_model("llama"), dtype=name), load(tiny_model("llama"), quantize=4, dtype=name, gpu=True)
    assert {array.dtype for array in flat_arrays(plain.model).values()} == {dtype}
    assert {array.dtype for array in flat_arrays(packed.model).values()} == {dtype, mx.uint32}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_dequantised_weights_are_the_numbers_the_packed_ones_stand_for(
    tiny_model: TinyModel, model_type: str, bits: int
) -> None:
    packed = load(tiny_model(model_type), quantize=bits, gpu=True).model
    plain = load(tiny_model(model_type), quantize=bits).model
    modules = {p: m for p, m in packed.named_modules() if isinstance(m, nn.QuantizedLinear | nn.QuantizedEmbedding)}
    written = flat_arrays(plain)
    for path, module in modules.items():
        numbers = mx.dequantize(module.weight, module.scales, module.biases, group_size=64, bits=bits)
        assert mx.array_equal(numbers, written[f"{path}.weight"]).item(), path
    assert len(modules) == sum(hasattr(module, "to_quantized") for _, module in plain.named_modules())
    np.testing.assert_allclose(np.array(packed(TOKENS)), np.array(plain(TOKENS)), atol=2e-5)


def test_quantising_changes_the_numbers_by_at_most_half_a_step(tiny_model: TinyModel) -> None:
    original = flat_arrays(load(tiny_model("llama")).model)["lm_head.weight"].reshape(-1, 64)
    rounded = flat_arrays(load(tiny_model("llama"), quantize=8).model)["lm_head.weight"].reshape(-1, 64)
    step = (original.max(1, keepdims=True) - original.min(1, keepdims=True)) / 255
    assert (
        0 < float(np.array(mx.max(mx.abs(rounded - original) / step))) < 1.02
    )  # MLX moves the grid so that zero is on it


def test_on_the_cpu_a_notice_says_that_the_base_was_dequantised(tiny_model: TinyModel) -> None:
    messages = [notice.message for notice in load(tiny_model("llama"), quantize=4).notices]
    assert any("quantised to 4 bits and dequantised to float32" in message for message in messages)
    assert load(tiny_model("llama"), quantize=4, gpu=True).notices == ()


def up_projection(loaded: LoadedModel) -> object:
    return dict(loaded.model.named_modules())["model.layers.0.mlp.up_proj"]


def packed_folder(tiny_model: TinyModel, folder: Path, *, bits: int = 4) -> Path:
    """A folder as ``mlx_lm.convert -q`` leaves it."""
    model, config = upstream_load(tiny_model("llama"))
    nn.quantize(model, 64, bits)
    folder.mkdir()
    mx.save_safetensors(str(folder / "model.safetensors"), flat_arrays(model), metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config | {"quantization": {"group_size": 64, "bits": bits}}))
    return folder


def test_a_base_that_is_stored_packed_stays_so_on_a_gpu_only(tiny_model: TinyModel, tmp_path: Path) -> None:
    folder = packed_folder(tiny_model, tmp_path / "m")
    kept, written = load(folder, gpu=True), load(folder)
    assert kept.info.stored_bits == written.info.stored_bits == 4
    assert isinstance(up_projection(kept), nn.QuantizedLinear)
    assert type(up_projection(written)) is nn.Linear
    assert type(up_projection(load(folder, gpu=True, dequantize=True))) is nn.Linear
    np.testing.assert_allclose(np.array(kept.model(TOKENS)), np.array(written.model(TOKENS)), atol=2e-5)
    assert [notice.level for notice in written.notices] == ["info"]


def test_other_bits_than_stored_are_not_silently_ignored(tiny_model: TinyModel, tmp_path: Path) -> None:
    found = load(packed_folder(tiny_model, tmp_path / "m"), quantize=8, gpu=True)
    assert [notice.level for notice in found.notices] == ["warning"]
    assert "stored with 4 bits; quantize = 8 changes nothing" in found.notices[0].message
    assert load(tmp_path / "m", quantize=4, gpu=True).notices == ()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at_once", [7, 2**22])
def test_weights_that_are_not_finite_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: float, at_once: int
) -> None:
    monkeypatch.setattr(load_module, "FINITE_AT_ONCE", at_once)
    folder = write_tiny_model(tmp_path / "m", "llama")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = bad
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN or infinity"):
        load(folder)


@pytest.mark.parametrize(
    "name", ["cache", "base", "switch_layers", "rope_utils", "no_such", "../llama", "a.b", "", None, 7]
)
def test_a_model_type_that_is_no_architecture_is_refused(tmp_path: Path, name: object) -> None:
    folder = with_config(tmp_path / "m", model_type=name)
    with pytest.raises(ModelError, match=r"is not supported|is not the name of an architecture"):
        load(folder)


def test_code_that_comes_with_a_model_is_never_run(tmp_path: Path) -> None:
    folder = with_config(tmp_path / "m", model_file="evil.py", auto_map={"AutoModelForCausalLM": "evil.Model"})
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    with pytest.raises(ModelError, match=r"brings its own code \('evil.py'\), which is never run"):
        load(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "model_file"}))
    load(folder)  # auto_map is not looked at
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"hidden_size": 0}, "`hidden_size` = 0 is not a number from 1"),
        ({"num_hidden_layers": 10**9}, "`num_hidden_layers` = 1000000000 is not"),
        ({"num_attention_heads": "4"}, "`num_attention_heads` = '4' is not"),
        ({"vocab_size": True}, "`vocab_size` = True is not"),
        ({"rms_norm_eps": None}, "does not describe a 'llama' model: missing 1 required"),
        ({"num_hidden_layers": 3}, "do not belong together"),
        ({"intermediate_size": 96}, "do not belong together"),
        ({"vocab_size": 300}, "do not belong together"),
        ({"rope_scaling": {"rope_type": "nonsense"}}, "does not describe a 'llama' model"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "is quantised with bitsandbytes"),
    ],
)
def test_a_config_that_is_wrong_is_one_sentence(tmp_path: Path, changed: dict[str, object], what: str) -> None:
    folder = with_config(tmp_path / "m", **changed)
    with pytest.raises(ModelError, match=what):
        load(folder)


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, '{"model_type": "\\ud800"}', "null"])
def test_a_config_that_is_no_table_is_refused(tmp_path: Path, content: str) -> None:
    folder = write_tiny_model(tmp_path / "m", "llama")
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelError):
        load(folder)


def test_a_missing_and_an_additional_tensor_are_refused(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "m", "llama")
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"model.layers.0.extra": np.ones(3, np.float32)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"do not belong together.*model\.layers\.0\.extra"):
        load(folder)
    save_file({k: v for k, v in weights.items() if k != "model.norm.weight"}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"do not belong together.*model\.norm\.weight"):
        load(folder)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_embedding_blocks_and_head_are_found(tiny_model: TinyModel, model_type: str) -> None:
    for found in (load(tiny_model(model_type)), load(tiny_model(model_type), quantize=4, gpu=True)):
        assert embedding(found.model)(mx.array([0])).shape == (1, 64)
        assert len(blocks(found.model)) == 2
        is_tied = model_type in ("gemma", "qwen3", "gpt2")
        assert (head(found.model) is None) == is_tied
        assert embedding(found.model)(mx.array([298])).shape == (1, 64)


def test_parts_of_something_else_are_refused() -> None:
    with pytest.raises(ModelError, match="no token embedding"):
        embedding(nn.Linear(2, 2))
    with pytest.raises(ModelError, match="no blocks"):
        blocks(nn.Linear(2, 2))


def test_the_device_is_the_one_mlx_uses() -> None:
    assert on_gpu() == (mx.default_device().type == mx.DeviceType.gpu)


def test_a_trained_model_says_its_published_sentence(shared: Callable[..., Path]) -> None:
    found = load(shared("models", "stories260K"))
    ids = [1]
    for _ in range(60):
        ids.append(int(found.model(mx.array([ids]))[0, -1].argmax().item()))
    from tokenizers import Tokenizer

    text = Tokenizer.from_file(str(shared("models", "stories260K", "tokenizer.json"))).decode(ids)
    assert text.strip().startswith("Once upon a time, there was a little girl named Lily. She loved to play outside")
