"""What leaves the frozen blocks, computed once before step 1 and given to every batch
(``hardware.planning.kept_states``).

Rows go through the model in groups that depend on their lengths and the recipe alone, each in one thread: the same bits
on every start, in memory or on disk, and after every resume. A resumed run computes them again, which costs less than
proving that a file is whole. A signal ends the pass; the loop sees it before it takes a step.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from mlx_finetune.dataset.row_states import (
    FileStore,
    MemoryStore,
    RowStates,
    States,
    Store,
    groups_by_length,
    num_states,
)
from mlx_finetune.dataset.stream import Batch, OrderedBatches, Stream, make_batch
from mlx_finetune.dataset.token_rows import TokenRows
from mlx_finetune.errors import DoesNotFitError, Problem, RecipeError
from mlx_finetune.events import Phase
from mlx_finetune.hardware.planning.auto import Resolved
from mlx_finetune.hardware.planning.disk import SPARE_BYTES, DiskPlan, free_bytes
from mlx_finetune.hardware.planning.kept_states import EVERY_BLOCK, KeptStates, way_out
from mlx_finetune.model.adapters.lora import adapter_parameters
from mlx_finetune.model.cpu.blockwise import is_chain
from mlx_finetune.model.inside.parts import num_frozen_below
from mlx_finetune.model.inside.split import SplitModel
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.train.signals import StopRequest
from mlx_finetune.train.start.rows import Emit
from mlx_finetune.train.step import Trainer
from mlx_finetune.units import format_bytes

KEY = "reuse_frozen_layers"


def settle_reuse(resolved: Resolved, split: SplitModel, asked: Recipe) -> Resolved:
    """``resolved`` as the loaded model allows it. Raises ``RecipeError`` where that is less than was asked for."""
    if resolved.kept is None:
        return resolved
    num_blocks = num_frozen_below(split.model, adapter_parameters(split.model))
    reason = ""
    if not num_blocks:
        reason = EVERY_BLOCK
    elif not split.is_split or not is_chain(split):
        reason = "the blocks of this model cannot be taken one after the other"
    if not reason:
        return replace(resolved, kept=replace(resolved.kept, num_blocks=num_blocks))
    if asked.training.reuse_frozen_layers is True:
        hint = way_out(reason)
        raise RecipeError([Problem("", f"training.{KEY} = true: {reason}", hint)])
    training = resolved.recipe.training.model_copy(update={KEY: False})
    recipe = resolved.recipe.model_copy(update={"training": training})
    return replace(resolved, recipe=recipe, reasons={**resolved.reasons, f"training.{KEY}": reason}, kept=None)


def check_states_room(kept: KeptStates | None, disk: DiskPlan, folder: Path) -> None:
    """Refuse a run whose kept states do not go onto the disk beside two checkpoints. Raises ``DoesNotFitError``."""
    if kept is None or kept.in_memory:
        return
    needed = kept.num_bytes + 2 * disk.checkpoint + SPARE_BYTES
    free = free_bytes(folder)
    if free < needed:
        raise DoesNotFitError(
            f"what leaves the frozen blocks takes {format_bytes(kept.num_bytes)} of disk; with two checkpoints "
            f"{format_bytes(needed)} are needed and {format_bytes(free)} are free where {folder} lies",
            f"make room, or compute it in every step: --set training.{KEY}=false (with --fork where a run has begun)",
        )


@contextmanager
def reused_states(
    kept: KeptStates | None,
    trainer: Trainer,
    stream: Stream,
    valid: OrderedBatches,
    folder: Path,
    stop: StopRequest,
    emit: Emit,
) -> Generator[None]:
    """Inside, the batches of ``stream`` and ``valid`` have their states, unless ``kept`` is None.

    A file lies in ``folder`` and is gone afterwards, however the process ends. Raises ``OSError`` where the disk does
    not take it.
    """
    if kept is None:
        yield
        return
    with ExitStack() as opened:
        stream.states, valid.states = None, None
        train_states = compute_states(kept, trainer, stream.all_rows, "training rows", folder, stop, emit, opened)
        valid_states = compute_states(kept, trainer, valid.rows, "validation rows", folder, stop, emit, opened)
        if not stop.signal_number:
            stream.states, valid.states = train_states, valid_states
        try:
            yield
        finally:
            stream.states, valid.states = None, None


def compute_states(
    kept: KeptStates,
    trainer: Trainer,
    rows: TokenRows,
    name: str,
    folder: Path,
    stop: StopRequest,
    emit: Emit,
    opened: ExitStack,
) -> RowStates | None:
    """The states of ``rows``; None without rows, and where a signal ended it."""
    states: RowStates | None = None
    total, done = int(num_states(rows.lengths).sum()), 0
    groups = groups_by_length(rows.lengths, kept.group_positions)
    for pair in _in_pairs(groups):
        if stop.signal_number:
            return None
        emit(Phase("compute frozen blocks", detail=name, done=done, total=total, unit="positions"))
        batches = [_batch_of(rows, group) for group in pair]
        for group, found in zip(pair, trainer.entering(batches), strict=True):
            if states is None:
                store = _store(kept, total, found, folder)
                opened.callback(store.close)
                states = RowStates(rows.lengths, store)
            for row, of_row in zip(group, found, strict=True):
                states.put(row, of_row)
        done += int(num_states(rows.lengths[np.concatenate([np.array(group) for group in pair])]).sum())
    return states


def _in_pairs(groups: Iterator[list[int]]) -> Iterator[Sequence[list[int]]]:
    while pair := list(islice(groups, 2)):
        yield pair


def _batch_of(rows: TokenRows, group: Sequence[int]) -> Batch:
    """The rows of a group, one a sequence, padded to the longest."""
    length = max(1, int(rows.lengths[list(group)].max()) - 1)
    return make_batch(rows, [[row] for row in group], num_sequences=len(group), length=length)


def _store(kept: KeptStates, num_positions: int, like: States, folder: Path) -> Store:
    width = like.shape[-1]
    if kept.in_memory:
        return MemoryStore(num_positions, width, like.dtype)
    return FileStore(folder, width, like.dtype)
