"""What a loop is handed instead of knowing tasks: how rows become tokens, and a loss that returns a sum and a count.

Adding an objective is adding a value of ``Objective``; ``loop.py`` and ``step.py`` name none of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_finetune.dataset.formats import Example
from mlx_finetune.dataset.stream import Batch
from mlx_finetune.dataset.template import TokenizedSplit, Tokenizer, tokenize
from mlx_finetune.model.segments import segment_caches
from mlx_finetune.recipe.schema import DataRecipe
from mlx_finetune.train.losses import cross_entropy_sum, target_mask

Arrays = tuple[mx.array, ...]


class ReadRows(Protocol):
    """Examples to rows of tokens; paths count from ``base``, ``progress`` is called with (done, total)."""

    def __call__(
        self,
        examples: Sequence[Example],
        tokenizer: Tokenizer,
        data: DataRecipe,
        base: Path,
        progress: Callable[[int, int], None] | None,
    ) -> TokenizedSplit: ...


@dataclass(frozen=True, slots=True)
class Objective:
    """One way to train.

    ``read_rows`` makes tokens and masks; ``arrays`` turns a batch into what ``loss`` takes after the model; ``loss``
    returns ``(loss_sum, n_targets)`` as fp32 scalars and is called under ``mx.compile`` and in evaluation alike.
    """

    name: str
    read_rows: ReadRows
    arrays: Callable[[Batch], Arrays]
    loss: Callable[..., tuple[mx.array, mx.array]]


def token_arrays(batch: Batch) -> Arrays:
    """``tokens``, ``loss_mask``, ``segment_ids``, each ``(B, T + 1)``."""
    loss_mask = mx.array(batch.loss_mask.astype(np.int32)) > 0
    return mx.array(batch.tokens), loss_mask, mx.array(batch.segment_ids)


def next_token_loss(
    model: nn.Module, tokens: mx.array, loss_mask: mx.array, segment_ids: mx.array, *, is_packed: bool
) -> tuple[mx.array, mx.array]:
    """Cross-entropy of the next token, summed over targets; documents of a pack do not see each other."""
    caches = segment_caches(model, segment_ids[:, :-1]) if is_packed else None
    logits = model(tokens[:, :-1], cache=caches)  # (B, T, V)
    return cross_entropy_sum(logits, tokens, target_mask(loss_mask, segment_ids))


def _read_as(task: str) -> ReadRows:
    def read_rows(
        examples: Sequence[Example],
        tokenizer: Tokenizer,
        data: DataRecipe,
        base: Path,
        progress: Callable[[int, int], None] | None,
    ) -> TokenizedSplit:
        return tokenize(examples, tokenizer, data, task=task, progress=progress, base=base)

    return read_rows


OBJECTIVES: dict[str, Objective] = {
    name: Objective(name, _read_as(name), token_arrays, next_token_loss) for name in ("sft", "pretrain")
}
