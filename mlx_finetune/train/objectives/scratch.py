"""Pretraining of a model from random weights: the next token, with the options of [scratch].

z-loss keeps the logits' normalisers near 1 and is a part of what is learned alone; with experts the balance loss
(``model.scratch.balance``) is added to what is learned and reported as a metric. An evaluation measures neither, so its
loss is that of the text.
"""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn

from mlx_finetune.model.scratch.balance import Balance, balanced, routers_of
from mlx_finetune.recipe.scratch import ScratchRecipe
from mlx_finetune.train.losses import Head
from mlx_finetune.train.objective import Objective
from mlx_finetune.train.objectives.next_token import next_token, next_token_loss


def pretrain(scratch: ScratchRecipe | None) -> Objective:
    """``next_token("pretrain")``; with z-loss and balance loss where ``scratch`` asks for them."""
    plain = next_token("pretrain")
    if scratch is None or not (scratch.num_experts or scratch.z_loss):
        return plain
    if not scratch.num_experts:

        def loss(head: Head, hidden: mx.array, positions: mx.array, targets: mx.array) -> mx.array:
            return next_token_loss(head, hidden, positions, targets, z_loss=scratch.z_loss)

        return replace(plain, loss=loss)
    return _with_experts(plain, scratch)


class _Measured(threading.local):
    """The balance of the forward pass of one thread."""

    def __init__(self) -> None:
        self.balance: Balance | None = None


def _with_experts(plain: Objective, scratch: ScratchRecipe) -> Objective:
    measured = _Measured()

    @contextmanager
    def around(model: nn.Module, segment_ids: mx.array, positions: mx.array, targets: mx.array) -> Generator[None]:
        is_target = mx.zeros(segment_ids.size).at[positions].add((targets >= 0).astype(mx.float32))
        measured.balance = Balance(routers_of(model), scratch.balance_loss, is_target.reshape(segment_ids.shape))
        with balanced(measured.balance):
            yield
        measured.balance = None

    def loss(head: Head, hidden: mx.array, positions: mx.array, targets: mx.array) -> mx.array:
        assert measured.balance is not None, "a loss outside of its surroundings"
        balance = measured.balance.value()
        learned = next_token_loss(head, hidden, positions, targets, z_loss=scratch.z_loss)
        return mx.stack([learned + balance if head.is_learning else learned, balance])

    return replace(plain, loss=loss, metrics=("balance_loss",), around=around, is_per_position=False)
