"""What a loop is handed instead of knowing tasks: how rows become tokens, and a loss that returns a sum and a count.

Adding an objective is adding a value of ``Objective``; ``loop.py`` and ``step.py`` name none of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import mlx.core as mx
import numpy as np

from mlx_finetune.dataset.formats import Example
from mlx_finetune.dataset.stream import Batch, round_up
from mlx_finetune.dataset.template import TokenizedSplit, Tokenizer, tokenize
from mlx_finetune.recipe.data import DataRecipe
from mlx_finetune.train.losses import Head

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
class Objective:
    """One way to train.

    ``read_rows`` makes tokens and masks; ``arrays`` turns a batch into what ``loss`` takes after the hidden states;
    ``loss(head, hidden, *arrays)`` returns a sum, an fp32 scalar, and is called under ``mx.compile``, block by block
    and in evaluation alike. What the sum is divided by is ``Batch.num_targets``.
    """

    name: str
    read_rows: ReadRows
    arrays: Callable[[Batch, int], Arrays]
    loss: Callable[..., mx.array]


def target_arrays(batch: Batch, parts: int) -> Arrays:
    """Where the targets are predicted from, (N,) of the flat (B T), and the tokens to predict, (N,); -1 is padding.

    With ``parts`` N is rounded up to the next of so many sizes, so that compiled functions see few shapes; 0: exact.
    """
    positions, targets = batch.target_positions, batch.target_tokens
    if parts:
        size = -(-batch.num_positions // parts)
        padding = (0, round_up(len(positions), size) - len(positions))
        positions, targets = np.pad(positions, padding), np.pad(targets, padding, constant_values=-1)
    return mx.array(positions), mx.array(targets)


def next_token_loss(head: Head, hidden: mx.array, positions: mx.array, targets: mx.array) -> mx.array:
    """Cross-entropy of the next token, summed over targets. ``hidden`` is (B, T, H)."""
    rows = mx.take(hidden.reshape(-1, hidden.shape[-1]), positions, axis=0)  # (N, H)
    return head.cross_entropy(rows, targets)


def _read_as(task: str) -> ReadRows:
    def read_rows(
        examples: Sequence[Example],
        tokenizer: Tokenizer,
        data: DataRecipe,
        base: Path,
        progress: Callable[[int, int], None] | None,
        split: str,
    ) -> TokenizedSplit:
        return tokenize(examples, tokenizer, data, task=task, progress=progress, base=base, split=split)

    return read_rows


OBJECTIVES: dict[str, Objective] = {
    name: Objective(name, _read_as(name), target_arrays, next_token_loss) for name in ("sft", "pretrain")
}
