"""How alike hidden states and distributions are: linear CKA, divergences of log-probabilities."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Centred:
    """States (N, H) with the mean of every column taken off, kept in fp32, and ``||X^T X||_F``."""

    states: NDArray[np.float32]
    self_norm: float


def centred(states: Array) -> Centred:
    """``states`` (N, H), one row a token, ready to be compared."""
    values = states.astype(np.float64)
    values -= values.mean(axis=0)
    kept = values.astype(np.float32)
    return Centred(kept, _product_norm(kept, kept))


def linear_cka(first: Centred, second: Centred) -> float | None:
    """``||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F)`` (Kornblith et al. 2019, 1905.00414, eq. 4 with a linear kernel).

    1 where one is the other rotated, scaled or moved. With fewer rows than columns two unrelated sets come out high;
    only values of equal N and H can be compared. None where the states of one side are all the same.
    """
    norms = first.self_norm * second.self_norm
    return _product_norm(first.states, second.states) ** 2 / norms if norms else None


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Along the last axis; fp32 values, sums in fp64."""
    values = logits - logits.max(axis=-1, keepdims=True)
    return values - np.log(np.exp(values).sum(axis=-1, keepdims=True, dtype=np.float64)).astype(np.float32)


def divergence(p: NDArray[np.float32], q: NDArray[np.float32]) -> float:
    """Mean over rows of ``KL(p || q)`` in nats, from log-probabilities (N, V) each."""
    return float(np.mean(np.sum(np.exp(p) * (p - q), axis=-1, dtype=np.float64)))


def _product_norm(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """``||Y^T X||_F`` in fp64, by whichever of H x H and N x N is smaller."""
    x, y = first.astype(np.float64), second.astype(np.float64)
    if x.shape[0] < min(x.shape[1], y.shape[1]):
        return float(np.sqrt(max(0.0, float(np.sum((x @ x.T) * (y @ y.T))))))
    return float(np.linalg.norm(y.T @ x))
