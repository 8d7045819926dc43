"""A Llama in a GGUF file becomes a model folder: config.json, model.safetensors, tokenizer files.

Packed weights stay packed (affine, group 32, 4 or 8 bits a tensor, listed in the config), so nothing is lost and
``mlx_lm.load`` reads the folder too. Architectures that are not built like Llama are refused by name. Measured on 2 CPU
cores: SmolLM2-135M in Q4_1, 98 MB, 0.9 s.
"""

import json
import math
import re
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlx_finetune.errors import ModelError
from mlx_finetune.model.gguf.container import AFFINE_BITS, GROUP_SIZE, Array, Gguf, read_gguf, unpack_tensor
from mlx_finetune.model.gguf.tokenizer import token_id, write_tokenizer

#: GGUF architecture -> model_type, class name, and whether rows of q and k come in interleaved pairs.
_ARCHITECTURES = {
    "llama": ("llama", "LlamaForCausalLM", True),
    "qwen2": ("qwen2", "Qwen2ForCausalLM", False),
    "qwen3": ("qwen3", "Qwen3ForCausalLM", False),
}
_TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BLOCK = re.compile(r"blk\.(\d+)\.([a-z_]+)\.(weight|bias)")
_DTYPES = {"float32": "F32", "float16": "F16", "uint32": "U32", "uint16": "BF16"}
_ROPE_FACTORS = "rope_freqs.weight"


def convert_gguf(path: Path, folder: Path) -> None:
    """Write a model folder for the GGUF file ``path`` into the existing empty ``folder``.

    Raises ``ModelError`` for a damaged file and, by name, for what is not supported.
    """
    gguf = read_gguf(path)
    architecture = gguf.metadata.get("general.architecture")
    if architecture not in _ARCHITECTURES:
        raise ModelError(
            f"{path}: the GGUF architecture {architecture!r} is not supported; {', '.join(_ARCHITECTURES)} are",
            "use the model's safetensors folder or hub id instead",
        )
    weights: dict[str, Array] = {}
    bits: dict[str, int] = {}
    config = _config(gguf, architecture)
    for name in gguf.tensors:
        if name != _ROPE_FACTORS:
            _convert_tensor(gguf, name, config, weights, bits)
    _check_complete(gguf, config, weights)
    if bits:
        config["quantization"] = _quantization(bits)
    _write_json(folder / "config.json", config)
    ends = {f"{n}_token_id": config[f"{n}_token_id"] for n in ("bos", "eos") if f"{n}_token_id" in config}
    _write_json(folder / "generation_config.json", ends)
    write_tokenizer(gguf, folder)
    license_name = gguf.metadata.get("general.license")
    metadata = {"format": "mlx"} | ({"license": license_name} if isinstance(license_name, str) else {})
    save_weights(folder / "model.safetensors", weights, metadata)


def save_weights(path: Path, weights: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, tensor by tensor; uint16 arrays are taken as the bits of bfloat16.

    Written by hand because the safetensors library has no bfloat16 without torch or ml_dtypes: a little-endian length,
    a JSON header padded with spaces to eight bytes, the arrays without holes (the format's README).
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, array in weights.items():
        start, end = end, end + array.nbytes
        header[name] = {"dtype": _DTYPES[array.dtype.name], "shape": array.shape, "data_offsets": (start, end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in weights.values():
            file.write(np.ascontiguousarray(array).data)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1), "utf-8")


def _config(gguf: Gguf, architecture: str) -> dict[str, object]:
    model_type, class_name, _ = _ARCHITECTURES[architecture]
    hidden, heads = _size(gguf, "embedding_length"), _size(gguf, "attention.head_count")
    head_dim = _size(gguf, "attention.key_length", hidden // heads)
    for wrong in ("expert_count", "attention.sliding_window"):
        if gguf.metadata.get(f"{architecture}.{wrong}"):
            raise ModelError(f"{gguf.path}: `{architecture}.{wrong}` is set; such models are not read from GGUF")
    if _size(gguf, "rope.dimension_count", head_dim) != head_dim:
        raise ModelError(f"{gguf.path}: rotary embedding over a part of the head is not read from GGUF")
    theta = gguf.metadata.get(f"{architecture}.rope.freq_base", 10000.0)
    epsilon = gguf.metadata.get(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5)
    if not isinstance(theta, float) or not isinstance(epsilon, float):
        raise ModelError(f"{gguf.path} is damaged: rope.freq_base = {theta!r}, layer_norm_rms_epsilon = {epsilon!r}")
    if "token_embd.weight" not in gguf.tensors:
        raise ModelError(f"{gguf.path} holds no model: the tensor token_embd.weight is missing")
    config: dict[str, object] = {
        "model_type": model_type,
        "architectures": [class_name],
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": _size(gguf, "feed_forward_length"),
        "num_hidden_layers": _size(gguf, "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _size(gguf, "attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": _size(gguf, "context_length"),
        "rms_norm_eps": _short(epsilon),
        "rope_theta": _short(theta),
        "vocab_size": gguf.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "attention_bias": "blk.0.attn_q.bias" in gguf.tensors,
    }
    scaling = _rope_scaling(gguf, architecture, head_dim, theta)
    if scaling is not None:
        config["rope_scaling"] = scaling
    for name in ("bos", "eos"):
        index = token_id(gguf, f"tokenizer.ggml.{name}_token_id")
        if index is not None:
            config[f"{name}_token_id"] = index
    return config


def _short(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-05 rather than 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _size(gguf: Gguf, key: str, default: int | None = None) -> int:
    full = f"{gguf.metadata['general.architecture']}.{key}"
    value = gguf.metadata.get(full, default)
    if not isinstance(value, int) or not 0 < value <= 10**7:
        raise ModelError(f"{gguf.path}: `{full}` is {value!r}, not a usable number")
    return value


def _rope_scaling(gguf: Gguf, architecture: str, head_dim: int, theta: float) -> dict[str, object] | None:
    """Llama 3.1's stretched frequencies, recognised by their factors; other scalings are refused by name."""
    kind = gguf.metadata.get(f"{architecture}.rope.scaling.type", "none")
    if kind != "none":
        raise ModelError(f"{gguf.path}: rotary scaling {kind!r} is not read from GGUF", "use the safetensors instead")
    if _ROPE_FACTORS not in gguf.tensors:
        return None
    found = unpack_tensor(gguf, _ROPE_FACTORS)[""].astype(np.float64).reshape(-1)
    for factor in (8.0, 32.0):
        expected = _llama3_factors(head_dim, theta, factor)
        if found.shape == expected.shape and np.allclose(found, expected, rtol=1e-4):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            }
    raise ModelError(
        f"{gguf.path}: the factors in {_ROPE_FACTORS} are not Llama 3's; other rotary scalings are not read"
    )


def _llama3_factors(head_dim: int, theta: float, factor: float) -> NDArray[np.float64]:
    """By how much each rotary frequency is slowed in Llama 3.1: 1 for short waves, ``factor`` for long, smooth between.

    A wave is long above 8192 / 1 positions and short below 8192 / 4 (Llama 3 report, 2407.21783, and its config).
    """
    wavelength = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((8192 / wavelength - 1.0) / (4.0 - 1.0), 0.0, 1.0)
    return 1 / ((1 - smooth) / factor + smooth)


def _convert_tensor(
    gguf: Gguf, name: str, config: Mapping[str, object], weights: dict[str, Array], bits: dict[str, int]
) -> None:
    """Add the arrays of one tensor under their new names, rows of q and k in the half-split order."""
    module, kind = _new_name(gguf, name)
    parts = unpack_tensor(gguf, name)
    interleaved = _ARCHITECTURES[str(gguf.metadata["general.architecture"])][2]
    if interleaved and module.endswith(("q_proj", "k_proj")):
        heads = config["num_attention_heads" if module.endswith("q_proj") else "num_key_value_heads"]
        assert isinstance(heads, int)
        if gguf.tensors[name].shape[0] % (2 * heads):
            raise ModelError(f"{gguf.path} is damaged: {name} has {gguf.tensors[name].shape[0]} rows for {heads} heads")
        parts = {part: _half_split(array, heads) for part, array in parts.items()}
    if "" in parts:
        weights[f"{module}.{kind}"] = parts[""]
    else:
        bits[module] = AFFINE_BITS[gguf.tensors[name].type_name]
        weights |= {f"{module}.{part}": array for part, array in parts.items()}


def _half_split(array: Array, heads: int) -> Array:
    """Rows (heads, pair, 2) -> (heads, 2, pair): exact on packed weights, scales and biases alike."""
    rows = array.shape[0]
    pairs = array.reshape(heads, rows // heads // 2, 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)


def _new_name(gguf: Gguf, name: str) -> tuple[str, str]:
    """``blk.3.attn_q.weight`` -> (``model.layers.3.self_attn.q_proj``, ``weight``)."""
    block = _BLOCK.fullmatch(name)
    if block is not None and block[2] in _BLOCK_NAMES:
        return f"model.layers.{block[1]}.{_BLOCK_NAMES[block[2]]}", block[3]
    top, _, kind = name.rpartition(".")
    if top in _TOP_NAMES and kind == "weight":
        return _TOP_NAMES[top], kind
    raise ModelError(f"{gguf.path}: the tensor {name!r} does not belong to a model of this architecture")


def _check_complete(gguf: Gguf, config: Mapping[str, object], weights: Mapping[str, Array]) -> None:
    num_layers = config["num_hidden_layers"]
    assert isinstance(num_layers, int)
    needed = [n for n in _BLOCK_NAMES.values() if not n.endswith(("q_norm", "k_norm"))]
    expected = [f"model.layers.{index}.{name}" for index in range(min(num_layers, 10_000)) for name in needed]
    missing = [name for name in ("model.norm", *expected) if f"{name}.weight" not in weights]
    if missing or num_layers > 10_000:
        raise ModelError(f"{gguf.path} is incomplete: {len(missing)} tensors are missing, the first is {missing[:1]}")


def _quantization(bits: Mapping[str, int]) -> dict[str, object]:
    """The commonest width as the default, every other module by its name."""
    default = max(set(bits.values()), key=list(bits.values()).count)
    special = {n: {"group_size": GROUP_SIZE, "bits": b} for n, b in bits.items() if b != default}
    return {"group_size": GROUP_SIZE, "bits": default, **special}
