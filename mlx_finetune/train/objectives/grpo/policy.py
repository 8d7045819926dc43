"""The objective of ``grpo``: what the loss is, and which rows it starts from.

Dr. GRPO (2503.20783) with one update for each batch of answers, over the N answers of a step:
``loss = -sum_i A_i sum_t log pi(y_it) / (N max_tokens)``. The ratio to the policy that gave them is 1, so nothing is
clipped. With several updates the surrogate of 2402.03300 (eq. 3) takes its place, token by token:
``loss = -sum_i sum_t min(r_it A_i, clip(r_it, 1 - e, 1 + e) A_i) / (N max_tokens)``, with the ratio
``r_it = pi(y_it) / pi_old(y_it)``. Its gradient at ``pi = pi_old`` is that of the first form. The divisor is a
constant: a mean over each answer's own length (2402.03300) makes long wrong answers cheap. No KL term.

``pi_old`` is the policy at the time of drawing, computed with the forward pass of training: what the decoder says
differs by its rounding (1e-3 in fp32, more in bf16), and the ratio would not begin at 1.

``A_i = R_i - mean(R)`` over an answer's group. Dividing by the group's spread, as in 2402.03300, is left to the recipe.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import mlx.core as mx
import numpy as np

from mlx_finetune.dataset.stream import Batch
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.train.losses import Head
from mlx_finetune.train.objective import Arrays, Objective, as_they_are
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

_DROPPED = "dropped_groups"
_CLIPPED, _LEARNED = "clipped_tokens", "learned_tokens"


def grpo(recipe: Recipe) -> Objective:
    """Rows are those of sft: questions with their reference answers."""
    settings = recipe.grpo
    one_update = Objective(
        "grpo",
        read_as("sft"),
        policy_arrays,
        partial(policy_loss, max_tokens=settings.max_tokens),
        metrics=("reward", _DROPPED, "answer_tokens"),
        present=_known,
        advise_steps=advise,
        count=count_answers,
        unpackable="every answer has a reward of its own",
        is_per_position=False,
        live=partial(live_batches, log_probs=None),
    )
    if settings.updates == 1:
        return one_update
    log_probs = replace(
        one_update,
        arrays=partial(policy_arrays, width=settings.max_tokens),
        loss=answer_log_probs,
        metrics=(),
        present=as_they_are,
        live=None,
    )
    return replace(
        one_update,
        arrays=clipped_arrays,
        loss=partial(clipped_loss, max_tokens=settings.max_tokens, clip=settings.clip),
        metrics=(*one_update.metrics, _CLIPPED, _LEARNED),
        present=_share_clipped,
        live=partial(live_batches, log_probs=log_probs),
    )


def count_answers(batch: Batch) -> int:
    """Answers that the batch stands for; a row that no answer was drawn for yet stands for one."""
    return round(float(batch.values[:, NUM_ANSWERS].sum())) if batch.values.shape[1] else len(batch.rows)


def policy_arrays(batch: Batch, parts: int, *, width: int = 0) -> Arrays:
    """Where the tokens of each answer are predicted from and which they are, (B, N), -1 behind the last; the values.

    N is ``width``, else that of the longest answer, or T where there are ``parts``, so that shapes are few. Rows
    without values, which only measure what a step costs, count with an advantage of 1.
    """
    own = batch.loss_mask[:, 1:] & (batch.segment_ids[:, 1:] > 0)
    lengths = np.count_nonzero(own, axis=1)
    width = width or (own.shape[1] if parts else max(1, int(lengths.max(initial=0))))
    sources, targets = np.zeros((len(own), width), np.int32), np.full((len(own), width), -1, np.int32)
    for row, length in enumerate(lengths):
        places = np.flatnonzero(own[row])
        sources[row, :length], targets[row, :length] = places, batch.tokens[row, places + 1]
    values = np.zeros((len(own), NUM_VALUES), np.float32)
    if batch.values.shape[1]:
        values[: len(batch.values)] = batch.values[:, :NUM_VALUES]
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


def answer_log_probs(head: Head, hidden: mx.array, sources: mx.array, targets: mx.array, values: mx.array) -> mx.array:
    """What each token of each answer has as its log-probability, (B, N) fp32, 0 behind the last. (B, T, H) in."""
    del values
    rows = range(hidden.shape[0])
    return mx.stack([head.log_probs(hidden[row][sources[row]], targets[row]) for row in rows])


def clipped_arrays(batch: Batch, parts: int) -> Arrays:
    """``policy_arrays``, and the log-probabilities of drawing, (B, N), which stand behind the values of each row."""
    sources, targets, values = policy_arrays(batch, parts)
    old = np.zeros(targets.shape, np.float32)
    found = batch.values[:, NUM_VALUES : NUM_VALUES + old.shape[1]]
    old[: found.shape[0], : found.shape[1]] = found
    return sources, targets, values, mx.array(old)


def clipped_loss(
    head: Head,
    hidden: mx.array,
    sources: mx.array,
    targets: mx.array,
    values: mx.array,
    old: mx.array,
    *,
    max_tokens: int,
    clip: float,
) -> mx.array:
    """The sums of ``policy_loss`` with the clipped surrogate, and behind them clipped tokens and all that are learned.

    Tokens whose advantage is 0 are not learned.
    """
    total, num_clipped, num_learned = mx.array(0.0), mx.array(0.0), mx.array(0.0)
    for row in range(hidden.shape[0]):
        advantage, counts = values[row, ADVANTAGE], targets[row] >= 0  # (N,)
        new = head.log_probs(hidden[row][sources[row]], targets[row])
        gain, is_clipped = clipped_surrogate(new, old[row], advantage, clip)
        total = total - mx.sum(mx.where(counts, gain, 0.0))
        num_clipped = num_clipped + mx.sum(counts & is_clipped)
        num_learned = num_learned + mx.sum(counts & (advantage != 0))
    sums = mx.sum(values, axis=0)
    loss = total / max_tokens + sums[MISSED]
    return mx.stack([loss, sums[REWARD], sums[DROPPED], sums[TOKENS], num_clipped, num_learned])


def clipped_surrogate(new: mx.array, old: mx.array, advantage: mx.array, clip: float) -> tuple[mx.array, mx.array]:
    """``min(r A, clip(r, 1 - e, 1 + e) A)`` with ``r = exp(new - old)``, (N,), and where it is constant, bool (N,).

    ``new`` and ``old`` are log-probabilities (N,), ``advantage`` is A, ``clip`` is e. Clipped is what has gone too far:
    r above 1 + e where A > 0, below 1 - e where A < 0. e = 0.2: r = 1.5 gives 1.2 A for A > 0 and 1.5 A for A < 0.
    """
    ratio = mx.exp(new - old)
    is_clipped = ((advantage > 0) & (ratio > 1 + clip)) | ((advantage < 0) & (ratio < 1 - clip))
    bound = mx.where(advantage > 0, 1 + clip, 1 - clip)
    return mx.where(is_clipped, bound, ratio) * advantage, is_clipped


def advise(steps: Sequence[Mapping[str, float]]) -> tuple[str, str]:
    """What to say of the metrics of the last steps, and what to do: something where none of them taught anything."""
    if any(metrics[_DROPPED] < 1 for metrics in steps):
        return "", ""
    return (
        f"the last {len(steps)} steps taught it nothing: in every group the rewards were all equal",
        "take easier problems, a model that solves some of them, another reward, or a larger grpo.group_size",
    )


def _known(metrics: Mapping[str, float]) -> Mapping[str, float]:
    """Answers of an evaluation are in no group that could be dropped."""
    return {name: value for name, value in metrics.items() if not math.isnan(value)}


def _share_clipped(metrics: Mapping[str, float]) -> Mapping[str, float]:
    """The clipped tokens as a share of those that are learned; nothing of them where nothing is, as in evaluations."""
    shown = {name: value for name, value in _known(metrics).items() if name not in (_CLIPPED, _LEARNED)}
    return shown | {_CLIPPED: metrics[_CLIPPED] / metrics[_LEARNED]} if metrics[_LEARNED] else shown
