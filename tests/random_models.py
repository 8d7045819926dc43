"""Random mlx-lm models of two blocks, width 64, built in memory: for tests that need no files and no tokenizer."""

from typing import Any

import mlx.core as mx
from mlx_lm.models import gemma, gpt2, gpt_neox, llama, mamba

VOCAB = 96
_WIDTH: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": VOCAB}
_LLAMA: dict[str, Any] = {
    **_WIDTH,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "rms_norm_eps": 1e-5,
    "num_key_value_heads": 2,
}
_NEOX: dict[str, Any] = {
    **_WIDTH,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "layer_norm_eps": 1e-5,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
}
_GPT2: dict[str, Any] = {
    "vocab_size": VOCAB,
    "n_ctx": 64,
    "n_embd": 64,
    "n_head": 4,
    "n_layer": 2,
    "n_positions": 64,
    "layer_norm_epsilon": 1e-5,
}
_MAMBA: dict[str, Any] = {
    **_WIDTH,
    "intermediate_size": 64,
    "state_size": 8,
    "conv_kernel": 4,
    "use_bias": False,
    "use_conv_bias": True,
    "time_step_rank": 4,
}
_SLIDING: dict[str, Any] = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 3}


def make_model(name: str, **changes: Any) -> Any:
    """llama, sliding llama, gemma, gpt2, gpt_neox or mamba; always the same weights, frozen, in eval mode."""
    mx.random.seed(3)
    if name == "llama":
        model: Any = llama.Model(llama.ModelArgs(model_type=name, **(_LLAMA | changes)))
    elif name == "sliding llama":
        model = llama.Model(llama.ModelArgs(model_type="llama", **(_LLAMA | _SLIDING | changes)))
    elif name == "gemma":
        model = gemma.Model(gemma.ModelArgs(model_type=name, head_dim=16, **(_LLAMA | changes)))
    elif name == "gpt_neox":
        model = gpt_neox.Model(gpt_neox.ModelArgs(model_type=name, **(_NEOX | changes)))
    elif name == "gpt2":
        model = gpt2.Model(gpt2.ModelArgs(model_type=name, **(_GPT2 | changes)))
    else:
        assert name == "mamba"
        model = mamba.Model(mamba.ModelArgs(model_type=name, **(_MAMBA | changes)))
    mx.eval(model.parameters())
    model.freeze()
    model.eval()
    return model
