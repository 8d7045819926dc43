"""What a trainer asks of an optimizer. ``AdamW`` of ``train.optim`` was the first to offer it."""

from collections.abc import Mapping
from typing import Protocol

import mlx.core as mx

from mlx_finetune.train.optim import FlatArrays


class Optimizer(Protocol):
    """Names are those of the parameters; state is a flat dictionary of arrays, so that a checkpoint is one file."""

    def init(self, parameters: Mapping[str, mx.array]) -> FlatArrays:
        """The state before the first step."""
        ...

    def hyperparameters(self, learning_rate: float, step: int) -> mx.array:
        """What changes from step to step, as one array, so that a compiled update sees new values."""
        ...

    def update(
        self, parameters: FlatArrays, gradients: FlatArrays, state: FlatArrays, values: mx.array
    ) -> tuple[FlatArrays, FlatArrays]:
        """New parameters and new state; ``values`` comes from ``hyperparameters``. Pure, so it can be compiled."""
        ...
