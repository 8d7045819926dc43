"""Which rows each optimizer step sees, as batches of a few fixed shapes.

The order is a pure function of (seed, epoch, lengths): nothing is carried from step to step, so position ``k`` is
found by arithmetic and a resumed run sees exactly the rows the uninterrupted one would have seen. Every row is used
once an epoch (``weight`` times, where a source has one). Rows of similar length share a batch, and the padded lengths
come from a set of at most 16, because every new shape costs MLX a trace that it keeps for ever.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import overload

import numpy as np
from numpy.typing import NDArray

from mlx_finetune.dataset.pack import pack_lengths
from mlx_finetune.dataset.row_states import RowStates, States
from mlx_finetune.dataset.token_rows import TokenRows, rows_of
from mlx_finetune.dataset.tokens import Tokens

MAX_SHAPES = 16
_WINDOW_BATCHES = 64  # rows are sorted by length inside windows of this many batches

ORDER_ID = "best-fit-1/window-sort-1/philox-1"  # kept in checkpoints; changes when the order of rows changes


@dataclass(frozen=True, slots=True)
class Batch:
    """One microbatch. ``tokens``, ``loss_mask`` and ``segment_ids`` are ``(B, T + 1)``; segment 0 is padding.

    ``rows`` are the row numbers in it, for messages about this batch; ``is_packed`` says whether a sequence may hold
    more than one row. ``part`` is its number among the microbatches of its step, on whichever rank: its noise depends
    on it. ``entering`` are the hidden states (B, T, H) that enter the lowest block that learns, where they are kept.
    ``values`` (B, K) are the numbers of each row that is not packed, then those that the stream has for it.
    """

    tokens: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]
    segment_ids: NDArray[np.int32]
    rows: tuple[int, ...]
    is_packed: bool
    part: int = 0
    entering: States | None = None
    values: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0)))

    @property
    def num_tokens(self) -> int:
        """Positions that are not padding, of the ``B * T`` that go through the model."""
        return int(np.count_nonzero(self.segment_ids[:, :-1]))

    @property
    def num_positions(self) -> int:
        """``B * T``: positions that go through the model, padding included."""
        return self.tokens.shape[0] * (self.tokens.shape[1] - 1)

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Positions of each sequence that are not padding, ``(B,)``."""
        return np.count_nonzero(self.segment_ids[:, :-1], axis=1).astype(np.int32)

    @property
    def target_positions(self) -> NDArray[np.int32]:
        """Where a target is predicted from, ``(N,)`` rising, in the flat ``B * T``: position i predicts token i + 1.

        The one place that shifts by one. A token is a target if it is masked in and lies in the same document as the
        token before it, so the first token of a document is never predicted from another document.
        """
        same = (self.segment_ids[:, 1:] == self.segment_ids[:, :-1]) & (self.segment_ids[:, 1:] > 0)
        return np.flatnonzero(self.loss_mask[:, 1:] & same).astype(np.int32)

    @property
    def target_tokens(self) -> NDArray[np.int32]:
        """The tokens that are learned, ``(N,)``, in the order of ``target_positions``."""
        return self.tokens[:, 1:].reshape(-1)[self.target_positions]

    @property
    def num_targets(self) -> int:
        """Tokens that are learned."""
        return len(self.target_positions)


def shuffled(num_rows: int, *key: int) -> NDArray[np.int64]:
    """A permutation of ``range(num_rows)`` fixed by ``key``, equal in every numpy version.

    Argsort of raw Philox-4x64 output (Salmon et al., 2011), which is specified bit for bit, unlike
    ``Generator.permutation``.
    """
    bits = np.random.Philox(seed=np.random.SeedSequence(key)).random_raw(num_rows)
    return np.argsort(bits, kind="stable")


def epoch_rows(rows: Sequence[Tokens], seed: int, epoch: int) -> NDArray[np.int64]:
    """Row numbers of one epoch in random order: ``floor(weight)`` times each, plus the fraction's turn.

    Of rows with weight 0.5 every epoch shows another half, until all were seen and it starts again.
    """
    weights = rows_of(rows).weights
    chosen: list[NDArray[np.int64]] = [np.repeat(np.arange(len(weights)), np.floor(weights).astype(np.int64))]
    fractions = np.round(weights - np.floor(weights), 9)
    for number, fraction in enumerate(sorted(set(fractions[fractions > 0].tolist()))):
        members = np.flatnonzero(fractions == fraction)
        members = members[shuffled(len(members), seed, 1, number)]
        take = max(1, round(fraction * len(members)))
        chosen.append(members[np.arange(epoch * take, (epoch + 1) * take) % len(members)])
    together = np.concatenate(chosen)
    return together[shuffled(len(together), seed, 2, epoch)]


class Stream:
    """The training rows in the order of the steps. Holds one epoch's grouping at a time."""

    def __init__(
        self,
        rows: Sequence[Tokens],
        *,
        batch_size: int,
        accumulation: int,
        packed_length: int | None,
        seed: int,
        microbatch: int | None = None,
        pieces: int = 1,
    ) -> None:
        """``packed_length`` is T of a pack, None for one row a sequence. Raises ``ValueError`` without rows.

        ``microbatch`` sequences go through the model at once, ``batch_size`` where it is None, and each of them in up
        to ``pieces`` parts: the same rows in the same steps. Groups of ``batch_size`` sequences are cut for it, or all
        of a step joined and dealt out by length.
        """
        if not rows:
            raise ValueError("a stream needs at least one row")
        self.states: RowStates | None = None  # of these rows, once somebody has computed them
        self.values: NDArray[np.float64] | None = None  # (rows, M), appended to the values that rows have
        self._rows: TokenRows = rows_of(rows)
        self._lengths = self._rows.lengths
        self._batch_size = batch_size
        self._accumulation = accumulation
        self._packed_length = packed_length
        self._seed = seed
        self._piece_size = -(-(microbatch or batch_size) // pieces)
        self._shape_step = length_step(int(self._lengths.max()) - 1)
        self._epoch = -1
        self._groups = _Groups([], batch_size, np.empty(0, np.int64))
        self._steps: list[int] = []  # steps in epoch 0, 1, ...

    @property
    def all_rows(self) -> TokenRows:
        """The rows that the row numbers of its batches count."""
        return self._rows

    @property
    def can_read_ahead(self) -> bool:
        """Which rows a step has is known before any step was taken."""
        return True

    @property
    def is_packed(self) -> bool:
        """True where a sequence may hold more than one row."""
        return self._packed_length is not None

    def steps_in_epoch(self, epoch: int) -> int:
        """Optimizer steps of one epoch; the last may have fewer microbatches."""
        while len(self._steps) <= epoch:
            num_batches = len(self._grouping(len(self._steps)))
            self._steps.append(-(-num_batches // self._accumulation))
        return self._steps[epoch]

    def total_steps(self, epochs: float) -> int:
        """Optimizer steps of ``epochs`` passes, a last part of one rounded up; at least 1."""
        whole = int(epochs)
        steps = sum(self.steps_in_epoch(epoch) for epoch in range(whole))
        if epochs > whole:
            steps += int(np.ceil((epochs - whole) * self.steps_in_epoch(whole) - 1e-9))
        return max(steps, 1)

    def locate(self, step: int) -> tuple[int, int]:
        """``(epoch, step within it)`` of the 0-based optimizer step."""
        epoch = 0
        while step >= self.steps_in_epoch(epoch):
            step -= self.steps_in_epoch(epoch)
            epoch += 1
        return epoch, step

    def progress(self, step: int) -> float:
        """Epochs done after ``step`` optimizer steps, for instance 1.25."""
        epoch, within = self.locate(step)
        return epoch + within / self.steps_in_epoch(epoch)

    def microbatches(self, step: int) -> list[Batch]:
        """The microbatches of the 0-based optimizer step, in order."""
        return self.share(step, 0, 1)

    def share(self, step: int, rank: int, size: int) -> list[Batch]:
        """The microbatches of the step that ``rank`` of ``size`` computes, in order; perhaps none.

        Together the ranks have each of them once, and about as many positions each.
        """
        parts = self._parts(step)
        costs = [math.prod(self._shape(part)) for part in parts]
        return [self._batch(parts[number], number) for number in deal(costs, size)[rank]]

    def rows(self, step: int) -> list[int]:
        """The rows of the step, on whichever rank, in order."""
        return sorted({row for part in self._parts(step) for members in part for row in members})

    def _parts(self, step: int) -> list[list[list[int]]]:
        """The sequences of every microbatch of the step, each a list of row numbers."""
        epoch, within = self.locate(step)
        return self._cut(self._grouping(epoch)[within * self._accumulation : (within + 1) * self._accumulation])

    def _cut(self, groups: Sequence[list[list[int]]]) -> list[list[list[int]]]:
        """The groups of one step as microbatches."""
        size = self._piece_size
        if size > self._batch_size and len(groups) > 1:
            joined = [sequence for group in groups for sequence in group]
            groups = [sorted(joined, key=lambda rows: sum(self._lengths[row] for row in rows))]
        return [group[at : at + size] for group in groups for at in range(0, len(group), size)]

    def shapes(self, epoch: int) -> list[list[tuple[int, int]]]:
        """``(B, T)`` of every microbatch of each step of an epoch, without building one."""
        groups, count = self._grouping(epoch), self._accumulation
        return [
            [self._shape(part) for part in self._cut(groups[at : at + count])] for at in range(0, len(groups), count)
        ]

    def _grouping(self, epoch: int) -> "_Groups":
        """The sequences of every microbatch of the epoch: those of similar length side by side, in random order."""
        if epoch != self._epoch:
            order = epoch_rows(self._rows, self._seed, epoch)
            sequences = self._packs(order, epoch) if self._packed_length else self._by_length(order)
            num_batches = -(-len(sequences) // self._batch_size)
            self._groups = _Groups(sequences, self._batch_size, shuffled(num_batches, self._seed, 4, epoch))
            self._epoch = epoch
        return self._groups

    def _packs(self, order: NDArray[np.int64], epoch: int) -> list[list[int]]:
        assert self._packed_length is not None
        packs = pack_lengths(self._lengths, self._packed_length + 1, order)
        return [packs[index] for index in shuffled(len(packs), self._seed, 3, epoch)]

    def _by_length(self, order: NDArray[np.int64]) -> NDArray[np.int64]:
        """``order`` sorted by length inside windows of some batches, rows of equal length as they came."""
        window = np.arange(len(order)) // (self._batch_size * _WINDOW_BATCHES)
        return order[np.lexsort((self._lengths[order], window))]

    def _shape(self, group: Sequence[Sequence[int]]) -> tuple[int, int]:
        if self._packed_length:
            return self._piece_size, self._packed_length
        longest = int(max(sum(self._lengths[row] for row in rows) for rows in group)) - 1
        return len(group), round_up(longest, self._shape_step)

    def _batch(self, group: Sequence[Sequence[int]], part: int) -> Batch:
        num_sequences, length = self._shape(group)
        batch = make_batch(self._rows, group, num_sequences=num_sequences, length=length, is_packed=self.is_packed)
        return replace(_with_values(batch, self.values), part=part, entering=self.states and self.states.of(batch))


class _Groups(Sequence[list[list[int]]]):
    """For every microbatch of an epoch the sequences in it, each a list of row numbers; made when they are asked for.

    A million rows as lists of their own are 100 MB.
    """

    def __init__(
        self, sequences: list[list[int]] | NDArray[np.int64], batch_size: int, order: NDArray[np.int64]
    ) -> None:
        """``sequences`` are packs, or rows that are a sequence each; ``batch_size`` make a microbatch."""
        self._sequences = sequences
        self._batch_size = batch_size
        self._order = order

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> list[list[int]]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[list[int]]]: ...
    def __getitem__(self, index: int | slice) -> list[list[int]] | list[list[list[int]]]:
        """The sequences of one microbatch, or of several."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        start = int(self._order[index]) * self._batch_size
        part = self._sequences[start : start + self._batch_size]
        return part if isinstance(part, list) else [[row] for row in part.tolist()]


def count_parts(batch_size: int, accumulation: int, microbatch: int) -> int:
    """Microbatches of a whole step of ``accumulation`` groups of ``batch_size`` sequences, as ``Stream`` cuts it."""
    if microbatch > batch_size:
        return -(-batch_size * accumulation // microbatch)
    return accumulation * -(-batch_size // microbatch)


def pieces_for(size: int, accumulation: int) -> int:
    """Into how many pieces a group of ``batch_size`` sequences is cut, so that ``size`` ranks share a step evenly.

    1 where the microbatches of a step can be dealt out whole: then dropout, too, is that of one rank.
    """
    return size // math.gcd(size, accumulation)


def deal(costs: Sequence[int], size: int) -> list[list[int]]:
    """Which of the parts each of ``size`` ranks gets: the dearest first, each to the rank with least so far."""
    hands: list[list[int]] = [[] for _ in range(size)]
    totals = [0] * size
    for number in sorted(range(len(costs)), key=lambda number: -costs[number]):
        rank = totals.index(min(totals))
        hands[rank].append(number)
        totals[rank] += costs[number]
    return [sorted(hand) for hand in hands]


def length_step(longest: int) -> int:
    """Padded lengths are multiples of this: a multiple of 8 that gives at most ``MAX_SHAPES`` of them."""
    return max(8, round_up(-(-longest // MAX_SHAPES), 8))


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of ``multiple`` that is at least ``value``, and at least ``multiple``."""
    return max(1, -(-value // multiple)) * multiple


def make_batch(
    rows: Sequence[Tokens],
    group: Sequence[Sequence[int]],
    *,
    num_sequences: int,
    length: int,
    is_packed: bool = False,
) -> Batch:
    """Rows side by side in ``(num_sequences, length + 1)`` arrays; sequences that are missing are padding."""
    shape = (num_sequences, length + 1)
    tokens = np.zeros(shape, np.int32)
    loss_mask = np.zeros(shape, np.bool_)
    segment_ids = np.zeros(shape, np.int32)
    values = [()] * num_sequences if is_packed else [rows[members[0]].values for members in group]
    for sequence, members in enumerate(group):
        start = 0
        for segment, row in enumerate(members, start=1):
            taken = rows[row]
            stop = start + len(taken.ids)
            tokens[sequence, start:stop] = taken.ids
            loss_mask[sequence, start:stop] = taken.loss_mask
            segment_ids[sequence, start:stop] = segment
            start = stop
    numbers = tuple(row for members in group for row in members)
    return Batch(tokens, loss_mask, segment_ids, numbers, is_packed, values=np.array(values).reshape(len(values), -1))


def _with_values(batch: Batch, values: NDArray[np.float64] | None) -> Batch:
    """``batch`` with what a stream knows of its rows beside the values that they have themselves."""
    if values is None:
        return batch
    return replace(batch, values=np.concatenate([batch.values, values[list(batch.rows)]], axis=1))


class OrderedBatches(Sequence[Batch]):
    """Every row once, by length, unpacked: the fixed batches of an evaluation, made as they are asked for."""

    def __init__(self, rows: Sequence[Tokens], batch_size: int) -> None:
        """The last batch may have fewer rows than ``batch_size``."""
        self.states: RowStates | None = None  # of these rows, once somebody has computed them
        self.values: NDArray[np.float64] | None = None  # (rows, M), appended to the values that rows have
        self.rows = rows_of(rows)
        self.batch_size = batch_size
        self._order = np.argsort(self.rows.lengths, kind="stable")
        self._step = length_step(int(self.rows.lengths.max()) - 1) if len(self.rows) else 0

    def __len__(self) -> int:
        return -(-len(self._order) // self.batch_size)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Batch]: ...
    def __getitem__(self, index: int | slice) -> Batch | Sequence[Batch]:
        """One batch, or a list of batches for a slice."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        start = range(len(self))[index] * self.batch_size
        chosen = self._order[start : start + self.batch_size]
        length = round_up(int(self.rows.lengths[chosen].max()) - 1, self._step)
        group = [[row] for row in chosen.tolist()]
        batch = make_batch(self.rows, group, num_sequences=len(group), length=length)
        return replace(_with_values(batch, self.values), entering=self.states and self.states.of(batch))


def ordered_batches(rows: Sequence[Tokens], batch_size: int) -> OrderedBatches:
    """Every row once, by length, unpacked: the fixed batches of an evaluation. The last one may have fewer rows."""
    return OrderedBatches(rows, batch_size)
