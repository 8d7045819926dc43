"""A Llama with random weights and a tokenizer of bytes, written on the spot: something to measure where no model is.

Its speed and memory are those of a trained model of the same shape; what it says is noise. Never imports mlx.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

_END_OF_TEXT, _START, _END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_SPREAD = 0.02  # standard deviation of the weights, as models are begun with


@dataclass(frozen=True, slots=True)
class RandomShape:
    """The shape of a random model, by the names of its config.json."""

    name: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int


#: The shape of SmolLM2-135M.
RANDOM_135M = RandomShape("random-135m", 576, 1536, 30, 9, 3, 49_152)


def write_random_model(folder: Path, shape: RandomShape, *, seed: int = 0) -> Path:
    """Write config, float16 weights and tokenizer into the existing ``folder`` and return it.

    135 million parameters are 270 MB and take about three seconds. Raises ``OSError`` without room.
    """
    head_size = shape.hidden_size // shape.num_heads
    config: dict[str, object] = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": head_size,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": "float16",
    }
    generator = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> "np.ndarray[tuple[int, int], np.dtype[np.float16]]":
        return (_SPREAD * generator.standard_normal((rows, columns), np.float32)).astype(np.float16)

    ones = np.ones(shape.hidden_size, np.float16)
    hidden, inner = shape.hidden_size, shape.intermediate_size
    queries, keys = shape.num_heads * head_size, shape.num_kv_heads * head_size
    weights = {"model.embed_tokens.weight": matrix(shape.vocab_size, hidden), "model.norm.weight": ones}
    for number in range(shape.num_layers):
        block = f"model.layers.{number}"
        weights |= {
            f"{block}.self_attn.q_proj.weight": matrix(queries, hidden),
            f"{block}.self_attn.k_proj.weight": matrix(keys, hidden),
            f"{block}.self_attn.v_proj.weight": matrix(keys, hidden),
            f"{block}.self_attn.o_proj.weight": matrix(hidden, queries),
            f"{block}.mlp.gate_proj.weight": matrix(inner, hidden),
            f"{block}.mlp.up_proj.weight": matrix(inner, hidden),
            f"{block}.mlp.down_proj.weight": matrix(hidden, inner),
            f"{block}.input_layernorm.weight": ones,
            f"{block}.post_attention_layernorm.weight": ones,
        }
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    _write_tokenizer(folder)
    return folder


def _write_tokenizer(folder: Path) -> None:
    """Three control tokens, then the 256 bytes: a token for every byte of a text."""
    pieces = [_END_OF_TEXT, _START, _END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={piece: number for number, piece in enumerate(pieces)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(text, special=True, normalized=False) for text in pieces[:3]]
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": _START, "eos_token": _END, "pad_token": _END_OF_TEXT, "chat_template": _CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
