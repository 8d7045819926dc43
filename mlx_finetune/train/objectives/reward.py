"""Which of two answers is better (``reward``, Ouyang et al. 2022, 2203.02155, eq. 1): one number at an answer's end.

``loss = -log sigmoid(r_w - r_l)``, ``r`` the score of the last token of prompt and answer. Both answers of a pair go
through the model side by side, as two sequences of one microbatch. The prompt of K answers is not shared, as there.
"""

from dataclasses import replace

import mlx.core as mx
import numpy as np

from mlx_finetune.dataset.pairs import FIRST, PREFIX, SECOND, WEIGHT
from mlx_finetune.dataset.stream import Batch, round_up
from mlx_finetune.dataset.token_rows import TokenRows
from mlx_finetune.recipe.heads import SCORED_TASKS
from mlx_finetune.scoring.picks import share_right
from mlx_finetune.train.losses import Head
from mlx_finetune.train.objective import Arrays, Constant, Objective
from mlx_finetune.train.objectives.classify import count_rows
from mlx_finetune.train.objectives.next_token import read_as
from mlx_finetune.train.objectives.preference.formulas import negative_log_sigmoid

_WIDTH_STEP = 32  # positions: few widths, because a GPU's functions are compiled for each


def reward() -> Objective:
    """One output; a step counts pairs."""
    return Objective(
        "reward",
        read_as("reward"),
        pair_arrays,
        pair_loss,
        metrics=("accuracy", "margin", "rewards/chosen", "rewards/rejected"),
        count=count_rows,
        unpackable=SCORED_TASKS["reward"],
        num_outputs=1,
        is_per_position=False,
        unfold=side_by_side,
        constant=equal_scores,
    )


def equal_scores(rows: TokenRows) -> Constant | None:
    """One score for all answers: every pair is a tie, which counts one half."""
    return Constant(float(rows.values[:, WEIGHT].mean() * np.log(2)), 0.5) if len(rows) else None


def side_by_side(batch: Batch) -> Batch:
    """(2 B, ...): prompt with chosen and prompt with rejected answer of each row in turn, one token more behind each.

    That token is the only target: the state before it is that of the answer's last token.
    """
    sequences = [_sequence(batch, row, answer) for row in range(len(batch.tokens)) for answer in (FIRST, SECOND)]
    longest = max(map(len, sequences))
    width = min(round_up(longest, _WIDTH_STEP), max(longest, batch.tokens.shape[1] - 1))
    tokens, segments = np.zeros((len(sequences), width + 1), np.int32), np.zeros((len(sequences), width + 1), np.int32)
    mask = np.zeros(tokens.shape, np.bool_)
    for place, ids in enumerate(sequences):
        tokens[place, : len(ids)], segments[place, : len(ids) + (len(ids) > 0)] = ids, 1
        mask[place, len(ids)] = len(ids) > 0
    values = np.repeat(batch.values, 2, axis=0)
    return replace(batch, tokens=tokens, loss_mask=mask, segment_ids=segments, values=values, entering=None)


def _sequence(batch: Batch, row: int, answer: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """The tokens of the prompt with one answer; none of a row of padding."""
    prefix, first, second = (int(batch.values[row, column]) for column in (PREFIX, FIRST, SECOND))
    start, size = (prefix, first) if answer == FIRST else (prefix + first, second)
    return np.concatenate([batch.tokens[row, :prefix], batch.tokens[row, start : start + size]])


def pair_arrays(batch: Batch, parts: int) -> Arrays:
    """Of an unfolded batch: the last position of each sequence, (2 B,), and what each pair's loss is multiplied by,
    (B,); 0 for a row of padding."""
    del parts  # the same shape for every batch of so many rows
    ends = np.argmax(batch.loss_mask[:, 1:], axis=1)
    weights = np.where(batch.loss_mask[::2].any(axis=1), batch.values[::2, WEIGHT], 0.0)
    counts = batch.loss_mask[::2].any(axis=1)
    return mx.array(ends.astype(np.int32)), mx.array(np.stack([weights, counts], axis=1).astype(np.float32))


def pair_loss(head: Head, hidden: mx.array, ends: mx.array, weights: mx.array) -> mx.array:
    """The sums over pairs of the weighted loss, of right ones, margins, and rewards of both answers; fp32.

    ``hidden`` is (2 B, T, H), ``weights`` (B, 2): that of the loss, and 1 for a pair that counts.
    """
    scores = head.scores(hidden[mx.arange(hidden.shape[0]), ends]).reshape(-1, 2)  # (B, 2)
    margins, counts = scores[:, 0] - scores[:, 1], weights[:, 1]
    losses = weights[:, 0] * negative_log_sigmoid(margins)  # Bradley-Terry
    parts = [
        losses,
        counts * share_right(mx.sign(margins)),
        counts * margins,
        counts * scores[:, 0],
        counts * scores[:, 1],
    ]
    return mx.stack([mx.sum(part) for part in parts])
