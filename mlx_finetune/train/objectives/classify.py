"""The label of a text (``classify``): cross-entropy over the labels at the state of the text's last token.

A row has one target, the token after its text, which is no word of it: what "predicts" that token is the last real
one. So ``Batch.target_positions`` are the states that are scored, padding on the right is never read, and a step counts
rows. The head of tokens has no part in it.
"""

import mlx.core as mx
import numpy as np

from mlx_finetune.dataset.stream import Batch
from mlx_finetune.dataset.token_rows import TokenRows
from mlx_finetune.recipe.heads import SCORED_TASKS
from mlx_finetune.train.losses import Head
from mlx_finetune.train.objective import Arrays, Constant, Objective
from mlx_finetune.train.objectives.next_token import read_as


def classify() -> Objective:
    """One output for each label of the training rows."""
    return Objective(
        "classify",
        read_as("classify"),
        label_arrays,
        label_loss,
        metrics=("accuracy",),
        count=count_rows,
        unpackable=SCORED_TASKS["classify"],
        num_outputs=None,
        is_per_position=False,
        constant=commonest,
    )


def commonest(rows: TokenRows) -> Constant | None:
    """Every class at its share of ``rows``: the entropy of the shares, and the share of the commonest."""
    if not len(rows):
        return None
    shares = np.unique(rows.values[:, 0], return_counts=True)[1] / len(rows)
    return Constant(float(-(shares * np.log(shares)).sum()), float(shares.max()))


def count_rows(batch: Batch) -> int:
    """Rows of the batch."""
    return len(batch.rows)


def label_arrays(batch: Batch, parts: int) -> Arrays:
    """The position of each row's last token, (B,), and the number of its label, (B,); -1 for a row of padding."""
    del parts  # the same shape for every batch of so many rows
    ends = np.argmax(batch.loss_mask[:, 1:], axis=1)
    labels = np.full(len(ends), -1)
    labels[: len(batch.rows)] = batch.values[: len(batch.rows), 0]
    return mx.array(ends.astype(np.int32)), mx.array(labels.astype(np.int32))


def label_loss(head: Head, hidden: mx.array, ends: mx.array, labels: mx.array) -> mx.array:
    """``sum_i logsumexp(s_i) - s_i[y_i]`` over rows, fp32, and how many scores are highest at the label.

    ``hidden`` is (B, T, H), ``s`` (B, n).
    """
    scores = head.scores(hidden[mx.arange(hidden.shape[0]), ends])  # (B, n)
    counts, safe = labels >= 0, mx.maximum(labels, 0)
    picked = mx.take_along_axis(scores, safe[:, None], axis=1)[:, 0]
    losses = mx.where(counts, mx.logsumexp(scores, axis=1) - picked, 0.0)
    right = counts & (mx.argmax(scores, axis=1) == safe)
    return mx.stack([mx.sum(losses), mx.sum(right.astype(mx.float32))])
