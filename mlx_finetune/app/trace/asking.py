"""Asks a model the probes: what it thinks of each answer, and what leaves its blocks meanwhile.

The tokens that all answers of a probe share go through the model once; what follows goes through as one batch behind
their keys and values. Models whose caches cannot be copied (recurrent ones, sliding windows) read each row whole.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_finetune.app.trace.probes import Probe
from mlx_finetune.app.trace.similarity import log_softmax
from mlx_finetune.model.answers.caches import picked, plain_caches
from mlx_finetune.model.answers.generate import cpu_forms
from mlx_finetune.model.inside.split import SplitModel
from mlx_finetune.model.inside.states import caught_states
from mlx_finetune.model.likelihoods import num_equal

Floats = NDArray[np.float32]
#: Probes whose hidden states are kept, and how many of their last tokens.
STATE_PROBES, STATE_TOKENS = 64, 12


@dataclass(frozen=True, slots=True)
class Reply:
    """``loss_sum`` is over the ``num_targets`` of the right row, nats. ``scores`` are log-probabilities of the answers
    from where they part, the right one first. ``token_rank`` is the place of the right token there among all, 1 for
    the likeliest."""

    loss_sum: float
    num_targets: int
    scores: tuple[float, ...]
    token_rank: int

    @property
    def margin(self) -> float | None:
        """The right answer's log-probability less that of the likeliest wrong one; None without wrong ones."""
        return self.scores[0] - max(self.scores[1:]) if len(self.scores) > 1 else None

    @property
    def rank(self) -> int | None:
        """1 where no wrong answer is as probable."""
        return 1 + sum(score >= self.scores[0] for score in self.scores[1:]) if len(self.scores) > 1 else None


@dataclass(frozen=True, slots=True)
class States:
    """Of the first probes: ``tokens[l]`` (N, H) the last shared tokens after block l, ``last[l]`` (P, H) the last one
    of each probe, where the answer begins."""

    tokens: tuple[Floats, ...]
    last: tuple[Floats, ...]


def ask(
    split: SplitModel, probes: Sequence[Probe], step: Callable[[int], None], *, only_states: bool = False
) -> tuple[list[Reply], States]:
    """Replies to all ``probes`` and the states of the first; the model is in evaluation mode.

    ``step`` is told how many are done. With ``only_states`` the others are not asked and there are no replies.
    """
    split.model.eval()
    replies: list[Reply] = []
    tokens: list[list[Floats]] = []
    for number, probe in enumerate(probes[:STATE_PROBES] if only_states else probes):
        shared = _num_shared(probe)
        caches = plain_caches(split.model)
        ids = probe.rows[0].ids[:shared]
        with caught_states(split.model) if number < STATE_PROBES else nullcontext([]) as caught:
            hidden = _forward(split, ids[None], caches)  # (1, shared, H)
            if caught:
                mx.eval(caught)
                tokens.append([_fp32(state[0, -STATE_TOKENS:]) for state in caught])
        if not only_states:
            replies.append(_reply(split, probe, shared, hidden, caches))
        step(number + 1)
    layers = range(len(tokens[0]) if tokens else 0)
    return replies, States(
        tuple(np.concatenate([one[layer] for one in tokens]) for layer in layers),
        tuple(np.stack([one[layer][-1] for one in tokens]) for layer in layers),
    )


def _num_shared(probe: Probe) -> int:
    """Tokens that all rows of a probe begin with, one less than the shortest has at most; at least 1."""
    if len(probe.rows) == 1:  # nothing parts: where the answer begins, or of a text the last token
        before = int(np.flatnonzero(probe.rows[0].loss_mask[1:])[0])
        return max(1, before + 1 if before else len(probe.rows[0].ids) - 1)
    rows = [row.ids for row in probe.rows]
    return max(1, min(num_equal(rows), min(map(len, rows)) - 1))


def _forward(split: SplitModel, ids: NDArray[np.int32], caches: list[Any] | None) -> mx.array:
    with cpu_forms(split.model, *ids.shape):
        hidden = split.hidden(mx.array(ids), caches)
        mx.eval(hidden, *([cache.state for cache in caches] if caches else []))
    return hidden


def _reply(split: SplitModel, probe: Probe, shared: int, hidden: mx.array, caches: list[Any] | None) -> Reply:
    right = probe.rows[0]
    before = _log_probs(split, hidden[0, -1:])[0]  # (V,): of the first token where answers part
    token_rank = 1 + int(np.sum(before > before[right.ids[shared]]))
    rest = _rest(split, probe, shared, caches)
    scores: list[float] = []
    for row, follow in zip(probe.rows, rest, strict=True):
        score = float(before[row.ids[shared]]) if row.loss_mask[shared] else 0.0
        scores.append(score + float(np.sum(follow[row.loss_mask[shared + 1 :]], dtype=np.float64)))
    targets = np.flatnonzero(right.loss_mask[1:shared]) + 1  # of the shared part
    earlier = 0.0
    if len(targets):
        logs = _log_probs(split, hidden[0, mx.array(targets - 1)])
        earlier = float(np.sum(logs[np.arange(len(targets)), right.ids[targets]], dtype=np.float64))
    return Reply(-(scores[0] + earlier), int(right.loss_mask[1:].sum()), tuple(scores), token_rank)


def _rest(split: SplitModel, probe: Probe, shared: int, caches: list[Any] | None) -> list[Floats]:
    """Of each row the log-probabilities of its tokens behind the first that may differ."""
    counts = [len(row.ids) - shared - 1 for row in probe.rows]
    longest = max(counts)
    if not longest:
        return [np.zeros(0, np.float32) for _ in counts]
    start = shared if caches else 0
    inputs = np.zeros((len(counts), longest + shared - start), np.int32)
    for place, row in enumerate(probe.rows):
        inputs[place, : len(row.ids) - 1 - start] = row.ids[start:-1]
    hidden = _forward(split, inputs, picked(caches, [0] * len(counts)) if caches else None)[:, shared - start :]
    logs = _log_probs(split, hidden.reshape(-1, hidden.shape[-1])).reshape(len(counts), longest, -1)
    return [
        logs[place, np.arange(count), row.ids[shared + 1 :]]
        for place, (row, count) in enumerate(zip(probe.rows, counts, strict=True))
    ]


def _log_probs(split: SplitModel, hidden: mx.array) -> Floats:
    """(N, H) to log-probabilities (N, V)."""
    return log_softmax(_fp32(split.logits(hidden)))


def _fp32(array: mx.array) -> Floats:
    return np.array(array.astype(mx.float32))
