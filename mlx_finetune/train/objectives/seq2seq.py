"""Answers of an encoder-decoder model: cross-entropy of the decoder's tokens, its end mark included.

A row is one sequence (``dataset.two_sides``); here a batch of them is divided into what the encoder reads and what the
decoder reads, each padded to its own longest. What is padding changes no number: the encoder's keys behind a prompt's
end are hidden, and behind an answer's end nothing is a target.
"""

from typing import cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from mlx_finetune.dataset.stream import Batch, round_up
from mlx_finetune.hardware.planning.layout import why_unpackable
from mlx_finetune.model.seq2seq.t5 import Model
from mlx_finetune.train.losses import Head
from mlx_finetune.train.objective import Arrays, Objective
from mlx_finetune.train.objectives.next_token import next_token

_SIZES_A_DOUBLING = 4  # of lengths that compiled functions see: at most a quarter of a length is padding, or 7


def seq2seq() -> Objective:
    """``seq2seq``: rows with a prompt and an answer."""
    return Objective(
        "seq2seq",
        next_token("seq2seq").read_rows,
        sides,
        answer_loss,
        unpackable=why_unpackable("t5"),
        is_per_position=False,
        hidden=answer_states,
    )


def sides(batch: Batch, parts: int) -> Arrays:
    """``(prompts (B, S), their lengths (B,), answers (B, T) from the start token on, positions (N,), targets (N,))``.

    Positions are those of the flat (B T) whose next token is a target. With ``parts`` S and T are rounded up and every
    position is there, with target -1 where there is none, so that compiled functions see few shapes; 0: exact.
    """
    rows, ends = batch.tokens, np.count_nonzero(batch.segment_ids, axis=1)  # (B, L), (B,)
    starts: NDArray[np.int64] = np.maximum(batch.loss_mask.argmax(axis=1) - 1, 1)
    answers = np.maximum(ends - 1 - starts, 1)  # tokens that the decoder reads; the last one of a row is none of them
    longest, most = int(starts.max()), int(answers.max())
    if parts:
        longest, most = size_for(longest), size_for(most)
    prompts, is_prompt = _gathered(rows, np.zeros_like(starts), starts, longest)
    said, is_said = _gathered(rows, starts, answers, most)
    targets, _ = _gathered(rows, starts + 1, answers, most)
    is_target = _gathered(batch.loss_mask, starts + 1, answers, most)[0].astype(np.bool_) & is_said
    positions = np.flatnonzero(is_target)
    learned = np.where(is_target, targets, -1).reshape(-1)
    if parts:
        positions = np.arange(learned.size)
    found = (np.where(is_prompt, prompts, 0), starts, np.where(is_said, said, 0), positions, learned[positions])
    return tuple(mx.array(array.astype(np.int32)) for array in found)


def size_for(length: int) -> int:
    """``length`` rounded up to one of few sizes: multiples of 8, from 64 on four for each doubling."""
    step = 8
    while step * 2 * _SIZES_A_DOUBLING < length:
        step *= 2
    return round_up(length, step)


def answer_states(model: nn.Module, prompts: mx.array, lengths: mx.array, said: mx.array, *_: mx.array) -> mx.array:
    """The decoder's hidden states, (B, T, H)."""
    t5 = cast(Model, model)
    return t5.decode(said, t5.encode(prompts, lengths), lengths)


def answer_loss(
    head: Head,
    hidden: mx.array,
    prompts: mx.array,
    lengths: mx.array,
    said: mx.array,
    positions: mx.array,
    targets: mx.array,
) -> mx.array:
    """Cross-entropy of the answers' tokens, summed. ``hidden`` is (B, T, H)."""
    del prompts, lengths, said
    rows = mx.take(hidden.reshape(-1, hidden.shape[-1]), positions, axis=0)  # (N, H)
    return head.cross_entropy(rows, targets)


def _gathered(
    rows: NDArray[np.generic], starts: NDArray[np.int64], counts: NDArray[np.int64], size: int
) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
    """``size`` columns of each row from its start on, and which of them are among its first ``counts``."""
    columns = np.arange(size)
    places = np.minimum(starts[:, None] + columns, rows.shape[1] - 1)
    return np.take_along_axis(rows, places, axis=1), columns < counts[:, None]
