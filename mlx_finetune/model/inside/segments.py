"""Attention inside documents only, for packed rows, on mlx-lm's models as they are.

Models ask the object in the place of their KV cache for a mask; ``SegmentMask`` answers with a causal mask that is
block-diagonal over documents. Positions run on through a pack, which rotary embeddings do not mind. Layers with
recurrent state would carry it from one document to the next, so models that have them are refused. The price against
plain causal attention is a mask of B T^2 booleans.
"""

from typing import NamedTuple, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_finetune.errors import ModelError
from mlx_finetune.model.adapters.lora import blocks_of
from mlx_finetune.model.upstream import KVCache, RotatingKVCache, make_prompt_cache

_HINT = "write packing = false under [data]"
_POSITION_EMBEDDINGS = frozenset({"wpe", "embed_positions", "position_embeddings", "pos_emb"})


class SegmentMask:
    """Stands where a layer expects its KV cache: keeps nothing, and masks by ``segment_ids`` (B, T).

    ``window_size`` is the layer's own sliding window, for models that leave it to their cache. One object serves all
    layers of one forward pass that have the same window, so each mask is computed once.
    """

    offset = 0

    def __init__(self, segment_ids: mx.array, window_size: int | None = None) -> None:
        self._segment_ids = segment_ids
        self._window_size = window_size
        self._masks: dict[int | None, mx.array] = {}

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """The keys and values of this forward pass, which are all there are."""
        return keys, values

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> mx.array:
        """(B, 1, T, T) booleans: query i sees key j of its own segment with ``i - window_size < j <= i``."""
        assert self._segment_ids.shape[1] == N, f"segment ids for {self._segment_ids.shape[1]} tokens, inputs {N}"
        window = window_size or self._window_size
        if window not in self._masks:
            same = self._segment_ids[:, :, None] == self._segment_ids[:, None, :]  # (B, T, T)
            distance = mx.arange(N)[:, None] - mx.arange(N)[None, :]  # (T, T): i - j
            seen = distance >= 0
            if window is not None:
                seen = seen & (distance < window)
            self._masks[window] = (same & seen)[:, None]
        return self._masks[window]


def segment_caches(model: nn.Module, segment_ids: mx.array | None) -> list[SegmentMask] | None:
    """What to pass as ``cache`` so that the rows' documents do not see each other; None where nothing is packed.

    ``segment_ids`` (B, T) are those of the inputs. Pass None when ``is_packed`` says no: plain causal attention is
    right then, and faster. The model must have passed ``check_packable``.
    """
    if segment_ids is None:
        return None
    made: dict[int | None, SegmentMask] = {}
    windows = [getattr(cache, "max_size", None) for cache in cast(list[object], make_prompt_cache(model))]
    return [made.setdefault(window, SegmentMask(segment_ids, window)) for window in windows]


def is_packed(segment_ids: np.ndarray) -> bool:
    """True where a row of (B, T) ids holds more than one document, or padding (0) anywhere but at its end."""
    inner = segment_ids[:, 1:]
    changes = (inner != segment_ids[:, :-1]) & (inner != 0)
    return bool(changes.any())


def check_packable(model: nn.Module) -> None:
    """Raise ``ModelError`` where documents in one row could not be kept apart, naming why."""
    name = str(getattr(model, "model_type", type(model).__name__))
    caches = cast(list[object], make_prompt_cache(model))
    others = sorted({type(cache).__name__ for cache in caches if type(cache) not in (KVCache, RotatingKVCache)})
    if others:
        raise ModelError(
            f"rows of a {name} model cannot be packed: its layers carry state from one document to the next "
            f"({', '.join(others)})",
            _HINT,
        )
    blocks = blocks_of(model)
    if len(caches) != len(blocks):
        raise ModelError(f"rows of a {name} model cannot be packed: its layers share caches", _HINT)
    learned = learned_positions(model)
    if learned is not None:
        raise ModelError(
            f"rows of a {name} model cannot be packed: it has learned positions ({learned.path}), and a document in "
            "the middle of a row would not start at position 0",
            _HINT,
        )


class LearnedPositions(NamedTuple):
    """A table of position embeddings: where it is, and for how many positions."""

    path: str
    num_positions: int


def learned_positions(model: nn.Module) -> LearnedPositions | None:
    """The table of learned positions that ``model`` adds to its embeddings, as GPT-2 does; None for rotary ones."""
    for path, module in cast(list[tuple[str, nn.Module]], model.named_modules()):
        if path.rpartition(".")[2] in _POSITION_EMBEDDINGS and isinstance(module, nn.Embedding | nn.QuantizedEmbedding):
            return LearnedPositions(path, module.weight.shape[0])
    return None
