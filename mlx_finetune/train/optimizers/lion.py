"""Lion: the sign of an interpolated momentum, half the state of AdamW. Wants a third to a tenth of AdamW's rate."""

from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx

from mlx_finetune.train.optim import FlatArrays


@dataclass(frozen=True, slots=True)
class Lion:
    """Chen et al. (2302.06675, algorithm 2): ``u = sign(b1 m + (1 - b1) g)``, ``m <- b2 m + (1 - b2) g``,
    ``w <- w - lr (u + decay w)``."""

    beta1: float
    beta2: float
    weight_decay: float
    decayed: frozenset[str]

    def init(self, parameters: Mapping[str, mx.array]) -> FlatArrays:
        """``NAME.m`` of zeros for every parameter."""
        return {f"{name}.m": mx.zeros(value.shape, mx.float32) for name, value in parameters.items()}

    def hyperparameters(self, learning_rate: float, step: int) -> mx.array:
        """``(lr,)``."""
        del step
        return mx.array([learning_rate], mx.float32)

    def update(
        self, parameters: FlatArrays, gradients: FlatArrays, state: FlatArrays, values: mx.array
    ) -> tuple[FlatArrays, FlatArrays]:
        """New parameters and new state."""
        new_parameters: FlatArrays = {}
        new_state: FlatArrays = {}
        for name, value in parameters.items():
            gradient, m = gradients[name].astype(mx.float32), state[f"{name}.m"]
            change = mx.sign(self.beta1 * m + (1 - self.beta1) * gradient)
            if self.weight_decay and name in self.decayed:
                change = change + self.weight_decay * value
            new_state[f"{name}.m"] = self.beta2 * m + (1 - self.beta2) * gradient
            new_parameters[name] = value - values[0] * change
        return new_parameters, new_state
