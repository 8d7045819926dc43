"""Adafactor: the second moment of a matrix as one number a row and one a column. Little memory, no momentum."""

from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx

from mlx_finetune.train.optim import FlatArrays

_SMALLEST = 1e-30  # added to squared gradients
_DECAY_POWER = -0.8
_LONGEST_UPDATE = 1.0  # root mean square of an update, above which it is scaled down


@dataclass(frozen=True, slots=True)
class Adafactor:
    """Shazeer and Stern (1804.04235, algorithms 4 and 5), without scaling by the parameter, with the rate given.

    With ``b = 1 - t^-0.8``, t from 1: ``R <- b R + (1 - b) mean over columns of g^2``, ``C`` likewise over rows,
    ``u = g / sqrt(R C / mean(R))``, ``u <- u / max(1, rms(u))``, ``w <- w - lr (u + decay w)``. Vectors keep all of the
    second moment; stacks of matrices are factored matrix by matrix.
    """

    weight_decay: float
    decayed: frozenset[str]

    def init(self, parameters: Mapping[str, mx.array]) -> FlatArrays:
        """``NAME.row`` and ``NAME.column`` of zeros for matrices, ``NAME.v`` for vectors."""
        state: FlatArrays = {}
        for name, value in parameters.items():
            if value.ndim < 2:
                state[f"{name}.v"] = mx.zeros(value.shape, mx.float32)
            else:
                state[f"{name}.row"] = mx.zeros(value.shape[:-1], mx.float32)
                state[f"{name}.column"] = mx.zeros((*value.shape[:-2], value.shape[-1]), mx.float32)
        return state

    def hyperparameters(self, learning_rate: float, step: int) -> mx.array:
        """``(lr, b)`` of the 0-based ``step``."""
        return mx.array([learning_rate, 1 - (step + 1) ** _DECAY_POWER], mx.float32)

    def update(
        self, parameters: FlatArrays, gradients: FlatArrays, state: FlatArrays, values: mx.array
    ) -> tuple[FlatArrays, FlatArrays]:
        """New parameters and new state."""
        new_parameters: FlatArrays = {}
        new_state: FlatArrays = {}
        rate, beta = values[0], values[1]
        for name, value in parameters.items():
            gradient = gradients[name].astype(mx.float32)
            square = mx.square(gradient) + _SMALLEST
            if value.ndim < 2:
                moment = beta * state[f"{name}.v"] + (1 - beta) * square
                new_state[f"{name}.v"] = moment
                change = gradient * mx.rsqrt(moment)
            else:
                row = beta * state[f"{name}.row"] + (1 - beta) * mx.mean(square, axis=-1)
                column = beta * state[f"{name}.column"] + (1 - beta) * mx.mean(square, axis=-2)
                new_state[f"{name}.row"], new_state[f"{name}.column"] = row, column
                share = mx.rsqrt(row / mx.mean(row, axis=-1, keepdims=True))
                change = gradient * share[..., None] * mx.rsqrt(column)[..., None, :]
            change = change / mx.maximum(1.0, mx.sqrt(mx.mean(mx.square(change))) / _LONGEST_UPDATE)
            if self.weight_decay and name in self.decayed:
                change = change + self.weight_decay * value
            new_parameters[name] = value - rate * change
        return new_parameters, new_state
