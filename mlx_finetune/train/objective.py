"""What a loop is handed instead of knowing tasks: how rows become tokens, and a loss that returns sums and a count.

Each objective is a module of ``objectives``; ``loop.py`` and ``step.py`` name none of them.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import mlx.core as mx
import mlx.nn as nn

from mlx_finetune.dataset.ahead import Steps
from mlx_finetune.dataset.formats import Example
from mlx_finetune.dataset.stream import Batch, Stream
from mlx_finetune.dataset.template import TokenizedSplit, Tokenizer
from mlx_finetune.dataset.token_rows import TokenRows
from mlx_finetune.recipe.data import DataRecipe
from mlx_finetune.recipe.schema import Recipe

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


@dataclass(frozen=True, slots=True)
class Living:
    """What batches are made from that depend on the weights of the moment: ``model`` always has them.

    ``recipe`` is resolved; ``microbatch`` sequences go through the model at once.
    """

    model: nn.Module
    tokenizer: Tokenizer
    recipe: Recipe
    stream: Stream
    valid: TokenRows
    microbatch: int


@dataclass(frozen=True, slots=True)
class Live:
    """What a loop trains on and evaluates in the place of the rows themselves."""

    stream: Steps
    valid_batches: Sequence[Batch]


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

    ``num_outputs`` are those of the score head that it needs (``Head.scores``): 0 is no head, None one for each label
    of the training rows. ``unpackable`` says why rows cannot share a sequence, "" where they can. Of an objective that
    is a sum over positions (``is_per_position``) a single row may be computed in two parts. ``live`` makes the batches
    of an objective that learns from what the model says; without it they are the rows.

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
    around: Callable[..., AbstractContextManager[None]] = nothing_around
    live: Callable[[Living], Live] | None = None


def num_outputs(objective: Objective, labels: Sequence[str]) -> int:
    """Outputs of the score head that ``objective`` needs where the training rows have these ``labels``; 0: no head."""
    return len(labels) if objective.num_outputs is None else objective.num_outputs
