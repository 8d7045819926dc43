"""A microbatch on both cores of a CPU: its rows in two halves, each computed block by block in a thread of its own.

MLX's elementwise work uses one core of a CPU, and OpenBLAS's threads wait for each other by spinning: beside one busy
process a step of 2.9 s takes 50. Two threads with one BLAS thread each need nothing of each other until the end.
SmolLM2-135M, 16 of 30 layers, 4 x 193 tokens, two idle cores of an EPYC: one thread 4.6 s, two BLAS threads 2.9 s, two
halves 2.5 s. A single row is cut along its positions (``model.cpu.context_parallel``): 1,000 tokens, all blocks, 11.0 s
in one thread, 6.7 with BLAS threads, 5.9 in two parts; 180 tokens, 16 blocks, 1.24, 0.83 and 0.79 (2026-11-26).

The division depends on the rows alone, never on the machine, and sums are formed in one order: the same bits every
time. Each half is cut to its longest row, because nothing here is compiled for a shape.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TypeVar

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_finetune.dataset.row_states import States
from mlx_finetune.dataset.stream import Batch
from mlx_finetune.hardware import blas
from mlx_finetune.model.cpu.blockwise import Blockwise
from mlx_finetune.model.cpu.context_parallel import SHORTEST, ContextPart, can_divide, parts_of
from mlx_finetune.model.cpu.cpu_math import numpy_math
from mlx_finetune.model.cpu.threads import KeptThreads
from mlx_finetune.model.inside.noise import derive_key, use_noise
from mlx_finetune.model.inside.places import Places
from mlx_finetune.model.inside.prefix import from_numpy, to_numpy
from mlx_finetune.model.inside.segments import segment_caches
from mlx_finetune.model.inside.split import SplitModel
from mlx_finetune.train.losses import Head
from mlx_finetune.train.objective import Objective
from mlx_finetune.train.optim import FlatArrays

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Worker:
    """One thread's model."""

    split: SplitModel
    blockwise: Blockwise
    places: Places


@dataclass(frozen=True, slots=True)
class _Piece:
    """What one thread computes: some rows; or a part of the positions of one, and half of its targets."""

    batch: Batch
    part: ContextPart | None


class BothCores:
    """Losses and gradients of batches of ``split.model``, with exponentials in numpy (``model.cpu.cpu_math``)."""

    def __init__(
        self,
        split: SplitModel,
        objective: Objective,
        parameters: Sequence[str],
        *,
        seed: int,
        is_packed: bool,
        keeps_products: bool,
        in_halves: bool = True,
    ) -> None:
        """The model must be a chain (``model.cpu.blockwise.is_chain``); ``parameters`` name what is learned.

        Without ``in_halves`` every microbatch stays whole, in the thread that asks, with all threads of the BLAS.
        """
        self._objective = objective
        self._parameters = tuple(parameters)
        self._seed = seed
        self._is_packed = is_packed
        self._keeps_products = keeps_products
        self._in_halves = in_halves
        self._workers = [self._worker(split)]
        self._threads = KeptThreads(2, "mlxft-half")
        self._divides: bool | None = None  # not known before the first single row

    def loss_and_gradients(
        self, parameters: FlatArrays, batch: Batch, step: int, part: int
    ) -> tuple[mx.array, FlatArrays]:
        """Sums of the objective and summed gradients of the microbatch ``part`` of ``step``, evaluated."""
        self._put(parameters)

        def compute(worker: _Worker, piece: _Piece, number: int) -> tuple[mx.array, FlatArrays]:
            labels = (step, part) if number == 0 else (step, part, number)
            tokens, segments, arrays = self._arrays(piece, self._objective)

            def loss(outer: FlatArrays, hidden: mx.array) -> mx.array:
                head = Head(worker.split, outer, uses_numpy=True, is_learning=True)
                return self._objective.loss(head, hidden, *arrays)

            noise = use_noise(derive_key(self._seed, "noise", *labels), lengths=mx.array(piece.batch.lengths))
            with noise, self._objective.around(worker.split.model, segments, *arrays) as own:
                packed = segment_caches(worker.split.model, segments) if self._is_packed else own
                caches = piece.part.caches if piece.part else packed
                entering = self._entering(piece)
                return worker.blockwise.loss_and_gradients(parameters, tokens, caches, loss, entering, piece.part)

        (_, (total, gradients)), *others = self._on_both(batch, self._objective, compute)
        rest = [found for _, found in others]
        for sums, more in rest:
            total = total + sums
            gradients = {name: gradients[name] + more[name] for name in gradients}
        mx.eval(total, gradients)
        return total, gradients

    def loss(self, parameters: FlatArrays, batch: Batch) -> mx.array:
        """Sums of the objective of a batch without noise or gradient."""
        self._put(parameters)

        first, *rest = [found.reshape(-1) for _, found in self._outputs(batch, self._objective)]
        return sum(rest, start=first)

    def row_outputs(self, parameters: FlatArrays, objective: Objective, batch: Batch) -> NDArray[np.float32]:
        """What the loss of ``objective``, which gives (B, K) numbers, says of every row of a batch, in their order."""
        self._put(parameters)
        found = {
            row: numbers
            for piece, output in self._outputs(batch, objective)
            for row, numbers in zip(piece.batch.rows, np.array(output), strict=True)
        }
        return np.stack([found[row] for row in batch.rows])

    def _outputs(self, batch: Batch, objective: Objective) -> list[tuple[_Piece, mx.array]]:
        """What the loss of ``objective`` says of each piece, without noise or gradient, evaluated."""

        def compute(worker: _Worker, piece: _Piece, _: int) -> mx.array:
            tokens, segments, arrays = self._arrays(piece, objective)
            with objective.around(worker.split.model, segments, *arrays) as own:
                packed = segment_caches(worker.split.model, segments) if piece.batch.is_packed else own
                caches = piece.part.caches if piece.part else packed
                hidden = worker.blockwise.hidden(tokens, caches, self._entering(piece))
                if piece.part:
                    hidden = piece.part.gather(hidden)
                head = Head(worker.split, {}, uses_numpy=True, is_learning=False)
                found = objective.loss(head, hidden, *arrays)
            mx.eval(found)
            return found

        return self._on_both(batch, objective, compute)

    def entering(self, batches: Sequence[Batch]) -> list[States]:
        """What enters the lowest block that learns, (B, T, H), for at most two batches, each on a core of its own."""

        def compute(worker: _Worker, batch: Batch) -> States:
            return to_numpy(worker.blockwise.entering(mx.array(batch.tokens[:, :-1])))

        with numpy_math(self._workers[0].split.model), blas.single_threaded():
            threads = self._start_threads()
            return list(threads.map(compute, self._workers, batches))

    def sizes(self, batch: Batch) -> tuple[int, int]:
        """Positions that really go through the model: those that are not padding, and all."""
        parts = self._rows(batch, self._objective)
        return sum(half.num_tokens for half in parts), sum(half.num_positions for half in parts)

    def train(self, *, is_training: bool) -> None:
        """Training mode of every module, which is where there is noise."""
        for worker in self._workers:
            if worker.split.model.training != is_training:
                worker.split.model.train(is_training)

    def _on_both(
        self, batch: Batch, objective: Objective, compute: Callable[[_Worker, _Piece, int], _T]
    ) -> list[tuple[_Piece, _T]]:
        """``compute`` for each piece with its number, in their order."""
        pieces = self._pieces(batch, objective)

        def run(worker: _Worker, piece: _Piece, number: int) -> _T:
            with piece.part.link.telling(number) if piece.part else nullcontext():
                return compute(worker, piece, number)

        with numpy_math(self._workers[0].split.model):
            if len(pieces) == 1:
                return [(pieces[0], compute(self._workers[0], pieces[0], 0))]
            with blas.single_threaded():
                threads = self._start_threads()
                running = [
                    threads.submit(run, worker, piece, number)
                    for number, (worker, piece) in enumerate(zip(self._workers, pieces, strict=True))
                ]
                return [(piece, one.result()) for piece, one in zip(pieces, running, strict=True)]

    def _pieces(self, batch: Batch, objective: Objective) -> list[_Piece]:
        """Two halves of the rows; a single row is cut along its positions where the model allows it."""
        parts = self._rows(batch, objective)
        num_positions = parts[0].tokens.shape[1] - 1
        if len(parts) == 2 or num_positions < SHORTEST or not self._can_divide():
            return [_Piece(half, None) for half in parts]
        self._start_threads()
        return [_Piece(parts[0], part) for part in parts_of([one.split for one in self._workers], num_positions)]

    def _rows(self, batch: Batch, objective: Objective) -> list[Batch]:
        """The rows that are not padding alone, as sequences: in two parts, or in one."""
        whole = [part_of(batch, [int(row) for row in np.flatnonzero(batch.lengths)])]
        return [_unfolded(part, objective) for part in (halves(batch) if self._in_halves else whole)]

    def _can_divide(self) -> bool:
        if self._divides is None:
            may_divide = self._in_halves and not self._is_packed and self._objective.is_per_position
            self._divides = may_divide and can_divide(self._workers[0].split)
        return self._divides

    def close(self) -> None:
        """End the threads (``KeptThreads.close``); later calls start new ones."""
        self._threads.close()

    def _start_threads(self) -> ThreadPoolExecutor:
        """The two threads, with a model for each."""
        if len(self._workers) == 1:
            self._workers.append(self._worker(self._workers[0].split.twin()))
        return self._threads.pool()

    def _worker(self, split: SplitModel) -> _Worker:
        blockwise = Blockwise(split, self._parameters, keeps_products=self._keeps_products)
        return _Worker(split, blockwise, Places(split.model, self._parameters))

    def _put(self, parameters: FlatArrays) -> None:
        """Hand the parameters to both models, computed: streams belong to threads."""
        mx.eval(parameters)
        for worker in self._workers:
            worker.places.put(parameters)

    def _arrays(self, piece: _Piece, objective: Objective) -> tuple[mx.array, mx.array, tuple[mx.array, ...]]:
        """Tokens and segment ids of the inputs, each (B, T), and what the objective wants."""
        tokens, segments = (mx.array(array[:, :-1]) for array in (piece.batch.tokens, piece.batch.segment_ids))
        if piece.part is None:
            return tokens, segments, objective.arrays(piece.batch, 0)
        targets = half_of_targets(piece.batch, piece.part.number)
        return piece.part.own(tokens), piece.part.own(segments), objective.arrays(targets, 0)

    def _entering(self, piece: _Piece) -> mx.array | None:
        """What enters the lowest block that learns, (B, T, H), where it has been computed before."""
        states = from_numpy(piece.batch.entering)
        return piece.part.own(states) if piece.part and states is not None else states


def _unfolded(batch: Batch, objective: Objective) -> Batch:
    """The sequences that go through the model, cut behind the longest."""
    unfolded = objective.unfold(batch)
    return batch if unfolded is batch else part_of(unfolded, range(len(unfolded.tokens)))


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
    rows = batch.rows if batch.is_packed else tuple(batch.rows[index] for index in chosen if index < len(batch.rows))
    return replace(
        batch,
        tokens=tokens,
        loss_mask=loss_mask,
        segment_ids=segment_ids,
        rows=rows,
        entering=entering,
        values=batch.values[chosen] if len(batch.values) else batch.values,
    )


def half_of_targets(batch: Batch, number: int) -> Batch:
    """A batch of one sequence with the first (0) or the second (1) half of its targets."""
    positions = batch.target_positions
    cut = int(positions[len(positions) // 2]) + 1 if len(positions) else 0  # the token that position predicts
    loss_mask = batch.loss_mask.copy()
    loss_mask[:, cut:] &= number == 1
    loss_mask[:, :cut] &= number == 0
    return replace(batch, loss_mask=loss_mask)
