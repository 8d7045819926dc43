"""The frozen blocks below the lowest one that learns: what leaves them, and standing in for them.

``states`` are the hidden states (B, T, H) that enter the lowest learning block. The blocks below are overridden so that
each returns them as they are given: nothing below is computed, and the model around it is called as always.
"""

from collections.abc import Sequence
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from mlx_finetune.model.inside.override import Override, overridden
from mlx_finetune.model.inside.parts import blocks
from mlx_finetune.model.inside.split import SplitModel


def states_above(split: SplitModel, num_blocks: int, tokens: mx.array) -> mx.array:
    """What leaves the first ``num_blocks`` blocks for ``tokens`` (B, T), evaluated block by block: (B, T, H)."""
    members, caught = blocks(split.model), list[mx.array]()

    def catch(block: nn.Module, call: Any, x: mx.array, *args: object, **kwargs: object) -> mx.array:
        caught.append(x)
        return x

    overrides = [(block, evaluated if index < num_blocks else catch) for index, block in enumerate(members)]
    with overridden(overrides):
        split.hidden(tokens, None)  # what is above the blocks is never evaluated
    return caught[0]


def evaluated(block: nn.Module, call: Any, x: mx.array, *args: object, **kwargs: object) -> mx.array:
    """An override that computes a block before the next one is called."""
    y = call(block, x, *args, **kwargs)
    mx.eval(y)
    return y


def standing_in(members: Sequence[nn.Module], states: mx.array | None) -> list[tuple[nn.Module, Override]]:
    """Overrides (``override.overridden``) by which the blocks ``members`` return ``states``; none for None."""

    def put(*_: object, **__: object) -> mx.array | None:
        return states

    return [] if states is None else [(block, put) for block in members]


def to_numpy(states: mx.array) -> NDArray[np.generic]:
    """A copy as a numpy array; bfloat16, which numpy lacks, as its bits."""
    return np.array(states.view(mx.uint16) if states.dtype == mx.bfloat16 else states)


def from_numpy(states: NDArray[np.generic] | None) -> mx.array | None:
    """The inverse of ``to_numpy``; None for None."""
    if states is None:
        return None
    array = mx.array(cast(Any, states))
    return array.view(mx.bfloat16) if array.dtype == mx.uint16 else array
