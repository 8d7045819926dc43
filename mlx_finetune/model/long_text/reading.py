"""Texts read from their first token to their last with keys and values kept in four ways, and the loss of each token.

All four see the same up to the window; behind it they differ in what is kept. Texts are rows of one length, read
together: the first window at once, then in chunks.
"""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from mlx_finetune.model.cpu.cpu_math import numpy_math
from mlx_finetune.model.inside.split import SplitModel
from mlx_finetune.model.likelihoods import ChunkRows, Losses, head_losses
from mlx_finetune.model.long_text.rotations import rotations
from mlx_finetune.model.long_text.sink_cache import NUM_SINKS, SinkCache
from mlx_finetune.model.upstream import make_prompt_cache

#: What is kept of a text that is longer than the window.
FULL, WINDOW, SINKS, TURNED = "full", "window", "sinks", "turned"
METHODS = (FULL, WINDOW, SINKS, TURNED)

_CHUNK = 64  # tokens at once: beside their window's keys they have 4 copies of sinks each


def make_caches(model: nn.Module, method: str, window: int) -> list[Any]:
    """One cache a layer. Raises ``ModelError`` for a model without rotary embeddings."""
    turns = rotations(model)
    if method == FULL:
        return make_prompt_cache(model)
    keep = 0 if method == WINDOW else NUM_SINKS
    return [SinkCache(window, keep, turn if method == TURNED else None) for turn in turns]


def chunks(num_tokens: int, window: int) -> list[tuple[int, int]]:
    """``[start, end)`` of what is read at once: a window, then chunks."""
    size = max(1, min(_CHUNK, window // 4))
    starts = [0, *range(window, num_tokens, size)]
    return list(zip(starts, [*starts[1:], num_tokens], strict=True)) if num_tokens > window else [(0, num_tokens)]


class LongReader:
    """A model as it is now, ready to read long texts."""

    def __init__(self, model: nn.Module, chunk_rows: ChunkRows) -> None:
        self._model = model
        self._split = SplitModel(model)
        self._chunk_rows = chunk_rows
        self._on_cpu = mx.default_device().type == mx.DeviceType.cpu

    def losses(
        self, ids: NDArray[np.int32], method: str, window: int, step: Callable[[int], None] | None = None
    ) -> NDArray[np.float32]:
        """``-log p(ids[:, i] | what is kept of ids[:, :i])`` in nats for (B, T): (B, T - 1).

        ``step`` is told how many tokens of each row are read. Raises ``ModelError`` as ``make_caches`` does.
        """
        caches = make_caches(self._model, method, window)
        num_rows, length = ids.shape
        found: list[Losses] = []
        for start, end in chunks(length - 1, window):
            found.append(self._chunk(ids, caches, start, end).reshape(num_rows, end - start))
            if step is not None:
                step(end)
        return np.concatenate(found, axis=1)

    def _chunk(self, ids: NDArray[np.int32], caches: Sequence[Any], start: int, end: int) -> Losses:
        tokens, targets = ids[:, start:end], ids[:, start + 1 : end + 1].reshape(-1)
        if self._on_cpu:
            with numpy_math(self._model):
                hidden = self._split.hidden(mx.array(tokens), caches)
        else:
            hidden = self._split.hidden(mx.array(tokens), caches)
        mx.eval(hidden, [cache.state for cache in caches])
        return head_losses(self._split, hidden.reshape(-1, hidden.shape[-1]), targets, self._chunk_rows)
