"""Measures rows token by token under two models: the file that ``monitor.microscope`` shows.

Each row goes through the models as it was trained: the same ids, the same mask, nothing before it. Only the tokens that
were learned get a loss.
"""

import hashlib
from collections.abc import Callable, Sequence

import mlx.nn as nn
import numpy as np

from mlx_finetune.dataset.token_losses import Row, Token, bounded
from mlx_finetune.dataset.token_rows import TokenRows
from mlx_finetune.dataset.token_texts import token_texts
from mlx_finetune.dataset.tokens import Tokenizer, Tokens
from mlx_finetune.dataset.typical_rows import sequence_note
from mlx_finetune.model.likelihoods import ChunkRows, LikelihoodModel, Losses, Scored


def measure_losses(
    model: nn.Module, rows: Sequence[Tokens], chunk_rows: ChunkRows, step: Callable[[int], None] | None = None
) -> list[Losses]:
    """The losses of the targets of each row, nats; ``step`` is told how many rows are done."""
    model.eval()
    scored = [Scored(row.ids, np.flatnonzero(row.loss_mask)) for row in rows]
    return LikelihoodModel(model, chunk_rows).losses(scored, step)


def hash_rows(rows: Sequence[Tokens]) -> str:
    """SHA-256 over ids and masks."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(np.ascontiguousarray(row.ids, np.int32).tobytes())
        digest.update(np.packbits(row.loss_mask).tobytes())
        digest.update(len(row.ids).to_bytes(8, "little"))
    return digest.hexdigest()


def measured_rows(
    rows: TokenRows, numbers: Sequence[int], tokenizer: Tokenizer, base: Sequence[Losses], tuned: Sequence[Losses]
) -> tuple[Row, ...]:
    """The rows ``numbers`` with their texts and both losses, which are in the same order."""
    return tuple(
        Row(rows.where(number), _tokens(rows[number], tokenizer, before, after), sequence_note(rows, number))
        for number, before, after in zip(numbers, base, tuned, strict=True)
    )


def _tokens(row: Tokens, tokenizer: Tokenizer, base: Losses, tuned: Losses) -> tuple[Token, ...]:
    pairs = iter(zip(base.tolist(), tuned.tolist(), strict=True))
    texts = token_texts(row.ids.tolist(), tokenizer)
    return tuple(
        Token(text, True, *map(bounded, next(pairs))) if is_target else Token(text, False)
        for text, is_target in zip(texts, row.loss_mask.tolist(), strict=True)
    )
