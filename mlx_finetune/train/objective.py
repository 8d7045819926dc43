"""What a loop is handed instead of knowing tasks: how rows become tokens, and a loss that returns sums and a count.

Each objective is a module of ``objectives``; ``loop.py`` and ``step.py`` name none of them.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import mlx.core as mx

from mlx_finetune.dataset.formats import Example
from mlx_finetune.dataset.stream import Batch
from mlx_finetune.dataset.template import TokenizedSplit, Tokenizer
from mlx_finetune.recipe.data import DataRecipe

Arrays = tuple[mx.array, ...]


class ReadRows(Protocol):
    """Examples of a split to rows of tokens; paths count from ``base``, ``progress`` is called with (done, total)."""

    def __call__(
        self,
        examples: Sequence[Example],
        tokenizer: Tokenizer,
        data: DataRecipe,
        base: Path,
        progress: Callable[[int, int], None] | None,
        split: str,
    ) -> TokenizedSplit: ...


def count_targets(batch: Batch) -> int:
    """Tokens of the batch that are learned."""
    return batch.num_targets


def nothing_around(*_: object) -> AbstractContextManager[None]:
    """What most objectives want of the inside of a model."""
    return nullcontext()


@dataclass(frozen=True, slots=True)
class Objective:
    """One way to train.

    ``read_rows`` makes tokens and masks; ``arrays`` turns a batch into what ``loss`` takes after the hidden states;
    ``loss(head, hidden, *arrays)`` returns sums in fp32, and is called under ``mx.compile``, block by block and in
    evaluation alike: a scalar, or (1 + M,) whose first is what is learned and whose others are those of ``metrics``, in
    their order. All are divided by ``count`` of their batches.

    ``hidden(model, *arrays)`` forms the hidden states that ``loss`` gets where they do not come from the tokens of a
    row alone, as those of an encoder-decoder model; None: from the batch's tokens. It has one graph, on a CPU too.

    ``num_outputs`` are those of the score head that it needs (``Head.scores``): 0 is no head, None one for each label
    of the training rows. ``unpackable`` says why rows cannot share a sequence, "" where they can. Of an objective that
    is a sum over positions (``is_per_position``) a single row may be computed in two parts.

    ``around(model, segment_ids, *arrays)`` is entered while hidden states and loss are computed, forward and backward:
    for what a loss needs of the inside of a model. It is entered once in every thread, and under ``mx.compile``.
    """

    name: str
    read_rows: ReadRows
    arrays: Callable[[Batch, int], Arrays]
    loss: Callable[..., mx.array]
    metrics: tuple[str, ...] = ()
    count: Callable[[Batch], int] = count_targets
    unpackable: str = ""
    num_outputs: int | None = 0
    is_per_position: bool = True
    hidden: Callable[..., mx.array] | None = None
    around: Callable[..., AbstractContextManager[None]] = nothing_around


def num_outputs(objective: Objective, labels: Sequence[str]) -> int:
    """Outputs of the score head that ``objective`` needs where the training rows have these ``labels``; 0: no head."""
    return len(labels) if objective.num_outputs is None else objective.num_outputs
