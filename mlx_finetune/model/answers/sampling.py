"""How the next token is drawn from logits.

Order: repetition penalty, temperature, top-k, top-p, min-p, draw. That is Hugging Face's order; mlx-lm applies the
temperature last, so its top-p keeps other tokens at temperatures other than 1. The draw at position ``index`` of an
answer depends on ``(seed, index)`` and the logits alone.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlx_finetune.model.inside.noise import derive_key

PENALTY_WINDOW = 64
# Probabilities are fp32 sums: a set whose mass is this close to top_p has reached it.
_MASS_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling settings; the defaults are those of [chat]. ``temperature`` 0 takes the likeliest token (greedy).

    ``top_k`` 0, ``top_p`` 1, ``min_p`` 0 and ``repetition_penalty`` 1 each switch that filter off.
    """

    temperature: float = 0.7
    top_p: float = 0.9
    top_k: int = 50
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 512
    seed: int = 0


def seed_of(*parts: object) -> int:
    """A seed below 2^31 for a draw that ``parts`` name: the same for the same parts, unrelated for others."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def draw_token(logits: mx.array, previous: Sequence[int], sampling: Sampling, index: int) -> mx.array:
    """The next token id, not yet evaluated: those of several answers can be, at once.

    ``logits`` (V,); ``previous`` are the tokens so far, of which the last 64 are penalised.
    """
    logits = penalise(logits.astype(mx.float32), previous, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return mx.argmax(logits)
    ids, kept = filter_logits(logits / sampling.temperature, sampling)
    choice = mx.random.categorical(kept, key=derive_key(sampling.seed, "draw", index))
    return ids[choice]


def penalise(logits: mx.array, previous: Sequence[int], penalty: float) -> mx.array:
    """Logits (V,) of the last 64 ``previous`` tokens over ``penalty`` if positive, else times it (1909.05858)."""
    if penalty == 1 or not previous:
        return logits
    ids = mx.array(sorted(set(previous[-PENALTY_WINDOW:])))
    seen = logits[ids]
    changed = mx.array(logits)
    changed[ids] = mx.where(seen > 0, seen / penalty, seen * penalty)
    return changed


def filter_logits(logits: mx.array, sampling: Sampling) -> tuple[mx.array, mx.array]:
    """Token ids and logits, both (n,), that top-k, top-p and min-p leave to draw from; those they drop are -inf.

    Top-k: the k largest. Top-p: the smallest set of likeliest tokens whose probability, among what top-k left, is at
    least ``top_p``. Min-p: tokens of at least ``min_p`` times the likeliest one's probability.
    """
    size = logits.shape[-1]
    top_k = sampling.top_k if 0 < sampling.top_k < size else size
    if top_k == size and sampling.top_p == 1 and sampling.min_p == 0:
        return mx.arange(size), logits
    ids = mx.argpartition(-logits, top_k - 1)[:top_k] if top_k < size else mx.arange(size)
    ids = ids[mx.argsort(-logits[ids])]
    kept = logits[ids]  # likeliest first
    probabilities = mx.softmax(kept)
    before = mx.cumsum(probabilities) - probabilities
    keep = probabilities >= sampling.min_p * probabilities[0]
    if sampling.top_p < 1:
        keep = keep & (before < sampling.top_p - _MASS_TOLERANCE)
    keep = keep | (mx.arange(top_k) == 0)
    return ids, mx.where(keep, kept, -mx.inf)
