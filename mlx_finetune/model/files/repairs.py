"""What mlx-lm 0.32.2 gets wrong about some checkpoints, put right on the way in.

Each repair has a test in ``tests/model/files/test_repairs.py`` that fails when upstream no longer needs it.

| Checkpoint | Upstream | Here |
|---|---|---|
| GPT-2 saved by ``GPT2LMHeadModel`` | parameters not in model | prefix stripped, tied head and mask buffers dropped |
| GPT-2 config without ``n_ctx`` (transformers 5) | ``TypeError`` | ``n_positions`` |
| GPT-NeoX config of transformers 5 | ``TypeError`` | ``rotary_emb_base``, ``rotary_pct`` from ``rope_parameters`` |
| any config of transformers 5 | ``rope_theta`` silently 10000, scaling ignored | filled from ``rope_parameters`` |
| ``hidden_act`` "gelu" in GPT-NeoX, GPT-2 | tanh approximation | exact gelu |
| Gemma 1 (its "gelu" means the tanh one) | exact gelu: tiny logits 5e-4 off | tanh approximation |
| Gemma 2, a mask for each row | ``ValueError``; with as many rows as key heads wrong ones | the missing axis |
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from mlx_finetune.errors import ModelError
from mlx_finetune.model.upstream import gemma, gemma2, gpt2, gpt_neox

_TANH_GELU = frozenset({"gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_pytorch", "gelu_accurate"})
_BUFFERS = (".attn.bias", ".attn.masked_bias")


@dataclass(frozen=True, slots=True)
class RepairedConfig:
    """A config mlx-lm understands, and one sentence for each thing that was changed in meaning."""

    config: dict[str, object]
    changes: tuple[str, ...]


def repair_config(config: Mapping[str, object], argument_names: frozenset[str]) -> RepairedConfig:
    """Fill what the architecture (its ``ModelArgs`` has ``argument_names``) needs and the file says elsewhere."""
    repaired = dict(config)
    rope = config.get("rope_parameters")
    changes: list[str] = []
    if isinstance(rope, dict) and "rope_parameters" not in argument_names:
        changes += _fill_from_rope_parameters(repaired, cast("dict[str, object]", rope), argument_names)
    if config.get("model_type") == "gpt_neox":
        repaired.setdefault("rotary_emb_base", 10000)
        repaired.setdefault("rotary_pct", 0.25)
    if config.get("model_type") == "gpt2":
        repaired.setdefault("n_ctx", config.get("n_positions"))
        for name in ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "add_cross_attention"):
            if config.get(name):
                raise ModelError(f"this GPT-2 has `{name}` = true, which is not supported")
    return RepairedConfig(repaired, tuple(changes))


def _fill_from_rope_parameters(
    config: dict[str, object], rope: Mapping[str, object], argument_names: frozenset[str]
) -> list[str]:
    pairs = {"rope_theta": "rope_theta", "rotary_emb_base": "rope_theta"}
    pairs |= {"partial_rotary_factor": "partial_rotary_factor", "rotary_pct": "partial_rotary_factor"}
    filled = [
        ours for ours, theirs in pairs.items() if ours in argument_names and ours not in config and theirs in rope
    ]
    for ours in filled:
        config[ours] = rope[pairs[ours]]
    kind = rope.get("rope_type", "default")
    if kind != "default" and not config.get("rope_scaling"):
        if "rope_scaling" not in argument_names:
            raise ModelError(f"rotary scaling {kind!r} is not supported for {config.get('model_type')!r} models")
        config["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
        filled.append("rope_scaling")
    return [f"{', '.join(filled)} taken from rope_parameters"] if filled else []


def repair_weights(config: Mapping[str, object], weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Weights under the names the architecture's ``sanitize`` expects."""
    if config.get("model_type") != "gpt2":
        return dict(weights)
    renamed = {name.removeprefix("transformer."): array for name, array in weights.items()}
    head = renamed.pop("lm_head.weight", None)
    embedding = renamed.get("wte.weight")
    if head is not None and embedding is not None and not mx.array_equal(head, embedding).item():
        raise ModelError(
            "this GPT-2 has a head of its own (lm_head.weight differs from wte.weight), which is not supported"
        )
    return {name: array for name, array in renamed.items() if not name.endswith(_BUFFERS)}


def repair_activation(model: nn.Module, config: Mapping[str, object]) -> str:
    """Put the gelu in that the config asks for; returns which one is used, "" for other architectures.

    Difference of the two: up to 5e-4 in one activation, 3.5e-6 to 5e-4 in the logits of tiny models.
    """
    kind = config.get("model_type")
    if kind == "gemma":
        args = cast("Any", model).args
        for block in cast("list[nn.Module]", model.layers):
            block.mlp = TanhGemmaMLP(args.hidden_size, args.intermediate_size)
        return "tanh gelu"
    if kind not in ("gpt_neox", "gpt2"):
        return ""
    name = str(
        config.get("hidden_act", "gelu") if kind == "gpt_neox" else config.get("activation_function", "gelu_new")
    )
    if name in _TANH_GELU:
        return "tanh gelu"
    if name != "gelu":
        raise ModelError(f"the activation {name!r} is not supported for {kind!r} models")
    for block in cast("list[nn.Module]", model.layers):
        mlp = ExactNeoxMLP if kind == "gpt_neox" else ExactGpt2MLP
        block.mlp = mlp(cast("Any", model).args)
    return "exact gelu"


def repair_attention(model: nn.Module, config: Mapping[str, object]) -> None:
    """Put in Gemma 2's attention that takes a mask for each row."""
    if config.get("model_type") == "gemma2":
        args = cast("Any", model).args
        for block in cast("list[nn.Module]", model.layers):
            block.self_attn = MaskedGemma2Attention(args)


class MaskedGemma2Attention(gemma2.Attention):
    """Gemma 2's attention; its scores are (B, key heads, queries each, T, T), and a mask is (B, 1, T, T)."""

    def __call__(self, x: mx.array, mask: mx.array | None = None, cache: Any = None) -> mx.array:
        if mask is not None and mask.ndim == 4 and self.repeats > 1:
            mask = mask[:, :, None]  # (B, 1, 1, T, T)
        return super().__call__(x, mask, cache)


class TanhGemmaMLP(gemma.MLP):
    """Gemma's MLP with the tanh approximation, which transformers uses even where a config of Gemma 1 says "gelu"."""

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(nn.gelu_approx(self.gate_proj(x)) * self.up_proj(x))


class ExactNeoxMLP(gpt_neox.MLP):
    """GPT-NeoX's MLP with ``gelu(x) = x Phi(x)`` (1606.08415)."""

    def __call__(self, x: mx.array) -> mx.array:
        return self.dense_4h_to_h(nn.gelu(self.dense_h_to_4h(x)))


class ExactGpt2MLP(gpt2.MLP):
    """GPT-2's MLP with ``gelu(x) = x Phi(x)`` (1606.08415)."""

    def __call__(self, x: mx.array) -> mx.array:
        return self.c_proj(nn.gelu(self.c_fc(x)))
