"""Muon: the momentum of a hidden matrix, made orthogonal; everything else goes through AdamW.

MLX's own Muon adds weight decay to the gradient, where orthogonalisation takes it away again; here it is decoupled. An
update has the size of AdamW's (times ``0.2 sqrt(max(rows, columns))``, Liu et al. 2502.16982), so AdamW's rates hold.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import mlx.core as mx
import mlx.nn as nn

from mlx_finetune.model.inside.parts import inside_blocks
from mlx_finetune.model.upstream import SwitchLinear
from mlx_finetune.train.optim import AdamW, FlatArrays

_MOMENTUM = 0.95
_ROUNDS = 5
_A, _B, _C = 3.4445, -4.7750, 2.0315  # of the quintic that pulls singular values towards 1
_SIZE = 0.2
_ROUTER = ".gate.weight"  # it chooses experts: a small head, not a hidden matrix


@dataclass(frozen=True, slots=True)
class Muon:
    """Jordan (2024), with decay and size of Liu et al. (2502.16982, equation 4).

    ``m <- b m + (1 - b) g``, ``u = newton_schulz(b m + (1 - b) g)``, ``w <- w - lr (0.2 sqrt(max(n, k)) u + decay w)``
    for the parameters ``hidden``; ``rest`` updates the others. A stack of matrices is taken matrix by matrix.
    """

    hidden: frozenset[str]
    weight_decay: float
    rest: AdamW

    def init(self, parameters: Mapping[str, mx.array]) -> FlatArrays:
        """``NAME.momentum`` of zeros for hidden matrices, AdamW's moments for the rest."""
        own = {f"{name}.momentum": mx.zeros(parameters[name].shape, mx.float32) for name in sorted(self.hidden)}
        return own | self.rest.init(_without(parameters, self.hidden))

    def hyperparameters(self, learning_rate: float, step: int) -> mx.array:
        """Those of AdamW, whose first is the rate."""
        return self.rest.hyperparameters(learning_rate, step)

    def update(
        self, parameters: FlatArrays, gradients: FlatArrays, state: FlatArrays, values: mx.array
    ) -> tuple[FlatArrays, FlatArrays]:
        """New parameters and new state."""
        others = _without(parameters, self.hidden)
        new_parameters, new_state = self.rest.update(others, gradients, state, values)
        for name in sorted(self.hidden):
            value, gradient = parameters[name], gradients[name].astype(mx.float32)
            momentum = _MOMENTUM * state[f"{name}.momentum"] + (1 - _MOMENTUM) * gradient
            new_state[f"{name}.momentum"] = momentum
            change = newton_schulz(_MOMENTUM * momentum + (1 - _MOMENTUM) * gradient)
            change = _SIZE * max(value.shape[-2:]) ** 0.5 * change
            if self.weight_decay:
                change = change + self.weight_decay * value
            new_parameters[name] = value - values[0] * change
        return {name: new_parameters[name] for name in parameters}, new_state


def newton_schulz(matrix: mx.array) -> mx.array:
    """About ``U V^T`` of ``matrix = U S V^T`` (..., n, k): singular values from 0.68 to 1.12, whatever they were.

    ``X <- a X + (b X X^T + c (X X^T)^2) X``, five times, from ``matrix / |matrix|_F``.
    """
    is_tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.swapaxes(-1, -2) if is_tall else matrix
    x = x / (mx.sqrt(mx.sum(mx.square(x), axis=(-1, -2), keepdims=True)) + 1e-7)
    for _ in range(_ROUNDS):
        square = x @ x.swapaxes(-1, -2)
        x = _A * x + (_B * square + _C * (square @ square)) @ x
    return x.swapaxes(-1, -2) if is_tall else x


def hidden_matrices(model: nn.Module, parameters: Mapping[str, mx.array]) -> frozenset[str]:
    """Those of ``parameters`` that Muon is for: matrices of linear layers in the blocks, and no router.

    A table, as T5's biases of relative positions, has as many dimensions and is an embedding.
    """
    modules = cast("list[tuple[str, nn.Module]]", model.named_modules())
    linear = {f"{path}.weight" for path, module in modules if isinstance(module, nn.Linear | SwitchLinear)}
    inside = inside_blocks(model, linear.intersection(parameters))
    return frozenset(name for name in inside if not name.endswith(_ROUTER))


def _without(parameters: Mapping[str, mx.array], names: frozenset[str]) -> FlatArrays:
    return {name: value for name, value in parameters.items() if name not in names}
