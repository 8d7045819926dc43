"""A llama whose heads may have a learned sink logit and whose MLPs may be experts: what mlx-lm has no architecture for.

This file is copied into the folder of such a model, and imports nothing of mlxft: other programs read the folder with
``mlx_lm.load(folder, trust_remote_code=True)``. mlxft itself never runs the copy; it takes this module.

A sink takes attention that no token should get: ``softmax_j(l) = exp(l_j) / (exp(s_h) + sum_k exp(l_k))`` for head h
(2309.17453). Experts: ``y = sum_{e in top-k} p_e / sum(p) MLP_e(x)`` with ``p = softmax(W x)`` (2401.04088).
"""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.activations import swiglu
from mlx_lm.models.base import BaseModelArgs, create_attention_mask, scaled_dot_product_attention
from mlx_lm.models.switch_layers import SwitchGLU


@dataclass
class ModelArgs(BaseModelArgs):
    """config.json; keys that are not here are not read."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = True
    attention_sinks: bool = False
    num_local_experts: int = 0
    num_experts_per_tok: int = 2


class Attention(nn.Module):
    """Causal attention with rotary positions and grouped queries."""

    def __init__(self, args: ModelArgs) -> None:
        """Linear layers without biases."""
        super().__init__()
        self.num_heads, self.num_kv_heads = args.num_attention_heads, args.num_key_value_heads
        self.scale = args.head_dim**-0.5
        self.q_proj = nn.Linear(args.hidden_size, self.num_heads * args.head_dim, bias=False)
        self.k_proj = nn.Linear(args.hidden_size, self.num_kv_heads * args.head_dim, bias=False)
        self.v_proj = nn.Linear(args.hidden_size, self.num_kv_heads * args.head_dim, bias=False)
        self.o_proj = nn.Linear(self.num_heads * args.head_dim, args.hidden_size, bias=False)
        self.rope = nn.RoPE(args.head_dim, base=args.rope_theta)
        if args.attention_sinks:
            self.sinks = mx.zeros((self.num_heads,))

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        """(B, T, H) to (B, T, H)."""
        B, T, _ = x.shape

        def heads(values: mx.array, count: int) -> mx.array:
            return values.reshape(B, T, count, -1).transpose(0, 2, 1, 3)  # (B, heads, T, D)

        queries, keys = heads(self.q_proj(x), self.num_heads), heads(self.k_proj(x), self.num_kv_heads)
        values = heads(self.v_proj(x), self.num_kv_heads)
        offset = 0 if cache is None else cache.offset
        queries, keys = self.rope(queries, offset=offset), self.rope(keys, offset=offset)
        if cache is not None:
            keys, values = cache.update_and_fetch(keys, values)
        sinks = self.sinks.astype(queries.dtype) if "sinks" in self else None
        seen = scaled_dot_product_attention(
            queries, keys, values, cache=cache, scale=self.scale, mask=mask, sinks=sinks
        )
        return self.o_proj(seen.transpose(0, 2, 1, 3).reshape(B, T, -1))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, args: ModelArgs) -> None:
        """Linear layers without biases."""
        super().__init__()
        self.gate_proj = nn.Linear(args.hidden_size, args.intermediate_size, bias=False)
        self.up_proj = nn.Linear(args.hidden_size, args.intermediate_size, bias=False)
        self.down_proj = nn.Linear(args.intermediate_size, args.hidden_size, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        """(B, T, H) to (B, T, H)."""
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class Experts(nn.Module):
    """Several SwiGLUs, of which each token goes through those that its router likes best."""

    def __init__(self, args: ModelArgs) -> None:
        """``gate`` is the router."""
        super().__init__()
        self.num_chosen = args.num_experts_per_tok
        self.gate = nn.Linear(args.hidden_size, args.num_local_experts, bias=False)
        self.switch_mlp = SwitchGLU(args.hidden_size, args.intermediate_size, args.num_local_experts)

    def __call__(self, x: mx.array) -> mx.array:
        """(B, T, H) to (B, T, H)."""
        shares = mx.softmax(self.gate(x), axis=-1, precise=True)  # (B, T, experts)
        chosen = mx.argpartition(mx.stop_gradient(-shares), kth=self.num_chosen - 1, axis=-1)[..., : self.num_chosen]
        weights = mx.take_along_axis(shares, chosen, axis=-1)  # (B, T, chosen)
        weights = weights / mx.sum(weights, axis=-1, keepdims=True)
        return mx.sum(self.switch_mlp(x, chosen) * weights[..., None].astype(x.dtype), axis=-2)


class Block(nn.Module):
    """Attention and MLP, each behind a norm and beside the residual stream."""

    def __init__(self, args: ModelArgs) -> None:
        """Experts where there are some."""
        super().__init__()
        self.self_attn = Attention(args)
        self.mlp = Experts(args) if args.num_local_experts else MLP(args)
        self.input_layernorm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        """(B, T, H) to (B, T, H)."""
        x = x + self.self_attn(self.input_layernorm(x), mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    """Embedding, blocks, last norm."""

    def __init__(self, args: ModelArgs) -> None:
        """Names are llama's."""
        super().__init__()
        self.embed_tokens = nn.Embedding(args.vocab_size, args.hidden_size)
        self.layers = [Block(args) for _ in range(args.num_hidden_layers)]
        self.norm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)

    def __call__(self, inputs: mx.array, cache: Any = None, input_embeddings: mx.array | None = None) -> mx.array:
        """Token ids (B, T) to hidden states (B, T, H)."""
        x = self.embed_tokens(inputs) if input_embeddings is None else input_embeddings
        caches = [None] * len(self.layers) if cache is None else cache
        mask = create_attention_mask(x, caches[0])
        for layer, one in zip(self.layers, caches, strict=False):
            x = layer(x, mask, cache=one)
        return self.norm(x)


class Model(nn.Module):
    """The language model."""

    def __init__(self, args: ModelArgs) -> None:
        """The embedding is the head too where they are tied."""
        super().__init__()
        self.args = args
        self.model_type = args.model_type
        self.model = Body(args)
        if not args.tie_word_embeddings:
            self.lm_head = nn.Linear(args.hidden_size, args.vocab_size, bias=False)

    def __call__(self, inputs: mx.array, cache: Any = None, input_embeddings: mx.array | None = None) -> mx.array:
        """Token ids (B, T) to logits (B, T, V)."""
        out = self.model(inputs, cache, input_embeddings)
        return self.model.embed_tokens.as_linear(out) if self.args.tie_word_embeddings else self.lm_head(out)

    @property
    def layers(self) -> list[Block]:
        """The blocks, where mlx-lm looks for them."""
        return self.model.layers
