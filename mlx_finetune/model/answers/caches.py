"""Keys and values of several answers side by side: put together, taken apart, and no larger than what they hold."""

import copy
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_finetune.model.upstream import BatchKVCache, KVCache, make_prompt_cache

#: Positions by which a cache of several rows grows. mlx-lm's 256 are in memory for every row, and copied at each one
#: that comes or goes, whatever they hold; the plan of a run's memory counts these (``hardware.planning.answering``).
ROOM = 32


def merged(caches: Sequence[Sequence[Any]]) -> list[Any]:
    """Layer by layer, one cache for the rows of all ``caches``, each of a single row."""
    layers = [rows[0].merge(list(rows)) for rows in zip(*caches, strict=True)]
    for layer in layers:
        if type(layer) is BatchKVCache:
            layer.step = ROOM
    return layers


def plain_caches(model: nn.Module) -> list[Any] | None:
    """Empty caches of a ``model``; None where a layer keeps anything but all keys and values, which can be copied."""
    caches: list[Any] = make_prompt_cache(model)
    return caches if all(type(cache) is KVCache for cache in caches) else None


def picked(caches: Sequence[Any], indices: Sequence[int]) -> list[Any]:
    """Copies of plain ``caches`` with their rows ``indices``, which may repeat, for rows that go on behind them."""
    rows = mx.array(list(indices))
    copies: list[Any] = []
    for cache in caches:
        one: Any = KVCache()
        one.keys, one.values = (part[..., : cache.offset, :][rows] for part in (cache.keys, cache.values))
        one.offset = cache.offset
        copies.append(one)
    return copies


def taken(layers: Sequence[Any], indices: Sequence[int]) -> list[Any]:
    """Copies with the rows ``indices`` alone, which may repeat; caches of keys and values of several rows."""
    found = [copy.copy(layer) for layer in layers]
    keep(found, indices)
    return found


def keep(layers: Sequence[Any], indices: Sequence[int]) -> None:
    """Let go of all rows but ``indices``."""
    for layer in layers:
        _let_go_of_room(layer)
        layer.filter(list(indices))


def extend(layers: Sequence[Any], others: Sequence[Any]) -> None:
    """Put the rows of ``others`` behind those of ``layers``."""
    for ours, theirs in zip(layers, others, strict=True):
        _let_go_of_room(ours)
        _let_go_of_room(theirs)
        ours.extend(theirs)


def _let_go_of_room(layer: Any) -> None:
    if type(layer) is BatchKVCache and layer.keys is not None:
        layer.keys, layer.values = layer.keys_and_values()
