"""Sums of cross-entropy, never means, and the count they are divided by at the very end.

The only place that shifts by one: inputs are ``tokens[:, :-1]``, targets ``tokens[:, 1:]``, and a target counts if
its loss mask is set and it lies in the same document as the token it is predicted from, so the first token of a
document is never a target. mlx-lm's ``default_loss`` counts one padding token a row; this does not.
"""

import mlx.core as mx
import mlx.nn as nn


def target_mask(loss_mask: mx.array, segment_ids: mx.array) -> mx.array:
    """Which of the T predictions count, ``(B, T)`` bool, from ``(B, T + 1)`` mask and segment ids (0 is padding)."""
    same_document = (segment_ids[:, 1:] == segment_ids[:, :-1]) & (segment_ids[:, 1:] > 0)
    return loss_mask[:, 1:] & same_document


def cross_entropy_sum(logits: mx.array, tokens: mx.array, mask: mx.array) -> tuple[mx.array, mx.array]:
    """``(loss_sum, n_targets)``: nats summed over targets in fp32, and their number in fp32.

    ``logits`` is ``(B, T, V)``, ``tokens`` ``(B, T + 1)``, ``mask`` ``(B, T)``. With uniform logits the mean is
    ``ln V``. ``loss = sum_i mask_i * (logsumexp(logits_i) - logits_i[target_i])``.
    """
    losses = nn.losses.cross_entropy(logits.astype(mx.float32), tokens[:, 1:])  # (B, T), fp32
    return mx.sum(mx.where(mask, losses, 0.0)), mx.sum(mask).astype(mx.float32)
