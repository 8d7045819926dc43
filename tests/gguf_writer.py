"""Writes small GGUF files for the tests, from the format's description; the package itself only reads them."""

import json
import struct
from pathlib import Path

import numpy as np
import tiny
from safetensors.numpy import load_file

TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8, "BF16": 30}
BLOCK = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def typed(value: object) -> bytes:
    """Type number and value of one metadata entry."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    assert isinstance(value, list)
    if value and isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(text(item) for item in value)
    code, number = ("f", 6) if value and isinstance(value[0], float) else ("i", 5)
    return struct.pack(f"<IIQ{len(value)}{code}", 9, number, len(value), *value)


def encode(array: np.ndarray, kind: str) -> bytes:
    """An array as blocks of ``kind``; rounding is plain, since the tests compare readers and not roundings."""
    if kind == "F32":
        return array.astype("<f4").tobytes()
    if kind == "F16":
        return array.astype("<f2").tobytes()
    if kind == "BF16":
        return (array.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    groups = array.astype(np.float32).reshape(-1, 32)
    if kind == "Q8_0":
        scale = (np.abs(groups).max(1, keepdims=True) / 127).astype("<f2")
        q = np.clip(np.rint(groups / np.maximum(scale.astype(np.float32), 1e-8)), -127, 127).astype(np.int8)
        return np.concatenate((scale.view(np.uint8), q.view(np.uint8)), 1).tobytes()
    low = groups.min(1, keepdims=True) if kind == "Q4_1" else -np.abs(groups).max(1, keepdims=True)
    high = groups.max(1, keepdims=True) if kind == "Q4_1" else -low
    scale = ((high - low) / (15 if kind == "Q4_1" else 16)).astype("<f2")
    q = np.clip(np.rint((groups - low) / np.maximum(scale.astype(np.float32), 1e-8)), 0, 15).astype(np.uint8)
    header = [scale.view(np.uint8)] + ([low.astype("<f2").view(np.uint8)] if kind == "Q4_1" else [])
    return np.concatenate((*header, q[:, :16] | (q[:, 16:] << 4)), 1).tobytes()


def write_gguf(
    path: Path,
    metadata: dict[str, object],
    tensors: dict[str, tuple[np.ndarray, str]],
    *,
    version: int = 3,
) -> Path:
    """``tensors``: name -> (array, block type). Offsets are aligned to 32 bytes."""
    head = struct.pack("<4sIQQ", b"GGUF", version, len(tensors), len(metadata))
    head += b"".join(text(key) + typed(value) for key, value in metadata.items())
    data = b""
    for name, (array, kind) in tensors.items():
        head += text(name) + struct.pack("<I", array.ndim) + struct.pack(f"<{array.ndim}Q", *array.shape[::-1])
        head += struct.pack("<IQ", TYPES[kind], len(data))
        data += encode(array, kind)
        data += b"\0" * (-len(data) % 32)
    path.write_bytes(head + b"\0" * (-len(head) % 32) + data)
    return path


def tiny_metadata(folder: Path, architecture: str = "llama") -> dict[str, object]:
    """Metadata of a tiny model folder, the tokenizer included."""
    config = json.loads((folder / "config.json").read_text())
    tokenizer = tiny.make_tokenizer()
    pieces = [tokenizer.id_to_token(index) for index in range(tokenizer.get_vocab_size())]
    return {
        "general.architecture": architecture,
        "general.license": "mit",
        f"{architecture}.embedding_length": config["hidden_size"],
        f"{architecture}.block_count": config["num_hidden_layers"],
        f"{architecture}.feed_forward_length": config["intermediate_size"],
        f"{architecture}.attention.head_count": config["num_attention_heads"],
        f"{architecture}.attention.head_count_kv": config["num_key_value_heads"],
        f"{architecture}.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        f"{architecture}.rope.freq_base": config["rope_theta"],
        f"{architecture}.context_length": config["max_position_embeddings"],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.token_type": [3 if piece in tiny.SPECIAL_TOKENS else 1 for piece in pieces],
        "tokenizer.ggml.merges": list(tiny.MERGES),
        "tokenizer.ggml.bos_token_id": config["bos_token_id"],
        "tokenizer.ggml.eos_token_id": config["eos_token_id"],
        "tokenizer.chat_template": tiny.CHATML,
    }


def tiny_tensors(folder: Path, kind: str, *, interleave: bool = True) -> dict[str, tuple[np.ndarray, str]]:
    """Weights of a tiny llama or qwen3 under GGUF's names; matrices as ``kind``, norms as F32."""
    config = json.loads((folder / "config.json").read_text())
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    tensors: dict[str, tuple[np.ndarray, str]] = {}
    for name, array in load_file(folder / "model.safetensors").items():
        module, _, part = name.rpartition(".")
        if module in BLOCK:
            ours = BLOCK[module]
        else:
            _, _, index, rest = module.split(".", 3)
            ours = LAYER[rest]
            if interleave and ours in heads:
                halves = array.reshape(heads[ours], 2, -1, array.shape[1])  # (heads, half, pair, in)
                array = halves.swapaxes(1, 2).reshape(array.shape)
            ours = f"blk.{index}.{ours}"
        tensors[f"{ours}.{part}"] = (array, kind if array.ndim == 2 else "F32")
    return tensors
