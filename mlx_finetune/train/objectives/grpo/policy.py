"""The objective of ``grpo``: what the loss is, and which rows it starts from.

Dr. GRPO (2503.20783) with one update for each batch of answers, over the N answers of a step:
``loss = -sum_i A_i sum_t log pi(y_it) / (N max_tokens)``. The ratio to the policy that gave them is 1, so nothing is
clipped. The divisor is a constant: a mean over each answer's own length (2402.03300) makes long wrong answers cheap.
No KL term.

``A_i = R_i - mean(R)`` over an answer's group. Dividing by the group's spread, as in 2402.03300, is left to the recipe.
"""

from functools import partial

import mlx.core as mx
import numpy as np

from mlx_finetune.dataset.stream import Batch
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.train.losses import Head
from mlx_finetune.train.objective import Arrays, Objective
from mlx_finetune.train.objectives.grpo.rollouts import live_batches
from mlx_finetune.train.objectives.grpo.values import (
    ADVANTAGE,
    DROPPED,
    MISSED,
    NUM_ANSWERS,
    NUM_VALUES,
    REWARD,
    TOKENS,
)
from mlx_finetune.train.objectives.next_token import read_as


def grpo(recipe: Recipe) -> Objective:
    """Rows are those of sft: questions with their reference answers."""
    return Objective(
        "grpo",
        read_as("sft"),
        policy_arrays,
        partial(policy_loss, max_tokens=recipe.grpo.max_tokens),
        metrics=("reward", "dropped_groups", "answer_tokens"),
        count=count_answers,
        unpackable="every answer has a reward of its own",
        is_per_position=False,
        live=live_batches,
    )


def count_answers(batch: Batch) -> int:
    """Answers that the batch stands for; a row that no answer was drawn for yet stands for one."""
    return round(float(batch.values[:, NUM_ANSWERS].sum())) if batch.values.shape[1] else len(batch.rows)


def policy_arrays(batch: Batch, parts: int) -> Arrays:
    """Where the tokens of each answer are predicted from and which they are, (B, N), -1 behind the last; the values.

    N is that of the longest answer, or T where there are ``parts``, so that shapes are few. Rows without values, which
    only measure what a step costs, count with an advantage of 1.
    """
    own = batch.loss_mask[:, 1:] & (batch.segment_ids[:, 1:] > 0)
    lengths = np.count_nonzero(own, axis=1)
    width = own.shape[1] if parts else max(1, int(lengths.max(initial=0)))
    sources, targets = np.zeros((len(own), width), np.int32), np.full((len(own), width), -1, np.int32)
    for row, length in enumerate(lengths):
        places = np.flatnonzero(own[row])
        sources[row, :length], targets[row, :length] = places, batch.tokens[row, places + 1]
    values = np.zeros((len(own), NUM_VALUES), np.float32)
    if batch.values.shape[1]:
        values[: len(batch.values)] = batch.values
    else:
        values[:, ADVANTAGE] = 1.0
    return mx.array(sources), mx.array(targets), mx.array(values)


def policy_loss(
    head: Head, hidden: mx.array, sources: mx.array, targets: mx.array, values: mx.array, *, max_tokens: int
) -> mx.array:
    """Sums over answers: the loss, rewards, answers of dropped groups, tokens of answers; fp32. ``hidden`` (B, T, H).

    In an evaluation the loss is a constant of the batch: the reward that was missed.
    """
    total = mx.array(0.0)
    for row in range(hidden.shape[0]):
        states = hidden[row][sources[row]]  # (N, H)
        total = total + values[row, ADVANTAGE] * head.cross_entropy(states, targets[row])
    sums = mx.sum(values, axis=0)
    loss = total / max_tokens + sums[MISSED]
    return mx.stack([loss, sums[REWARD], sums[DROPPED], sums[TOKENS]])
