"""Learning-rate schedules as pure functions of the step, and AdamW with fp32 state.

Own AdamW, because MLX's defaults to no bias correction, keeps its state in the type of the weights (fp16 state turns a
zero gradient into NaN) and decays every tensor alike. State is a flat dictionary, so a checkpoint is one file.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlx_finetune.recipe.training import TrainingRecipe

Schedule = Callable[[int], float]
FlatArrays = dict[str, mx.array]

_WSD_DECAY_SHARE = 0.2  # last part of a warm-up, stable, decay schedule (2404.06395, 2405.18392)


def build_schedule(training: TrainingRecipe, *, learning_rate: float, warmup_steps: int, total_steps: int) -> Schedule:
    """Learning rate of the 0-based optimizer step; constant at its last value beyond ``total_steps``.

    Warm-up is ``lr * (t + 1) / w``, so no step has rate 0. Then with ``x`` the share of the rest that is done:
    cosine ``m + (1 - m) * (1 + cos(pi x)) / 2`` of the peak with ``m = min_lr_ratio``; linear ``1 - x`` (0 only after
    the last step); constant; wsd flat, then ``1 - sqrt(y)`` over the last fifth.
    """
    rest = max(total_steps - warmup_steps, 1)

    def rate(step: int) -> float:
        if step < warmup_steps:
            return learning_rate * (step + 1) / warmup_steps
        done = min((step - warmup_steps) / rest, 1.0)
        if training.lr_scheduler == "cosine":
            floor = training.min_lr_ratio
            return learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))
        if training.lr_scheduler == "linear":
            return learning_rate * (1 - done)
        if training.lr_scheduler == "wsd":
            decay = max(math.ceil(_WSD_DECAY_SHARE * total_steps), 1)
            into = min(max(step - (total_steps - decay), 0) / decay, 1.0)
            return learning_rate * (1 - math.sqrt(into))
        return learning_rate

    return rate


def decayed_names(parameters: Mapping[str, mx.array], undecayed: Sequence[str] = ()) -> frozenset[str]:
    """Names of parameters that weight decay applies to: matrices and stacks of them, not those of ``undecayed``.

    Vectors (norms, biases, DoRA magnitudes) are left out; ``undecayed`` names the embeddings.
    """
    return frozenset(name for name, value in parameters.items() if value.ndim >= 2 and name not in undecayed)


@dataclass(frozen=True, slots=True)
class AdamW:
    """Decoupled weight decay (Loshchilov and Hutter, 1711.05101, algorithm 2) with bias correction.

    ``m <- b1 m + (1 - b1) g``, ``v <- b2 v + (1 - b2) g^2``,
    ``w <- w - lr (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay w)``, t counted from 1.
    Parameters, state and arithmetic are fp32: a bf16 weight would lose most updates of 1e-5, and fp16 state turns a
    zero gradient into NaN.
    """

    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    decayed: frozenset[str]

    def init(self, parameters: Mapping[str, mx.array]) -> FlatArrays:
        """State before step 1: ``NAME.m`` and ``NAME.v`` of zeros for every parameter."""
        assert all(value.dtype == mx.float32 for value in parameters.values()), "a trainable weight is not fp32"
        names = [f"{name}.{moment}" for name in parameters for moment in ("m", "v")]
        return {name: mx.zeros_like(parameters[name[:-2]]) for name in names}

    def hyperparameters(self, learning_rate: float, step: int) -> mx.array:
        """``(lr, 1 - b1^t, 1 - b2^t)`` of the 0-based ``step`` as one array, so a compiled update sees new values."""
        count = step + 1
        return mx.array([learning_rate, 1 - self.beta1**count, 1 - self.beta2**count], mx.float32)

    def update(
        self, parameters: FlatArrays, gradients: FlatArrays, state: FlatArrays, values: mx.array
    ) -> tuple[FlatArrays, FlatArrays]:
        """New parameters and new state; ``values`` comes from ``hyperparameters``. Pure, so it can be compiled."""
        new_parameters: FlatArrays = {}
        new_state: FlatArrays = {}
        rate, correction1, correction2 = values[0], values[1], values[2]
        for name, value in parameters.items():
            gradient = gradients[name].astype(mx.float32)
            m = self.beta1 * state[f"{name}.m"] + (1 - self.beta1) * gradient
            v = self.beta2 * state[f"{name}.v"] + (1 - self.beta2) * mx.square(gradient)
            change = (m / correction1) / (mx.sqrt(v / correction2) + self.epsilon)
            if self.weight_decay and name in self.decayed:
                change = change + self.weight_decay * value
            new_state[f"{name}.m"], new_state[f"{name}.v"] = m, v
            new_parameters[name] = value - rate * change
        return new_parameters, new_state


def global_norm(gradients: Mapping[str, mx.array]) -> mx.array:
    """L2 norm over all gradients together, fp32 scalar. Summed in name order, so it is repeatable."""
    squares = [mx.sum(mx.square(gradients[name].astype(mx.float32))) for name in sorted(gradients)]
    return mx.sqrt(mx.sum(mx.stack(squares)))
