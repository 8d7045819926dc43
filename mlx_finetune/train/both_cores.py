"""A microbatch on both cores of a CPU: its rows in two halves, each computed block by block in a thread of its own.

MLX's elementwise work uses one core of a CPU, and OpenBLAS's threads wait for each other by spinning: beside one busy
process a step of 2.9 s takes 50. Two threads with one BLAS thread each need nothing of each other until the end.
SmolLM2-135M, 16 of 30 layers, 4 x 193 tokens, two idle cores of an EPYC: one thread 4.6 s, two BLAS threads 2.9 s, two
halves 2.5 s (2026-11-26). A single row keeps the BLAS threads.

The division depends on the rows alone, never on the machine, and sums are formed in one order: the same bits every
time. Each half is cut to its longest row, because nothing here is compiled for a shape.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten

from mlx_finetune.dataset.row_states import States
from mlx_finetune.dataset.stream import Batch
from mlx_finetune.hardware import blas
from mlx_finetune.model.blockwise import Blockwise
from mlx_finetune.model.cpu_math import numpy_math
from mlx_finetune.model.noise import derive_key, use_noise
from mlx_finetune.model.prefix import from_numpy, to_numpy
from mlx_finetune.model.segments import segment_caches
from mlx_finetune.model.split import SplitModel
from mlx_finetune.train.losses import Head
from mlx_finetune.train.objective import Objective
from mlx_finetune.train.optim import FlatArrays

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Worker:
    """One thread's model."""

    split: SplitModel
    blockwise: Blockwise


class BothCores:
    """Losses and gradients of batches of ``split.model``, with exponentials in numpy (``model.cpu_math``)."""

    def __init__(
        self,
        split: SplitModel,
        objective: Objective,
        parameters: Sequence[str],
        *,
        seed: int,
        is_packed: bool,
        keeps_products: bool,
    ) -> None:
        """The model must be a chain (``model.blockwise.is_chain``); ``parameters`` name what is learned."""
        self._objective = objective
        self._parameters = tuple(parameters)
        self._seed = seed
        self._is_packed = is_packed
        self._keeps_products = keeps_products
        self._workers = [self._worker(split)]
        self._threads: ThreadPoolExecutor | None = None

    def loss_and_gradients(
        self, parameters: FlatArrays, batch: Batch, step: int, part: int
    ) -> tuple[mx.array, FlatArrays]:
        """Loss sum and summed gradients of the microbatch ``part`` of ``step``, evaluated."""
        self._put(parameters)

        def compute(worker: _Worker, half: Batch, number: int) -> tuple[mx.array, FlatArrays]:
            labels = (step, part) if number == 0 else (step, part, number)
            tokens, segments, arrays = self._arrays(half)

            def loss(outer: FlatArrays, hidden: mx.array) -> mx.array:
                head = Head(worker.split, outer, uses_numpy=True, is_learning=True)
                return self._objective.loss(head, hidden, *arrays)

            with use_noise(derive_key(self._seed, "noise", *labels), lengths=mx.array(half.lengths)):
                caches = segment_caches(worker.split.model, segments) if self._is_packed else None
                entering = from_numpy(half.entering)
                return worker.blockwise.loss_and_gradients(parameters, tokens, caches, loss, entering)

        first, *rest = self._on_both(batch, compute)
        total, gradients = first
        for loss_sum, more in rest:
            total = total + loss_sum
            gradients = {name: gradients[name] + more[name] for name in gradients}
        mx.eval(total, gradients)
        return total, gradients

    def loss(self, parameters: FlatArrays, batch: Batch) -> mx.array:
        """Loss sum of a batch without noise or gradient; rows are not packed."""
        self._put(parameters)

        def compute(worker: _Worker, half: Batch, _: int) -> mx.array:
            tokens, _segments, arrays = self._arrays(half)
            hidden = worker.blockwise.hidden(tokens, None, from_numpy(half.entering))
            total = self._objective.loss(Head(worker.split, {}, uses_numpy=True, is_learning=False), hidden, *arrays)
            mx.eval(total)
            return total

        first, *rest = self._on_both(batch, compute)
        return sum(rest, start=first)

    def entering(self, batches: Sequence[Batch]) -> list[States]:
        """What enters the lowest block that learns, (B, T, H), for at most two batches, each on a core of its own."""

        def compute(worker: _Worker, batch: Batch) -> States:
            return to_numpy(worker.blockwise.entering(mx.array(batch.tokens[:, :-1])))

        with numpy_math(self._workers[0].split.model), blas.single_threaded():
            threads = self._start_threads()
            return list(threads.map(compute, self._workers, batches))

    def sizes(self, batch: Batch) -> tuple[int, int]:
        """Positions that really go through the model: those that are not padding, and all."""
        parts = halves(batch)
        return sum(half.num_tokens for half in parts), sum(half.num_positions for half in parts)

    def train(self, *, is_training: bool) -> None:
        """Training mode of every module, which is where there is noise."""
        for worker in self._workers:
            worker.split.model.train(is_training)

    def _on_both(self, batch: Batch, compute: Callable[[_Worker, Batch, int], _T]) -> list[_T]:
        """``compute`` for each half with its number, in their order."""
        parts = halves(batch)
        with numpy_math(self._workers[0].split.model):
            if len(parts) == 1:
                return [compute(self._workers[0], parts[0], 0)]
            with blas.single_threaded():
                threads = self._start_threads()
                running = [
                    threads.submit(compute, worker, half, number)
                    for number, (worker, half) in enumerate(zip(self._workers, parts, strict=True))
                ]
                return [one.result() for one in running]

    def _start_threads(self) -> ThreadPoolExecutor:
        """The two threads, kept: every new one would get a new stream of MLX, which is kept for ever."""
        if self._threads is None:
            self._workers.append(self._worker(self._workers[0].split.twin()))
            self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="mlxft-half")
        return self._threads

    def _worker(self, split: SplitModel) -> _Worker:
        return _Worker(split, Blockwise(split, self._parameters, keeps_products=self._keeps_products))

    def _put(self, parameters: FlatArrays) -> None:
        """Hand the parameters to both models, computed: streams belong to threads."""
        mx.eval(parameters)
        for worker in self._workers:
            worker.split.model.update(tree_unflatten(list(parameters.items())))

    def _arrays(self, half: Batch) -> tuple[mx.array, mx.array, tuple[mx.array, ...]]:
        """Tokens and segment ids of the inputs, each (B, T), and what the objective wants."""
        tokens, segments = mx.array(half.tokens[:, :-1]), mx.array(half.segment_ids[:, :-1])
        return tokens, segments, self._objective.arrays(half, 0)


def halves(batch: Batch) -> list[Batch]:
    """The sequences of ``batch`` in two parts of about the same work, each cut to its longest; one stays in one part.

    They are ordered by length and divided where the larger of the two rectangles is smallest. Sequences of padding
    alone are left out.
    """
    lengths = batch.lengths
    order = [int(index) for index in np.argsort(-lengths, kind="stable") if lengths[index]]
    if len(order) < 2:
        return [part_of(batch, order)]
    sizes = [max(cut * lengths[order[0]], (len(order) - cut) * lengths[order[cut]]) for cut in range(1, len(order))]
    cut = 1 + int(np.argmin(sizes))
    return [part_of(batch, sorted(order[:cut])), part_of(batch, sorted(order[cut:]))]


def part_of(batch: Batch, sequences: Sequence[int]) -> Batch:
    """Some sequences of a batch, cut behind the last token of the longest."""
    chosen = list(sequences)
    length = max((int(np.flatnonzero(batch.segment_ids[index])[-1]) for index in chosen), default=0) + 1
    tokens, loss_mask, segment_ids = (
        array[chosen, : max(2, length)] for array in (batch.tokens, batch.loss_mask, batch.segment_ids)
    )
    entering = None if batch.entering is None else batch.entering[chosen, : tokens.shape[1] - 1]
    return replace(batch, tokens=tokens, loss_mask=loss_mask, segment_ids=segment_ids, entering=entering)
