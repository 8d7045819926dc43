"""Two continuations of one beginning in one sequence: prefix, first, second; the prefix is computed once.

The second must not see the first, and its positions go on from the prefix. A mask given by what stands in the place of
KV caches does the former. mlx-lm's rotary embeddings take one offset a sequence, so each is called with every position
as a sequence of its own: the same bits, 14 % more time for the rotation alone (4 x 9 x 600 x 64, one thread of an
EPYC). Hidden states are those of two sequences up to rounding. Where a model adds learned positions, carries state
along or rotates with code of its own, that is found on a few tokens and said.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from mlx_finetune.model.inside.override import overridden
from mlx_finetune.model.inside.parts import blocks
from mlx_finetune.model.inside.segments import learned_positions
from mlx_finetune.model.inside.split import SplitModel
from mlx_finetune.model.upstream import ROTARY, KVCache, RotatingKVCache, make_prompt_cache

#: Part of a position: of the prefix, of the first continuation, of the second.
PREFIX, FIRST, SECOND = 0, 1, 2

_PROBE = (4, 3, 5)  # tokens of the three parts on which a model is tried


class PartMask:
    """Stands where a layer expects its KV cache: keeps nothing, and masks by ``parts`` and ``positions``, each (B, T).

    One object serves all layers of a forward pass that have the same window.
    """

    offset = 0

    def __init__(self, parts: mx.array, positions: mx.array, window_size: int | None = None) -> None:
        self._parts = parts
        self._positions = positions
        self._window_size = window_size
        self._masks: dict[int | None, mx.array] = {}

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """The keys and values of this forward pass, which are all there are."""
        return keys, values

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> mx.array:
        """(B, 1, T, T) booleans: a query sees keys of the prefix and of its own part that are not after it."""
        assert self._parts.shape[1] == N, f"parts of {self._parts.shape[1]} tokens, inputs {N}"
        window = window_size or self._window_size
        if window not in self._masks:
            keys, queries = self._parts[:, None, :], self._parts[:, :, None]
            distance = self._positions[:, :, None] - self._positions[:, None, :]  # (B, T, T): of query and key
            seen = ((keys == PREFIX) | (keys == queries)) & (distance >= 0)
            if window is not None:
                seen = seen & (distance < window)
            self._masks[window] = seen[:, None]
        return self._masks[window]


@contextmanager
def parts_apart(model: nn.Module, parts: mx.array, positions: mx.array) -> Generator[list[PartMask]]:
    """Inside, what to pass as ``cache`` for sequences whose tokens have these ``parts`` and ``positions``, each (B, T).

    The model must have passed ``why_not_shared``.
    """
    flat = positions.reshape(-1)

    def rotate(module: nn.Module, call: Any, x: mx.array, *args: object, **kwargs: object) -> mx.array:
        B, heads, T, D = x.shape
        single = mx.swapaxes(x, 1, 2).reshape(B * T, heads, 1, D)
        return mx.swapaxes(call(module, single, offset=flat).reshape(B, T, heads, D), 1, 2)

    made: dict[int | None, PartMask] = {}
    windows = [getattr(cache, "max_size", None) for cache in cast("list[object]", make_prompt_cache(model))]
    caches = [made.setdefault(window, PartMask(parts, positions, window)) for window in windows]
    with overridden((module, rotate) for module in _rotations(model)):
        yield caches


def why_not_shared(split: SplitModel) -> str:
    """Why two continuations of ``split.model`` cannot share their prefix, "" where they can; tried on a few tokens."""
    model = split.model
    learned = learned_positions(model)
    if learned is not None:
        return f"the model has learned positions ({learned.path})"
    caches = cast("list[object]", make_prompt_cache(model))
    others = sorted({type(cache).__name__ for cache in caches if type(cache) not in (KVCache, RotatingKVCache)})
    if others:
        return f"its layers carry state from token to token ({', '.join(others)})"
    if not split.is_split or len(caches) != len(blocks(model)):
        return "its layers share caches, or it cannot be taken apart"
    if not _rotations(model) or not _is_alike(split):
        return "its hidden states would not be those of two sequences"
    return ""


def _rotations(model: nn.Module) -> list[nn.Module]:
    """Every rotary embedding once, also one that several layers share."""
    return list({id(module): module for module in model.modules() if isinstance(module, ROTARY)}.values())


def _is_alike(split: SplitModel) -> bool:
    """Compare with two sequences on a few tokens; a model that does not take it that way is not alike."""
    prefix, first, second = _PROBE
    tokens = mx.arange(sum(_PROBE))[None] % split.vocab_size
    parts = mx.array([[PREFIX] * prefix + [FIRST] * first + [SECOND] * second])
    positions = mx.array([[*range(prefix + first), *range(prefix, prefix + second)]])
    apart = mx.concatenate([tokens[:, :prefix], tokens[:, prefix + first :]], axis=1)
    try:
        with parts_apart(split.model, parts, positions) as caches:
            shared = split.hidden(tokens, caches)
            mx.eval(shared)
    except (AttributeError, IndexError, TypeError, ValueError):
        return False
    expected = mx.concatenate(_two(split, tokens[:, : prefix + first], apart, prefix), axis=1)
    difference = mx.abs(shared - expected).max()
    tolerance = 1e-4 if shared.dtype == mx.float32 else 3e-2
    return bool(difference <= tolerance * mx.abs(expected).max())


def _two(split: SplitModel, one: mx.array, other: mx.array, prefix: int) -> list[mx.array]:
    """The hidden states of two sequences, the second without its first ``prefix``."""
    return [split.hidden(one, None), split.hidden(other, None)[:, prefix:]]
