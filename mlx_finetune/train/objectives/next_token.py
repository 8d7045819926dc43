"""The next token of answers (``sft``) or of whole texts (``pretrain``): cross-entropy at targets."""

from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_finetune.dataset.formats import Example
from mlx_finetune.dataset.pairs import tokenize_rows
from mlx_finetune.dataset.stream import Batch, round_up
from mlx_finetune.dataset.tokens import TokenizedSplit, Tokenizer
from mlx_finetune.recipe.data import DataRecipe
from mlx_finetune.train.losses import Head
from mlx_finetune.train.objective import Arrays, Objective, ReadRows


def next_token(task: str) -> Objective:
    """``sft`` or ``pretrain``, which differ in the rows they take and in their masks."""
    return Objective(task, read_as(task), target_arrays, next_token_loss)


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


def next_token_loss(
    head: Head, hidden: mx.array, positions: mx.array, targets: mx.array, z_loss: float = 0.0
) -> mx.array:
    """Cross-entropy of the next token, summed over targets, with ``z_loss`` as in ``Head``. ``hidden`` is (B, T, H)."""
    rows = mx.take(hidden.reshape(-1, hidden.shape[-1]), positions, axis=0)  # (N, H)
    return head.cross_entropy(rows, targets, z_loss)


def read_as(task: str) -> ReadRows:
    """Rows of tokens as ``task`` wants them (``dataset.pairs.tokenize_rows``)."""

    def read_rows(
        examples: Sequence[Example],
        tokenizer: Tokenizer,
        data: DataRecipe,
        base: Path,
        progress: Callable[[int, int], None] | None,
    ) -> TokenizedSplit:
        return tokenize_rows(examples, tokenizer, data, task=task, progress=progress, base=base)

    return read_rows
