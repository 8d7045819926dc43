"""Tiny random models in the layout of the hub: two layers, width 64, byte-level tokenizer, ChatML template.

``write_tiny_model`` makes one folder (the fixture ``tiny_model`` of conftest.py keeps it for the session). Weights
depend on the model type and the seed alone, so a test may pin numbers.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

HIDDEN, HEAD_DIM, NUM_HEADS, NUM_KV_HEADS, NUM_LAYERS, INTERMEDIATE, CONTEXT = 64, 16, 4, 2, 2, 128, 512
END_OF_TEXT, START_OF_TURN, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, START_OF_TURN, END_OF_TURN)
_MERGES = (
    "Ġ t|h e|Ġt he|i n|Ġ a|e r|o n|r e|Ġ s|a n|o r|e n|Ġ o|Ġo f|a t|i s|Ġa n|Ġan d|in g|Ġt o|i t|e s|Ġ i|Ġi s|Ġi n"
    "|o u|Ġ y|Ġy ou|a r|a l|s t|l l|Ġ w|Ġ c|Ġ p|Ġ f|u s|us er|s y|st e"
)
MERGES = _MERGES.split("|")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

Weights = dict[str, np.ndarray]
Config = dict[str, object]


def write_tiny_model(folder: Path, model_type: str, *, seed: int = 0, chat_template: bool = True) -> Path:
    """Write config, weights and tokenizer of a random ``model_type`` into ``folder`` and return it."""
    make_config, make_weights = _ARCHITECTURES[model_type]
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    end = END_OF_TURN if chat_template else END_OF_TEXT
    config: Config = {
        "model_type": model_type,
        "vocab_size": tokenizer.get_vocab_size(),
        "bos_token_id": tokenizer.token_to_id(START_OF_TURN),
        "eos_token_id": tokenizer.token_to_id(end),
        "dtype": "float32",
    }
    config |= make_config()
    rng = np.random.default_rng([seed, *model_type.encode()])
    weights = make_weights(rng, tokenizer.get_vocab_size())
    save_file(
        {name: np.ascontiguousarray(w) for name, w in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    write_tokenizer(folder, chat_template=chat_template)
    return folder


def write_tokenizer(folder: Path, *, chat_template: bool = True) -> None:
    """Write tokenizer.json and tokenizer_config.json; without a chat template text ends with <|endoftext|>."""
    make_tokenizer().save(str(folder / "tokenizer.json"))
    config: Config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": START_OF_TURN if chat_template else END_OF_TEXT,
        "eos_token": END_OF_TURN if chat_template else END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
    }
    if chat_template:
        config["chat_template"] = CHATML
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))


def make_tokenizer() -> Tokenizer:
    """Byte-level BPE: 3 control tokens (ids 0-2), 256 bytes, then one token for each merge."""
    pieces = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(m.replace(" ", "") for m in MERGES)]
    merges = [(first, second) for first, second in (merge.split(" ") for merge in MERGES)]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL_TOKENS])
    return tokenizer


def _matrix(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(0.0, 0.1, shape).astype(np.float32)


def _norm(rng: np.random.Generator, mean: float, size: int = HIDDEN) -> np.ndarray:
    return (mean + rng.normal(0.0, 0.05, size)).astype(np.float32)


def _llama_like(rng: np.random.Generator, vocab_size: int, *, kv_heads: int, norm: float, tied: bool) -> Weights:
    """Weights that llama, gemma and qwen3 share. Matrices are (out, in)."""
    weights: Weights = {"model.embed_tokens.weight": _matrix(rng, vocab_size, HIDDEN)}
    for index in range(NUM_LAYERS):
        layer = f"model.layers.{index}"
        shapes = {
            "self_attn.q_proj": (NUM_HEADS * HEAD_DIM, HIDDEN),
            "self_attn.k_proj": (kv_heads * HEAD_DIM, HIDDEN),
            "self_attn.v_proj": (kv_heads * HEAD_DIM, HIDDEN),
            "self_attn.o_proj": (HIDDEN, NUM_HEADS * HEAD_DIM),
            "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
            "mlp.up_proj": (INTERMEDIATE, HIDDEN),
            "mlp.down_proj": (HIDDEN, INTERMEDIATE),
        }
        weights |= {f"{layer}.{name}.weight": _matrix(rng, *shape) for name, shape in shapes.items()}
        weights |= {f"{layer}.{n}_layernorm.weight": _norm(rng, norm) for n in ("input", "post_attention")}
    weights["model.norm.weight"] = _norm(rng, norm)
    if not tied:
        weights["lm_head.weight"] = _matrix(rng, vocab_size, HIDDEN)
    return weights


def _llama_like_config(architecture: str, kv_heads: int, **more: object) -> Config:
    return {
        "architectures": [architecture],
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": NUM_HEADS,
        "num_key_value_heads": kv_heads,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        **more,
    }


def _llama_config() -> Config:
    return _llama_like_config(
        "LlamaForCausalLM", NUM_KV_HEADS, hidden_act="silu", tie_word_embeddings=False, attention_bias=False
    )


def _llama_weights(rng: np.random.Generator, vocab_size: int) -> Weights:
    return _llama_like(rng, vocab_size, kv_heads=NUM_KV_HEADS, norm=1.0, tied=False)


def _gemma_config() -> Config:
    return _llama_like_config("GemmaForCausalLM", 1, hidden_act="gelu", tie_word_embeddings=True)


def _gemma_weights(rng: np.random.Generator, vocab_size: int) -> Weights:
    return _llama_like(rng, vocab_size, kv_heads=1, norm=0.0, tied=True)


def _qwen3_config() -> Config:
    return _llama_like_config(
        "Qwen3ForCausalLM", NUM_KV_HEADS, hidden_act="silu", tie_word_embeddings=True, attention_bias=False
    )


def _qwen3_weights(rng: np.random.Generator, vocab_size: int) -> Weights:
    weights = _llama_like(rng, vocab_size, kv_heads=NUM_KV_HEADS, norm=1.0, tied=True)
    for index in range(NUM_LAYERS):
        for name in ("q_norm", "k_norm"):
            weights[f"model.layers.{index}.self_attn.{name}.weight"] = _norm(rng, 1.0, HEAD_DIM)
    return weights


def _gpt2_config() -> Config:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "n_ctx": CONTEXT,
        "n_embd": HIDDEN,
        "n_head": NUM_HEADS,
        "n_layer": NUM_LAYERS,
        "n_positions": CONTEXT,
        "resid_pdrop": 0.1,
        "tie_word_embeddings": True,
    }


def _gpt2_weights(rng: np.random.Generator, vocab_size: int) -> Weights:
    """As ``GPT2LMHeadModel`` was saved for years: prefix, causal-mask buffers, a copy of the tied head; (in, out)."""
    weights: Weights = {
        "transformer.wte.weight": _matrix(rng, vocab_size, HIDDEN),
        "transformer.wpe.weight": _matrix(rng, CONTEXT, HIDDEN),
    }
    shapes = {
        "attn.c_attn": (HIDDEN, 3 * HIDDEN),
        "attn.c_proj": (HIDDEN, HIDDEN),
        "mlp.c_fc": (HIDDEN, 4 * HIDDEN),
        "mlp.c_proj": (4 * HIDDEN, HIDDEN),
    }
    for index in range(NUM_LAYERS):
        layer = f"transformer.h.{index}"
        for name, shape in shapes.items():
            weights[f"{layer}.{name}.weight"] = _matrix(rng, *shape)
            weights[f"{layer}.{name}.bias"] = _norm(rng, 0.0, shape[1])
        weights |= _layer_norms(rng, (f"{layer}.ln_1", f"{layer}.ln_2"))
        weights[f"{layer}.attn.bias"] = np.tril(np.ones((1, 1, CONTEXT, CONTEXT), np.uint8))
        weights[f"{layer}.attn.masked_bias"] = np.array(-1e4, np.float32)
    weights |= _layer_norms(rng, ("transformer.ln_f",))
    weights["lm_head.weight"] = weights["transformer.wte.weight"].copy()
    return weights


def _gpt_neox_config() -> Config:
    """As transformers 5 writes it: rope_parameters, neither rotary_emb_base nor rotary_pct."""
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "hidden_act": "gelu",
        "hidden_size": HIDDEN,
        "intermediate_size": 4 * HIDDEN,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": CONTEXT,
        "num_attention_heads": NUM_HEADS,
        "num_hidden_layers": NUM_LAYERS,
        "rope_parameters": {"partial_rotary_factor": 0.25, "rope_theta": 10000.0, "rope_type": "default"},
        "tie_word_embeddings": False,
        "use_parallel_residual": True,
    }


def _gpt_neox_weights(rng: np.random.Generator, vocab_size: int) -> Weights:
    weights: Weights = {"gpt_neox.embed_in.weight": _matrix(rng, vocab_size, HIDDEN)}
    shapes = {
        "attention.query_key_value": (3 * HIDDEN, HIDDEN),
        "attention.dense": (HIDDEN, HIDDEN),
        "mlp.dense_h_to_4h": (4 * HIDDEN, HIDDEN),
        "mlp.dense_4h_to_h": (HIDDEN, 4 * HIDDEN),
    }
    for index in range(NUM_LAYERS):
        layer = f"gpt_neox.layers.{index}"
        for name, shape in shapes.items():
            weights[f"{layer}.{name}.weight"] = _matrix(rng, *shape)
            weights[f"{layer}.{name}.bias"] = _norm(rng, 0.0, shape[0])
        weights |= _layer_norms(rng, (f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm"))
    weights |= _layer_norms(rng, ("gpt_neox.final_layer_norm",))
    weights["embed_out.weight"] = _matrix(rng, vocab_size, HIDDEN)
    return weights


def _layer_norms(rng: np.random.Generator, names: tuple[str, ...]) -> Weights:
    return {f"{n}.{kind}": _norm(rng, mean) for n in names for kind, mean in (("weight", 1.0), ("bias", 0.0))}


_ARCHITECTURES: Mapping[str, tuple[Callable[[], Config], Callable[[np.random.Generator, int], Weights]]] = {
    "llama": (_llama_config, _llama_weights),
    "gemma": (_gemma_config, _gemma_weights),
    "qwen3": (_qwen3_config, _qwen3_weights),
    "gpt2": (_gpt2_config, _gpt2_weights),
    "gpt_neox": (_gpt_neox_config, _gpt_neox_weights),
}
MODEL_TYPES = tuple(_ARCHITECTURES)
