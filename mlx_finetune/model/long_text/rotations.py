"""Where a model rotates its keys, and how to rotate a stored key a little further; models without that are refused.

A rotary embedding turns a key by an angle in proportion to its position, so a key of position ``j`` becomes that of
``j + e`` by turning it by ``e`` more: nothing of what was rotated is needed. Scaled embeddings differ in their
frequencies alone, except one that takes them from the length of the text.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from mlx_finetune.errors import ModelError
from mlx_finetune.model.inside.parts import blocks
from mlx_finetune.model.inside.segments import learned_positions
from mlx_finetune.model.upstream import KVCache, make_prompt_cache

#: ``rotate(keys, first)``: keys (B, H, T, D); the key at place ``t`` is turned by ``first + t`` positions.
Rotate = Callable[[mx.array, int], mx.array]

#: mlx-lm's scaled embeddings (models/rope_utils.py, checked in 0.32.2; ``test_every_scaled_rotation_is_known``).
_SCALED = {"Llama3RoPE", "YarnRoPE", "SuScaledRoPE", "ProportionalRoPE"}
_HINT = "attention sinks are for models with rotary position embeddings and full attention, such as llama or qwen3"


def rotations(model: nn.Module) -> Sequence[Rotate]:
    """One for each block, in order. Raises ``ModelError`` naming what the model has instead."""
    name = str(getattr(model, "model_type", type(model).__name__))
    learned = learned_positions(model)
    if learned is not None:
        raise ModelError(f"a {name} model has learned positions ({learned.path}) and no rotary embeddings", _HINT)
    caches = cast("list[object]", make_prompt_cache(model))
    if len(caches) != len(blocks(model)) or any(type(cache) is not KVCache for cache in caches):
        raise ModelError(f"not every layer of a {name} model has full attention and keys and values of its own", _HINT)
    return [_rotation(block, f"block {place} of this {name} model") for place, block in enumerate(blocks(model))]


def _rotation(block: nn.Module, where: str) -> Rotate:
    found = [module for _, module in cast("list[tuple[str, nn.Module]]", block.named_modules()) if _is_rotary(module)]
    if len(found) != 1:
        what = "no rotary embedding" if not found else f"{len(found)} rotary embeddings"
        raise ModelError(f"{where} has {what}", _HINT)
    return _turning(found[0], where)


def _is_rotary(module: nn.Module) -> bool:
    return isinstance(module, nn.RoPE) or type(module).__name__.endswith("RoPE")


def _turning(module: Any, where: str) -> Rotate:
    """The rotation of ``module`` without the factor that some put on what they rotate: a stored key has it already."""
    kind = type(module).__name__
    if isinstance(module, nn.RoPE):
        dims, traditional = module.dims, module.traditional
        base, scale = module.base, module.scale
        return lambda keys, first: mx.fast.rope(
            keys, dims, traditional=traditional, base=base, scale=scale, offset=first
        )
    if kind not in _SCALED:
        raise ModelError(f"{where} has a {kind}, whose angles depend on the length of the text", _HINT)
    dims = module.dim if kind == "SuScaledRoPE" else module.dims
    is_traditional, freqs = bool(getattr(module, "traditional", False)), module._freqs
    return lambda keys, first: mx.fast.rope(
        keys, dims, traditional=is_traditional, base=None, scale=1.0, offset=first, freqs=freqs
    )
