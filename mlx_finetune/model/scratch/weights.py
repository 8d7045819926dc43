"""The folder of a new model: config.json and random weights, a pure function of shape and seed. No mlx.

Every matrix is drawn from N(0, 0.02) by a generator of its own, made of the seed and the matrix's name; those that
write into the residual stream are smaller by ``1 / sqrt(2 num_layers)`` (Radford et al. 2019). Norms begin at 1, there
are no biases, sink logits begin at 0.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from mlx_finetune.recipe.scratch import OWN_TYPE, ScratchRecipe

SPREAD = 0.02
#: The code of models with sinks or experts, a copy of ``architecture.py`` of this folder.
OWN_FILE = "mlxft_scratch.py"

Floats = NDArray[np.float32]


def model_config(scratch: ScratchRecipe, vocab_size: int, ends: list[int]) -> dict[str, object]:
    """config.json: that of a llama, with more keys where there are sinks or experts. ``ends`` are end-of-text ids."""
    config: dict[str, object] = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocab_size,
        "hidden_size": scratch.hidden_size,
        "intermediate_size": scratch.inner_size,
        "num_hidden_layers": scratch.num_layers,
        "num_attention_heads": scratch.heads,
        "num_key_value_heads": scratch.kv_heads,
        "head_dim": scratch.hidden_size // scratch.heads,
        "hidden_act": "silu",
        "max_position_embeddings": scratch.context_length,
        "rms_norm_eps": 1e-5,
        "rope_theta": scratch.rope_theta,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": scratch.tie_embeddings,
        "initializer_range": SPREAD,
        "eos_token_id": ends,
        "dtype": "float32",
    }
    if scratch.attention_sinks or scratch.num_experts:
        config |= {"model_type": OWN_TYPE, "model_file": OWN_FILE, "attention_sinks": scratch.attention_sinks}
        del config["architectures"]  # nothing that transformers has
    if scratch.num_experts:
        config |= {"num_local_experts": scratch.num_experts, "num_experts_per_tok": scratch.experts_per_token}
    return config


def random_weights(scratch: ScratchRecipe, vocab_size: int, seed: int) -> Iterator[tuple[str, Floats]]:
    """Every tensor by its name, fp32."""
    hidden, inner = scratch.hidden_size, scratch.inner_size
    width = hidden // scratch.heads
    keys = width * scratch.kv_heads
    experts = (scratch.num_experts,) if scratch.num_experts else ()
    mlp = "mlp.switch_mlp" if experts else "mlp"
    small = SPREAD / math.sqrt(2 * scratch.num_layers)

    def draw(name: str, *shape: int, spread: float = SPREAD) -> tuple[str, Floats]:
        generator = np.random.default_rng([seed, *name.encode()])
        return name, np.float32(spread) * generator.standard_normal(shape, np.float32)

    def ones(name: str) -> tuple[str, Floats]:
        return name, np.ones(hidden, np.float32)

    yield draw("model.embed_tokens.weight", vocab_size, hidden)
    for number in range(scratch.num_layers):
        block = f"model.layers.{number}"
        yield draw(f"{block}.self_attn.q_proj.weight", hidden, hidden)
        yield draw(f"{block}.self_attn.k_proj.weight", keys, hidden)
        yield draw(f"{block}.self_attn.v_proj.weight", keys, hidden)
        yield draw(f"{block}.self_attn.o_proj.weight", hidden, hidden, spread=small)
        if scratch.attention_sinks:
            yield f"{block}.self_attn.sinks", np.zeros(scratch.heads, np.float32)
        if experts:
            yield draw(f"{block}.mlp.gate.weight", *experts, hidden)
        yield draw(f"{block}.{mlp}.gate_proj.weight", *experts, inner, hidden)
        yield draw(f"{block}.{mlp}.up_proj.weight", *experts, inner, hidden)
        yield draw(f"{block}.{mlp}.down_proj.weight", *experts, hidden, inner, spread=small)
        yield ones(f"{block}.input_layernorm.weight")
        yield ones(f"{block}.post_attention_layernorm.weight")
    yield ones("model.norm.weight")
    if not scratch.tie_embeddings:
        yield draw("lm_head.weight", vocab_size, hidden)


def num_parameters(scratch: ScratchRecipe, vocab_size: int) -> int:
    """All numbers of the model; nothing is drawn."""
    hidden, inner, experts = scratch.hidden_size, scratch.inner_size, max(1, scratch.num_experts)
    keys = hidden // scratch.heads * scratch.kv_heads
    block = 2 * hidden * hidden + 2 * hidden * keys + 3 * experts * hidden * inner + 2 * hidden
    block += scratch.heads * scratch.attention_sinks + (scratch.num_experts * hidden)
    return vocab_size * hidden * (1 if scratch.tie_embeddings else 2) + scratch.num_layers * block + hidden


def write_weights(folder: Path, scratch: ScratchRecipe, vocab_size: int, seed: int, ends: list[int]) -> None:
    """config.json and model.safetensors into the existing ``folder``. Raises ``OSError`` without room."""
    save_file(dict(random_weights(scratch, vocab_size, seed)), folder / "model.safetensors", {"format": "mlx"})
    config = model_config(scratch, vocab_size, ends)
    (folder / "config.json").write_text(json.dumps(config, indent=1), "utf-8")
    if "model_file" in config:
        code = Path(__file__).with_name("architecture.py").read_text("utf-8")
        (folder / OWN_FILE).write_text(code, "utf-8")
