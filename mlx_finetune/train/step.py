"""One optimizer step: microbatches -> summed gradients -> divided once by all targets -> clip -> update.

Parameters, gradients and optimizer state are flat dictionaries in name order; functions are pure, and on a GPU compiled
once per batch shape. Everything random in a microbatch comes from a key that is a function of (seed, step, microbatch):
nothing random is ever saved, and a resumed run draws the same dropout masks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from mlx_finetune.dataset.stream import Batch
from mlx_finetune.model.noise import derive_key, use_noise
from mlx_finetune.train.objective import Objective
from mlx_finetune.train.optim import AdamW, FlatArrays, global_norm

_F = TypeVar("_F", bound=Callable[..., object])

#: ``(gradients, loss_sum, counts)`` of this process -> the same, summed over all ranks.
Reduce = Callable[[FlatArrays, mx.array, Sequence[int]], tuple[FlatArrays, mx.array, list[int]]]


@dataclass(frozen=True, slots=True)
class StepResult:
    """``loss`` is nats per target over the whole step; ``grad_norm`` before clipping; both may be non-finite."""

    loss: float
    grad_norm: float
    num_targets: int
    num_tokens: int
    num_positions: int


class Trainer:
    """The trainable parameters, their optimizer state, and the functions over them."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizer: AdamW,
        parameters: FlatArrays,
        *,
        seed: int,
        max_grad_norm: float,
        is_packed: bool,
        is_compiled: bool,
        reduce: Reduce | None = None,
    ) -> None:
        """``parameters`` are the trainable ones by name; everything else in ``model`` stays frozen.

        ``reduce`` sums over the ranks of a training, once a step (``ranks.py``).
        """
        self.parameters = parameters
        self.state = optimizer.init(parameters)
        self._model = model
        self._objective = objective
        self._optimizer = optimizer
        self._seed = seed
        self._max_grad_norm = max_grad_norm
        self._is_packed = is_packed
        self._is_compiled = is_compiled
        self._reduce = reduce
        self._compile()

    def restore(self, parameters: FlatArrays, state: FlatArrays) -> None:
        """Continue from saved arrays; they are evaluated and the compiled functions are built anew."""
        assert parameters.keys() == self.parameters.keys(), "other parameters than those being trained"
        assert state.keys() == self.state.keys(), "optimizer state of other parameters"
        mx.eval(parameters, state)
        self.parameters, self.state = parameters, state
        self.load_into_model()
        self._compile()

    def load_into_model(self) -> None:
        """Put the current parameters into the model, for evaluation, generation and saving."""
        self._model.update(tree_unflatten(list(self.parameters.items())))

    def compute(self, batches: Sequence[Batch], step: int) -> tuple[FlatArrays, StepResult]:
        """Mean gradients of the 0-based ``step`` over all its targets, clipped; nothing is changed yet.

        ``gradient = sum over microbatches / sum of targets``, never a mean of means. ``batches`` are this rank's share
        of the step, perhaps none. Raises ``AssertionError`` when no batch of any rank has a target.
        """
        total = mx.array(0.0)
        gradients: FlatArrays | None = None
        self._model.train()
        for batch in batches:
            key = derive_key(self._seed, "noise", step, batch.part)
            lengths = mx.array(batch.lengths)
            loss_sum, new = self._microbatch(self.parameters, key, lengths, *self._objective.arrays(batch))
            gradients = new if gradients is None else {name: gradients[name] + new[name] for name in new}
            total = total + loss_sum
            mx.eval(total, gradients)
        self._model.eval()
        self.load_into_model()
        counts = [
            sum(batch.num_targets for batch in batches),
            sum(batch.num_tokens for batch in batches),
            sum(batch.num_positions for batch in batches),
        ]
        if gradients is None:
            gradients = {name: mx.zeros(value.shape, mx.float32) for name, value in self.parameters.items()}
        if self._reduce is not None:
            gradients, total, counts = self._reduce(gradients, total, counts)
        num_targets, num_tokens, num_positions = counts
        assert num_targets, f"step {step} has no target"
        gradients, norm = self._average(gradients, mx.array(float(num_targets)))
        mx.eval(gradients, norm)
        result = StepResult(
            loss=as_float(total) / num_targets,
            grad_norm=as_float(norm),
            num_targets=num_targets,
            num_tokens=num_tokens,
            num_positions=num_positions,
        )
        return gradients, result

    def apply(self, gradients: FlatArrays, *, learning_rate: float, step: int) -> None:
        """Update parameters and optimizer state with the gradients of ``compute``."""
        values = self._optimizer.hyperparameters(learning_rate, step)
        self.parameters, self.state = self._update(self.parameters, gradients, self.state, values)
        mx.eval(self.parameters, self.state)
        self.load_into_model()

    def loss(self, batch: Batch) -> tuple[float, int]:
        """``(loss_sum, n_targets)`` of one batch in eval mode: no noise, no gradient."""
        self._model.eval()
        loss_sum, count = self._evaluate(self.parameters, *self._objective.arrays(batch))
        mx.eval(loss_sum, count)
        self.load_into_model()
        return as_float(loss_sum), round(as_float(count))

    def _compile(self) -> None:
        """Build the functions, compiled where that pays. Frozen weights are captured; what changes is passed in."""
        model, loss = self._model, self._objective.loss

        def forward(parameters: FlatArrays, *arrays: mx.array) -> mx.array:
            model.update(tree_unflatten(list(parameters.items())))
            return loss(model, *arrays, is_packed=self._is_packed)[0]

        def microbatch(
            parameters: FlatArrays, key: mx.array, lengths: mx.array, *arrays: mx.array
        ) -> tuple[mx.array, FlatArrays]:
            with use_noise(key, lengths=lengths):
                return mx.value_and_grad(forward)(parameters, *arrays)

        def evaluate(parameters: FlatArrays, *arrays: mx.array) -> tuple[mx.array, mx.array]:
            model.update(tree_unflatten(list(parameters.items())))
            return loss(model, *arrays, is_packed=False)

        def average(gradients: FlatArrays, num_targets: mx.array) -> tuple[FlatArrays, mx.array]:
            mean = {name: value.astype(mx.float32) / num_targets for name, value in gradients.items()}
            return clip(mean, self._max_grad_norm)

        # On the CPU compiling is no faster (SmolLM2-135M, 2 cores: 4.0 s a step either way) and builds C++ for 8 s
        compiled = mx.compile if self._is_compiled else _as_it_is
        self._microbatch = compiled(microbatch)
        self._evaluate = compiled(evaluate)
        self._average = compiled(average)
        self._update = compiled(self._optimizer.update)


def _as_it_is(function: _F) -> _F:
    return function


def as_float(scalar: mx.array) -> float:
    """The value of a real scalar as a Python float."""
    return cast(float, scalar.item())


def clip(gradients: FlatArrays, max_norm: float) -> tuple[FlatArrays, mx.array]:
    """Gradients scaled down to a global L2 norm of ``max_norm`` (0: unchanged), and the norm before that."""
    norm = global_norm(gradients)
    if not max_norm:
        return gradients, norm
    factor = mx.minimum(max_norm / (norm + 1e-6), 1.0)
    return {name: value * factor for name, value in gradients.items()}, norm
