"""Is an answer right (``verifier``, Cobbe et al. 2021, 2110.14168): one number at every token of the answer.

``loss = mean_t BCE(sigmoid(s_t), y) + w mean_t CE_t`` over the tokens ``t`` of an answer, its end included; every
answer counts alike, so a step counts rows. The paper takes squared errors for the first term and means over all tokens;
``w`` is its 1, and 0 leaves the second term out. The verdict on an answer is that of its last token.
"""

from functools import partial

import mlx.core as mx
import numpy as np

from mlx_finetune.dataset.stream import Batch, round_up
from mlx_finetune.recipe.heads import SCORED_TASKS
from mlx_finetune.train.losses import Head
from mlx_finetune.train.objective import Arrays, Objective
from mlx_finetune.train.objectives.classify import commonest, count_rows
from mlx_finetune.train.objectives.next_token import read_as


def verifier(lm_loss_weight: float) -> Objective:
    """One output; ``lm_loss_weight`` is ``w``."""
    return Objective(
        "verifier",
        read_as("verifier"),
        partial(verdict_arrays, learns_tokens=lm_loss_weight > 0),
        partial(verdict_loss, lm_loss_weight=lm_loss_weight),
        metrics=("accuracy", "verdict_loss"),
        count=count_rows,
        unpackable=SCORED_TASKS["verifier"],
        num_outputs=1,
        is_per_position=False,
        constant=commonest,
    )


def verdict_arrays(batch: Batch, parts: int, *, learns_tokens: bool) -> Arrays:
    """Weights of the states (B, T), 1 / n at each of the n tokens of an answer; the last of them and the verdict, (B,).

    With ``learns_tokens`` also where the tokens of all answers are predicted from (of the flat (B T)), which they are
    and 1 / n, (N,); N is rounded up where there are ``parts``, so that compiled functions see few shapes.
    """
    own = batch.loss_mask[:, :-1]
    lengths = np.count_nonzero(own, axis=1)
    weights = own / np.maximum(lengths, 1)[:, None]
    ends = own.shape[1] - 1 - np.argmax(own[:, ::-1], axis=1)
    verdicts = np.zeros(len(own), np.float32)
    verdicts[: len(batch.rows)] = batch.values[: len(batch.rows), 0]
    arrays = (mx.array(weights.astype(np.float32)), mx.array(ends.astype(np.int32)), mx.array(verdicts))
    if not learns_tokens:
        return arrays
    places = np.flatnonzero(own)
    more = (0, round_up(len(places), -(-own.size // parts)) - len(places)) if parts else (0, 0)
    found = (places - 1, batch.tokens[:, :-1].reshape(-1)[places], weights.reshape(-1)[places])
    sources, targets, shares = (np.pad(one, more) for one in found)  # what is added weighs nothing
    return (
        *arrays,
        mx.array(sources.astype(np.int32)),
        mx.array(targets.astype(np.int32)),
        mx.array(shares.astype(np.float32)),
    )


def verdict_loss(
    head: Head,
    hidden: mx.array,
    weights: mx.array,
    ends: mx.array,
    verdicts: mx.array,
    *tokens: mx.array,
    lm_loss_weight: float,
) -> mx.array:
    """The sums over rows of the loss, of right verdicts, and of the loss of the verdict alone; fp32.

    ``hidden`` is (B, T, H). BCE of a score s and verdict y is ``log(1 + exp(s)) - y s``.
    """
    scores = head.scores(hidden)[:, :, 0]  # (B, T)
    losses = mx.sum(weights * (mx.logaddexp(scores, 0.0) - verdicts[:, None] * scores), axis=1)  # (B,)
    counts = mx.sum(weights, axis=1) > 0
    last = scores[mx.arange(scores.shape[0]), ends]
    right = counts & ((last > 0) == (verdicts > 0.5))
    verdict = mx.sum(losses)
    total = verdict
    if tokens:
        sources, targets, shares = tokens
        states = mx.take(hidden.reshape(-1, hidden.shape[-1]), sources, axis=0)  # (N, H)
        total = total - lm_loss_weight * mx.sum(shares * head.log_probs(states, targets))
    return mx.stack([total, mx.sum(right.astype(mx.float32)), verdict])
