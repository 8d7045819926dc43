"""One optimizer step: microbatches -> summed gradients -> divided once by all targets -> clip -> update.

Parameters, gradients and optimizer state are flat dictionaries in name order; functions are pure, and on a GPU compiled
once per batch shape. Everything random in a microbatch comes from a key that is a function of (seed, step, microbatch):
nothing random is ever saved, and a resumed run draws the same dropout masks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from mlx_finetune.dataset.row_states import States
from mlx_finetune.dataset.stream import Batch
from mlx_finetune.model.inside.noise import derive_key, use_noise
from mlx_finetune.model.inside.override import overridden
from mlx_finetune.model.inside.parts import blocks, inside_blocks, num_frozen_below
from mlx_finetune.model.inside.places import Places
from mlx_finetune.model.inside.prefix import from_numpy, standing_in, states_above, to_numpy
from mlx_finetune.model.inside.segments import segment_caches
from mlx_finetune.model.inside.split import SplitModel
from mlx_finetune.train.both_cores import BothCores
from mlx_finetune.train.losses import Head
from mlx_finetune.train.objective import Objective
from mlx_finetune.train.optim import FlatArrays, global_norm
from mlx_finetune.train.optimizers.protocol import Optimizer

_F = TypeVar("_F", bound=Callable[..., object])

#: ``(gradients, sums, counts)`` of this process -> the same, summed over all ranks.
Reduce = Callable[[FlatArrays, mx.array, Sequence[int]], tuple[FlatArrays, mx.array, list[int]]]

#: Hidden states (B, T, H) that stand in for the frozen blocks, or nothing: a tree that ``mx.compile`` takes.
Entering = tuple[mx.array, ...]

PACKED_TARGET_SIZES = 4  # packs have one length, so compiled functions may see their targets in four sizes


@dataclass(frozen=True, slots=True)
class StepResult:
    """``loss`` is nats per target over the whole step; ``grad_norm`` before clipping; both may be non-finite.

    ``num_targets`` is what the objective counts, ``metrics`` its other sums divided by it.
    """

    loss: float
    grad_norm: float
    num_targets: int
    num_tokens: int
    num_positions: int
    metrics: Mapping[str, float]


class Trainer:
    """The trainable parameters, their optimizer state, and the functions over them."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizer: Optimizer,
        parameters: FlatArrays,
        *,
        seed: int,
        max_grad_norm: float,
        is_packed: bool,
        is_compiled: bool,
        is_blockwise: bool = False,
        keeps_products: bool = False,
        in_halves: bool = True,
        split: SplitModel | None = None,
        reduce: Reduce | None = None,
    ) -> None:
        """``parameters`` are the trainable ones by name; everything else in ``model`` stays frozen.

        ``is_blockwise`` takes the blocks one at a time with exponentials in numpy, on a CPU; the model must be a chain
        (``model.cpu.blockwise.is_chain``). ``keeps_products`` then spares time for memory, and ``in_halves`` False
        computes a microbatch in one thread, with all threads of the BLAS. ``split`` is the model in parts where
        somebody has split it already. ``reduce`` sums over the ranks of a training, once a step (``ranks.py``).
        """
        assert not (is_compiled and is_blockwise), "block by block nothing can be compiled"
        self.parameters = parameters
        self.state = optimizer.init(parameters)
        self._model = model
        self._places = Places(model, parameters)
        self._split = split or SplitModel(model)
        cores = partial(BothCores, self._split, objective, list(parameters), seed=seed, is_packed=is_packed)
        self._cores = cores(keeps_products=keeps_products, in_halves=in_halves) if is_blockwise else None
        inside = inside_blocks(model, parameters)
        self._outer = [name for name in parameters if name not in inside]
        self.num_frozen = num_frozen_below(model, parameters) if self._split.is_split else 0
        self._target_parts = (PACKED_TARGET_SIZES if is_packed else 1) if is_compiled else 0
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
        self._places.put(self.parameters)

    def forget(self) -> None:
        """Give back the memory of the optimizer's state. Nothing can be trained any more."""
        self.state = {}

    def close(self) -> None:
        """End the threads that a CPU's step has. Close a trainer before the process ends."""
        if self._cores:
            self._cores.close()

    def compute(self, batches: Sequence[Batch], step: int) -> tuple[FlatArrays, StepResult]:
        """Mean gradients of the 0-based ``step`` over all its targets, clipped; nothing is changed yet.

        ``gradient = sum over microbatches / sum of targets``, never a mean of means. ``batches`` are this rank's share
        of the step, perhaps none. Raises ``AssertionError`` when no batch of any rank has a target.
        """
        if self.has_step_value:
            batches = self._with_value(batches, self.step_value([self.value_sums(batch) for batch in batches]))
        if not self._cores:
            batches = [self._objective.unfold(batch) for batch in batches]
        total = mx.zeros(1 + len(self._objective.metrics))
        gradients: FlatArrays | None = None
        self._train(is_training=True)
        for batch in batches:
            sums, new = self._gradients(batch, step, batch.part)
            gradients = new if gradients is None else {name: gradients[name] + new[name] for name in new}
            total = total + sums
            if batch is not batches[-1]:  # the last one is evaluated with the norm: one wait less on a GPU
                mx.eval(total, gradients)
        self.load_into_model()
        sizes = [self._cores.sizes(one) if self._cores else (one.num_tokens, one.num_positions) for one in batches]
        counts = [
            sum(self._objective.count(batch) for batch in batches),
            sum(tokens for tokens, _ in sizes),
            sum(positions for _, positions in sizes),
        ]
        if gradients is None:
            gradients = {name: mx.zeros(value.shape, mx.float32) for name, value in self.parameters.items()}
        if self._reduce is not None:
            gradients, total, counts = self._reduce(gradients, total, counts)
        num_targets, num_tokens, num_positions = counts
        assert num_targets, f"step {step} has no target"
        gradients, norm = self._average(gradients, mx.array(float(num_targets)))
        mx.eval(gradients, norm)
        loss, metrics = self.means(as_floats(total), num_targets)
        result = StepResult(
            loss=loss,
            grad_norm=as_float(norm),
            num_targets=num_targets,
            num_tokens=num_tokens,
            num_positions=num_positions,
            metrics=metrics,
        )
        return gradients, result

    def apply(self, gradients: FlatArrays, *, learning_rate: float, step: int) -> None:
        """Update parameters and optimizer state with the gradients of ``compute``."""
        values = self._optimizer.hyperparameters(learning_rate, step)
        self.parameters, self.state = self._update(self.parameters, gradients, self.state, values)
        mx.eval(self.parameters, self.state)
        self.load_into_model()

    def means(self, sums: Sequence[float], count: int) -> tuple[float, dict[str, float]]:
        """Loss and metrics, by name, of the sums of some batches with ``count`` in all."""
        loss, *rest = sums
        means = {name: value / count for name, value in zip(self._objective.metrics, rest, strict=True)}
        return loss / count, dict(self._objective.present(means))

    def loss(self, batch: Batch, value: float | None = None) -> tuple[list[float], int]:
        """The sums of one batch in eval mode, that of the loss first, and their count: no noise, no gradient.

        ``value`` is the objective's value of the whole evaluation, where it has one; without it that of the batch.
        """
        if self.has_step_value:
            value = self.step_value([self.value_sums(batch)], is_shared=False) if value is None else value
            (batch,) = self._with_value([batch], value)
        self._train(is_training=False)
        if self._cores:
            sums = self._cores.loss(self.parameters, batch)
        else:
            batch = self._objective.unfold(batch)
            evaluate = self._evaluate_packed if batch.is_packed else self._evaluate
            sums = evaluate(self.parameters, _entering(batch), *self._arrays(batch))
        mx.eval(sums)
        self.load_into_model()
        return as_floats(sums), self._objective.count(batch)

    def row_outputs(self, objective: Objective, batch: Batch) -> NDArray[np.float32]:
        """What the loss of ``objective``, which gives (B, K) numbers, says of every row of ``batch`` in eval mode."""
        self._train(is_training=False)
        if self._cores:
            return self._cores.row_outputs(self.parameters, objective, batch)
        self.load_into_model()
        unfolded = objective.unfold(batch)
        arrays = objective.arrays(unfolded, self._target_parts)
        tokens, segment_ids = (mx.array(array[:, :-1]) for array in (unfolded.tokens, unfolded.segment_ids))
        with objective.around(self._model, segment_ids, *arrays) as caches:
            hidden = self._split.hidden(tokens, caches)
            head = Head(self._split, {}, uses_numpy=False, is_learning=False)
            return np.array(objective.loss(head, hidden, *arrays))

    @property
    def has_step_value(self) -> bool:
        """True where the loss of every row needs a number from all rows of a step or of an evaluation."""
        return self._objective.step_value is not None

    def value_sums(self, batch: Batch) -> tuple[list[float], int]:
        """What that number is a mean of, in eval mode: the sum over the rows of ``batch``, and how many they are."""
        step = self._objective.step_value
        assert step is not None, "asked for where there is one"
        return [step.sums(self.row_outputs(step.rows, batch), batch)], len(batch.rows)

    def step_value(self, found: Sequence[tuple[Sequence[float], int]], *, is_shared: bool = True) -> float:
        """That number from the sums of all batches; ``is_shared``: of this rank's, and the others have more."""
        step = self._objective.step_value
        assert step is not None, "asked for where there is one"
        total, count = sum(sum(sums) for sums, _ in found), sum(number for _, number in found)
        if self._reduce is not None and is_shared:
            _, summed, (count,) = self._reduce({}, mx.array([total]), [count])
            total = as_float(summed[0])
        return step.finish(total / max(count, 1))

    @staticmethod
    def _with_value(batches: Sequence[Batch], value: float) -> list[Batch]:
        """The batches with the objective's value behind the values of each row."""
        return [replace(one, values=np.pad(one.values, ((0, 0), (0, 1)), constant_values=value)) for one in batches]

    def entering(self, batches: Sequence[Batch]) -> list[States]:
        """The hidden states (B, T, H) that enter the lowest block that learns, for at most two batches that are not
        packed: what ``Batch.entering`` holds. Blocks below are never trained, so it holds for the whole run."""
        self._train(is_training=False)
        if self._cores:
            return self._cores.entering(batches)
        return [to_numpy(states_above(self._split, self.num_frozen, mx.array(one.tokens[:, :-1]))) for one in batches]

    def _gradients(self, batch: Batch, step: int, part: int) -> tuple[mx.array, FlatArrays]:
        """Sums of the objective and summed gradients of one microbatch."""
        if self._cores:
            return self._cores.loss_and_gradients(self.parameters, batch, step, part)
        key = derive_key(self._seed, "noise", step, part)
        lengths, entering = mx.array(batch.lengths), _entering(batch)
        return self._microbatch(self.parameters, key, lengths, entering, *self._arrays(batch))

    def _train(self, *, is_training: bool) -> None:
        if self._cores:
            self._cores.train(is_training=is_training)
        elif self._model.training != is_training:  # it walks through every module: 15 ms
            self._model.train(is_training)

    def _arrays(self, batch: Batch) -> tuple[mx.array, ...]:
        """Tokens and segment ids of the inputs, each (B, T), and what the objective wants; that alone where it forms
        its hidden states itself."""
        arrays = self._objective.arrays(batch, self._target_parts)
        if self._objective.hidden is not None:  # nothing else may have a shape: each is compiled for
            return arrays
        return mx.array(batch.tokens[:, :-1]), mx.array(batch.segment_ids[:, :-1]), *arrays

    def _compile(self) -> None:
        """Build the functions, compiled where that pays. Frozen weights are captured; what changes is passed in."""
        split, loss, around = self._split, self._objective.loss, self._objective.around
        own = self._objective.hidden

        def hidden(
            entering: Entering, given: Sequence[object] | None, *arrays: mx.array, is_packed: bool
        ) -> tuple[mx.array, ...]:
            """Hidden states, and what the loss takes behind them; ``given`` stands in for KV caches."""
            if own is not None:
                return own(split.model, *arrays), *arrays
            tokens, segment_ids, *rest = arrays
            caches = segment_caches(self._model, segment_ids) if is_packed and given is None else given
            frozen = blocks(split.model)[: self.num_frozen] if entering else ()
            with overridden(standing_in(frozen, *entering) if entering else ()):
                return split.hidden(tokens, caches), *rest

        def microbatch(
            parameters: FlatArrays, key: mx.array, lengths: mx.array, entering: Entering, *arrays: mx.array
        ) -> tuple[mx.array, FlatArrays]:
            with use_noise(key, lengths=lengths):
                (_, sums), gradients = mx.value_and_grad(forward)(parameters, entering, *arrays)
                return sums, gradients

        def forward(parameters: FlatArrays, entering: Entering, *arrays: mx.array) -> tuple[mx.array, mx.array]:
            self._places.put(parameters)
            outer = {name: parameters[name] for name in self._outer}
            head = Head(split, outer, uses_numpy=False, is_learning=True)
            with around(self._model, *arrays[1:]) as given:  # without the tokens
                sums = loss(head, *hidden(entering, given, *arrays, is_packed=self._is_packed)).reshape(-1)
            return sums[0], sums

        def evaluate(parameters: FlatArrays, entering: Entering, *arrays: mx.array, is_packed: bool) -> mx.array:
            self._places.put(parameters)
            head = Head(split, {}, uses_numpy=False, is_learning=False)
            with around(self._model, *arrays[1:]) as given:
                return loss(head, *hidden(entering, given, *arrays, is_packed=is_packed)).reshape(-1)

        def average(gradients: FlatArrays, num_targets: mx.array) -> tuple[FlatArrays, mx.array]:
            mean = {name: value.astype(mx.float32) / num_targets for name, value in gradients.items()}
            return clip(mean, self._max_grad_norm)

        # On the CPU compiling is no faster (SmolLM2-135M, 2 cores: 4.0 s a step either way) and builds C++ for 8 s
        compiled = mx.compile if self._is_compiled else _as_it_is
        self._microbatch = compiled(microbatch)
        self._evaluate, self._evaluate_packed = (compiled(partial(evaluate, is_packed=one)) for one in (False, True))
        self._average = compiled(average)
        self._update = compiled(self._optimizer.update)


def _entering(batch: Batch) -> Entering:
    states = from_numpy(batch.entering)
    return () if states is None else (states,)


def _as_it_is(function: _F) -> _F:
    return function


def as_floats(values: mx.array) -> list[float]:
    """The values of a vector as Python floats."""
    return cast("list[float]", values.tolist())


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
