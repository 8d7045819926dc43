"""What a loop is handed instead of knowing tasks: how rows become tokens, and a loss that returns sums and a count.

Each objective is a module of ``objectives``; ``loop.py`` and ``step.py`` name none of them.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from mlx_finetune.dataset.ahead import Steps
from mlx_finetune.dataset.formats import Example
from mlx_finetune.dataset.stream import Batch, Stream
from mlx_finetune.dataset.token_rows import TokenRows
from mlx_finetune.dataset.tokens import TokenizedSplit, Tokenizer
from mlx_finetune.model.inside.split import SplitModel
from mlx_finetune.recipe.data import DataRecipe
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.train.ranks import ALONE, Ranks

Arrays = tuple[mx.array, ...]

#: ``score(reward, answers)``: what a run says of each ``(file:line of the problem, answer)``; ``reward`` names it.
Score = Callable[[str, Sequence[tuple[str, str]]], list[float]]


class ReadRows(Protocol):
    """Examples of a split to rows of tokens; paths count from ``base``, ``progress`` is called with (done, total)."""

    def __call__(
        self,
        examples: Sequence[Example],
        tokenizer: Tokenizer,
        data: DataRecipe,
        base: Path,
        progress: Callable[[int, int], None] | None,
    ) -> TokenizedSplit: ...


@dataclass(frozen=True, slots=True)
class Living:
    """What batches are made from that depend on the weights of the moment: ``model`` always has them.

    ``recipe`` is resolved; ``microbatch`` sequences go through the model at once. ``row_outputs`` gives what the loss
    of an objective says of every row of a batch, (B, K), without a gradient (``Trainer.row_outputs``). ``score``
    asks the runs that the recipe's rewards name, None where it names none.
    """

    model: nn.Module
    tokenizer: Tokenizer
    recipe: Recipe
    stream: Stream
    valid: TokenRows
    microbatch: int
    row_outputs: "Callable[[Objective, Batch], NDArray[np.float32]]"
    ranks: Ranks = ALONE
    score: Score | None = None


def nothing_kept(step: int) -> Mapping[str, object]:
    """Everything can be made again."""
    del step
    return {}


def nothing_restored(kept: Mapping[str, object]) -> None:
    """Nothing is needed; a fork may have been of another task."""
    del kept


@dataclass(frozen=True, slots=True)
class Live:
    """What a loop trains on and evaluates in the place of the rows themselves.

    ``kept(step)`` is what a checkpoint after ``step`` steps must hold of it, plain values that JSON takes, the same on
    every rank; ``restore`` is given that on every rank before the first step. Empty: it can be made again.
    """

    stream: Steps
    valid_batches: Sequence[Batch]
    kept: Callable[[int], Mapping[str, object]] = nothing_kept
    restore: Callable[[Mapping[str, object]], None] = nothing_restored


def count_targets(batch: Batch) -> int:
    """Tokens of the batch that are learned."""
    return batch.num_targets


def nothing_around(*_: object) -> AbstractContextManager[None]:
    """What most objectives want of the inside of a model."""
    return nullcontext()


def as_it_is(batch: Batch) -> Batch:
    """The batch."""
    return batch


def as_they_are(metrics: Mapping[str, float]) -> Mapping[str, float]:
    """The metrics."""
    return metrics


def no_advice(metrics: Mapping[str, float]) -> tuple[str, str]:
    """Nothing to say."""
    del metrics
    return "", ""


def no_advice_on_steps(steps: Sequence[Mapping[str, float]]) -> tuple[str, str]:
    """Nothing to say."""
    del steps
    return "", ""


@dataclass(frozen=True, slots=True)
class StepValue:
    """A number that the loss of every row needs, from all rows of its step or evaluation: the mean of something.

    ``rows`` measures (N, K) numbers of the rows of a batch, without a gradient; ``sums`` adds them up, and the number
    is ``finish(sum / rows)``.
    """

    rows: "Objective"
    sums: Callable[[NDArray[np.float32], Batch], float]
    finish: Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Constant:
    """What the best answer that is the same for every row comes to: its loss, and the share of rows it is right for."""

    loss: float
    accuracy: float


def no_constant(rows: TokenRows) -> Constant | None:
    """There is no such answer."""
    del rows


@dataclass(frozen=True, slots=True)
class Objective:
    """One way to train.

    ``read_rows`` makes tokens and masks; ``arrays`` turns a batch into what ``loss`` takes after the hidden states;
    ``loss(head, hidden, *arrays)`` returns sums in fp32, and is called under ``mx.compile``, block by block and in
    evaluation alike: a scalar, or (1 + M,) whose first is what is learned and whose others are those of ``metrics``, in
    their order. All are divided by ``count`` of their batches, and ``present`` makes of the means what is shown.

    ``hidden(model, *arrays)`` forms the hidden states that ``loss`` gets where they do not come from the tokens of a
    row alone, as those of an encoder-decoder model; None: from the batch's tokens. It has one graph, on a CPU too.

    ``num_outputs`` are those of the score head that it needs (``Head.scores``): 0 is no head, None one for each label
    of the training rows. ``unpackable`` says why rows cannot share a sequence, "" where they can. Of an objective that
    is a sum over positions (``is_per_position``) a single row may be computed in two parts. ``live`` makes the batches
    of an objective that learns from what the model says; without it they are the rows.

    ``around(model, segment_ids, *arrays)`` is entered while hidden states and loss are computed, forward and backward:
    for what a loss needs of the inside of a model. What it gives, unless that is None, stands in for KV caches. It is
    entered once in every thread, and under ``mx.compile``.

    ``unfold`` makes of rows the sequences that go through the model. ``settle`` adapts the objective to a loaded model
    and says what it chose, by key of the recipe.
    ``reference`` is an objective whose ``loss`` gives (B, K) numbers of the rows of a batch: they are computed once, of
    the weights before step 1, and stand behind the values of each row. ``step_value`` stands behind them again.
    ``advise`` is told the metrics of an evaluation, ``advise_steps`` those of the last steps; each says a warning and a
    hint, or nothing. ``constant`` is what somebody who never looks at a row would reach on such rows.
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
    around: Callable[..., AbstractContextManager[Sequence[object] | None]] = nothing_around
    unfold: Callable[[Batch], Batch] = as_it_is
    settle: Callable[[SplitModel], "tuple[Objective, Mapping[str, tuple[object, str]]]"] | None = None
    reference: "Objective | None" = None
    step_value: StepValue | None = None
    present: Callable[[Mapping[str, float]], Mapping[str, float]] = as_they_are
    advise: Callable[[Mapping[str, float]], tuple[str, str]] = no_advice
    advise_steps: Callable[[Sequence[Mapping[str, float]]], tuple[str, str]] = no_advice_on_steps
    live: Callable[[Living], Live] | None = None
    constant: Callable[[TokenRows], Constant | None] = no_constant


def num_outputs(objective: Objective, labels: Sequence[str]) -> int:
    """Outputs of the score head that ``objective`` needs where the training rows have these ``labels``; 0: no head."""
    return len(labels) if objective.num_outputs is None else objective.num_outputs
