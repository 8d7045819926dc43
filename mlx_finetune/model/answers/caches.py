"""Keys and values of several answers side by side: put together, taken apart, and no larger than what they hold."""

import copy
from collections.abc import Sequence
from typing import Any

from mlx_finetune.model.upstream import BatchKVCache

#: Positions by which a cache grows; mlx-lm's 256 are copied at each row that comes or goes, whatever they hold.
ROOM = 32


def merged(caches: Sequence[Sequence[Any]]) -> list[Any]:
    """Layer by layer, one cache for the rows of all ``caches``, each of a single row."""
    return [layers[0].merge(list(layers)) for layers in zip(*caches, strict=True)]


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
        layer.step = ROOM
        layer.keys, layer.values = layer.keys_and_values()
