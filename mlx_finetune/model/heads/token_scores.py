"""Scores of rows of tokens by a model with a score head: at the last token, or at every one.

Rows of similar length go through the model together, filled up on the right; a causal model never sees what is added,
and none of it is read. Scores are fp32, before any softmax or sigmoid.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from mlx_finetune.errors import ModelError
from mlx_finetune.model.cpu.cpu_math import numpy_math
from mlx_finetune.model.heads.score import ScoreHead, find_head
from mlx_finetune.model.inside.split import SplitModel
from mlx_finetune.model.likelihoods import Ids, batches_by_length

Scores = NDArray[np.float32]


class ScoringModel:
    """A model as it is now, with its adapter and its score head, ready to score tokens."""

    def __init__(self, model: nn.Module) -> None:
        """Raises ``ModelError`` for a model without a score head."""
        self._split = SplitModel(model)
        self._head = _need_head(model)
        self._on_cpu = mx.default_device().type == mx.DeviceType.cpu

    def last(self, rows: Sequence[Ids], step: Callable[[int], None] | None = None) -> Scores:
        """Scores of the state of each row's last token, (N, n), in the order of ``rows``, none of which is empty.

        ``step`` is told how many rows are done.
        """
        found = np.empty((len(rows), self._head.spec.num_outputs), np.float32)
        for places, hidden in self._hidden(rows, step):
            ends = mx.array([len(rows[place]) - 1 for place in places])
            found[places] = np.asarray(self._head(hidden[mx.arange(len(places)), ends]))  # (B, n)
        return found

    def every(self, rows: Sequence[Ids], step: Callable[[int], None] | None = None) -> list[Scores]:
        """Scores of the states of all tokens of each row, (T, n) each, in the order of ``rows``."""
        found: dict[int, Scores] = {}
        for places, hidden in self._hidden(rows, step):
            scores = np.asarray(self._head(hidden))  # (B, T, n)
            found |= {place: scores[at, : len(rows[place])].copy() for at, place in enumerate(places)}
        return [found[place] for place in range(len(rows))]

    def _hidden(self, rows: Sequence[Ids], step: Callable[[int], None] | None) -> Iterator[tuple[list[int], mx.array]]:
        """Places of rows that went together, and their hidden states (B, T, H)."""
        assert all(len(row) for row in rows), "a row without a token has no state"
        done = 0
        for places in batches_by_length([len(row) for row in rows]):
            tokens = np.zeros((len(places), max(len(rows[place]) for place in places)), np.int32)
            for at, place in enumerate(places):
                tokens[at, : len(rows[place])] = rows[place]
            with numpy_math(self._split.model) if self._on_cpu else nullcontext():
                hidden = self._split.hidden(mx.array(tokens), None)
                mx.eval(hidden)
            yield places, hidden
            done += len(places)
            if step is not None:
                step(done)


def _need_head(model: nn.Module) -> ScoreHead:
    head = find_head(model)
    if head is None:
        raise ModelError("this model has no score head", "train one: task = classify, reward or verifier")
    return head
