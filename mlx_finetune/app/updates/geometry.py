"""Measures of weight updates, from the factors of an adapter where there are any: ``dW`` is not formed then.

``dW = scale (A B)^T`` with A (in, r), B (r, out). The pair (A R, R^-1 B) is the same update for every invertible R, so
nothing here looks at A or B alone. Everything is computed in fp64. These are descriptions of matrices: they say how
far and in how many directions weights moved, not what a direction does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
#: Singular values below this share of the largest count as 0.
NEGLIGIBLE = 1e-7
#: A direction of a trained weight whose largest |cosine| with the base's is below this is an intruder.
INTRUDER = 0.6


@dataclass(frozen=True)
class Factored:
    """``scale (A B)^T``: A (in, r), B (r, out)."""

    a: NDArray[Any]
    b: NDArray[Any]
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight."""
        return self.b.shape[1], self.a.shape[0]

    @cached_property
    def norm(self) -> float:
        """``||dW||_F = scale sqrt(tr((A^T A)(B B^T)))``."""
        return _root(self.inner(self))

    def inner(self, other: "Factored") -> float:
        """``<dW1, dW2> = scale1 scale2 tr((A1^T A2)(B2 B1^T))``."""
        a1, a2, b1, b2 = map(_fp64, (self.a, other.a, self.b, other.b))
        return self.scale * other.scale * float(np.sum((a1.T @ a2) * (b1 @ b2.T)))

    @cached_property
    def parts(self) -> tuple[Floats, Floats]:
        """Left singular vectors (out, r) and singular values (r,): QR of both factors, then an SVD of r x r."""
        q, r_b = np.linalg.qr(_fp64(self.b).T)  # (out, r), (r, r)
        r_a = np.linalg.qr(_fp64(self.a))[1]  # (r, r)
        left, values, _ = np.linalg.svd(r_b @ r_a.T)
        return q @ left, abs(self.scale) * values

    def dense(self) -> NDArray[np.float32]:
        """(out, in), fp32."""
        return (self.scale * (_fp64(self.a) @ _fp64(self.b)).T).astype(np.float32)


@dataclass(frozen=True)
class Dense:
    """An update that has no factors: a fully trained matrix, or DoRA's. ``has_svd`` allows the cost of one."""

    delta: NDArray[Any]
    has_svd: bool

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight."""
        return self.delta.shape[0], self.delta.shape[1]

    @cached_property
    def norm(self) -> float:
        """``||dW||_F``."""
        return _root(self.inner(self))

    def inner(self, other: "Dense") -> float:
        """``<dW1, dW2>``."""
        return float(np.vdot(_fp64(self.delta), _fp64(other.delta)))

    @cached_property
    def parts(self) -> tuple[Floats, Floats] | None:
        """Left singular vectors and singular values; None where an SVD is too much."""
        if not self.has_svd:
            return None
        left, values, _ = np.linalg.svd(_fp64(self.delta), full_matrices=False)
        return left, values

    def dense(self) -> NDArray[np.float32]:
        """(out, in), fp32."""
        return self.delta.astype(np.float32)


Update = Factored | Dense


def effective_rank(values: Sequence[float] | Floats) -> float:
    """``exp(H(p))``, ``p = sigma / sum sigma``, H in nats (Roy & Vetterli 2007). (3, 1): 1.754765; 0 of no update."""
    sigma = _kept(values)
    if not len(sigma):
        return 0.0
    shares = sigma / sigma.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))


def stable_rank(values: Sequence[float] | Floats) -> float:
    """``||dW||_F^2 / sigma_1^2``. (3, 1): 1.111111; 0 of no update."""
    sigma = _kept(values)
    return float(np.sum(sigma**2) / sigma.max() ** 2) if len(sigma) else 0.0


def cosine(first: Update, second: Update) -> float | None:
    """``<dW1, dW2> / (||dW1|| ||dW2||)``; None where one of them is 0."""
    norms = first.norm * second.norm
    if not norms:
        return None
    inner = first.inner(second) if isinstance(first, Factored) else first.inner(cast(Dense, second))  # pyright: ignore[reportArgumentType]
    return inner / norms


def overlap(first: Update, second: Update, k: int) -> float | None:
    """``||U1^T U2||_F^2 / k`` of the top-k left singular vectors: the mean squared cosine of the principal angles.

    1 for the same space, k / out for two at random. Where an update has fewer directions, k is their number; None
    where one is 0 or has no SVD.
    """
    one, other = first.parts, second.parts
    if one is None or other is None:
        return None
    k = min(k, len(_kept(one[1])), len(_kept(other[1])))
    if not k:
        return None
    return float(np.sum((one[0][:, :k].T @ other[0][:, :k]) ** 2)) / k


def intruder_cosines(weight: NDArray[Any], delta: NDArray[Any], k: int) -> Floats:
    """For each of the top-k left singular vectors of ``W + dW`` the largest |cosine| with any of W's, (k,).

    Directions below ``INTRUDER`` are called intruders (Shuttleworth et al. 2024, 2410.21228). Two dense SVDs.
    """
    before = np.linalg.svd(_fp64(weight), full_matrices=False)[0]
    after = np.linalg.svd(_fp64(weight) + _fp64(delta), full_matrices=False)[0][:, :k]
    return np.abs(before.T @ after).max(axis=0)


def _kept(values: Sequence[float] | Floats) -> Floats:
    sigma = np.asarray(values, np.float64)
    return sigma[sigma > NEGLIGIBLE * sigma.max(initial=0.0)]


def _fp64(array: NDArray[Any]) -> Floats:
    return array.astype(np.float64, copy=False)


def _root(square: float) -> float:
    return float(np.sqrt(max(square, 0.0)))
