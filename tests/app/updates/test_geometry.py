"""ALGORITHMS.md section 13: each measure against the dense computation, its vector, and a change of factors."""

import numpy as np
import pytest

from mlx_finetune.app.updates.geometry import (
    INTRUDER,
    Dense,
    Factored,
    cosine,
    effective_rank,
    intruder_cosines,
    overlap,
    stable_rank,
)

OUT, IN, RANK = 40, 56, 5


@pytest.fixture
def rng():
    return np.random.default_rng(13)


def random_update(rng, rank=RANK, scale=0.7):
    return Factored(
        rng.normal(size=(IN, rank)).astype(np.float32), rng.normal(size=(rank, OUT)).astype(np.float32), scale
    )


def other_factors(update, rng):
    """The same update: (A R, R^-1 B)."""
    mixing = rng.normal(size=(RANK, RANK)) + 3 * np.eye(RANK)
    return Factored(update.a @ mixing, np.linalg.solve(mixing, update.b.astype(np.float64)), update.scale)


def test_norm_and_singular_values_are_those_of_the_dense_update(rng):
    update = random_update(rng)
    dense = 0.7 * (update.a.astype(np.float64) @ update.b).T
    assert update.norm == pytest.approx(np.linalg.norm(dense), rel=1e-5)
    values = np.linalg.svd(dense, compute_uv=False)
    np.testing.assert_allclose(update.parts[1], values[:RANK], rtol=1e-5)
    np.testing.assert_allclose(update.dense(), dense, rtol=1e-5, atol=1e-6)
    assert update.shape == update.dense().shape == (OUT, IN)


def test_left_singular_vectors_span_what_the_dense_ones_span(rng):
    update = random_update(rng)
    dense = Dense(update.dense(), has_svd=True)
    assert dense.parts is not None
    both = update.parts[0] * dense.parts[0][:, :RANK]
    np.testing.assert_allclose(np.abs(both.sum(axis=0)), np.ones(RANK), atol=1e-4)


def test_the_ranks_of_three_and_one():
    assert effective_rank([3.0, 1.0]) == pytest.approx(1.754765, abs=1e-6)
    assert stable_rank([3.0, 1.0]) == pytest.approx(1.111111, abs=1e-6)


def test_ranks_of_no_update_and_of_equal_values():
    assert effective_rank([0.0, 0.0]) == stable_rank([0.0, 0.0]) == 0.0
    assert effective_rank([2.0] * 4) == pytest.approx(4.0)
    assert stable_rank([2.0] * 4) == pytest.approx(4.0)


def test_cosine_and_overlap_are_those_of_the_dense_updates(rng):
    first, second = random_update(rng), random_update(rng, rank=3, scale=-2.0)
    dense = [one.dense().astype(np.float64) for one in (first, second)]
    expected = np.sum(dense[0] * dense[1]) / np.linalg.norm(dense[0]) / np.linalg.norm(dense[1])
    assert cosine(first, second) == pytest.approx(expected, abs=1e-6)
    left = [np.linalg.svd(one)[0][:, :2] for one in dense]
    assert overlap(first, second, 2) == pytest.approx(np.linalg.norm(left[0].T @ left[1]) ** 2 / 2, abs=1e-5)
    whole = Dense(dense[0], has_svd=True), Dense(dense[1], has_svd=True)
    assert cosine(*whole) == pytest.approx(expected, abs=1e-6)
    assert overlap(*whole, 2) == pytest.approx(overlap(first, second, 2), abs=1e-5)


def test_nothing_changes_with_the_factors_of_the_same_update(rng):
    update, other = random_update(rng), random_update(rng)
    same = other_factors(update, rng)
    assert not np.allclose(update.a, same.a, atol=0.1)  # a cosine of A or of B alone would see two updates
    assert cosine(update, same) == pytest.approx(1.0, abs=1e-9)
    assert overlap(update, same, 3) == pytest.approx(1.0, abs=1e-9)
    assert same.norm == pytest.approx(update.norm, rel=1e-9)
    np.testing.assert_allclose(same.parts[1], update.parts[1], rtol=1e-9)
    assert cosine(same, other) == pytest.approx(cosine(update, other), abs=1e-9)
    assert overlap(same, other, 3) == pytest.approx(overlap(update, other, 3), abs=1e-9)


def test_an_update_that_is_zero_has_no_direction(rng):
    update = random_update(rng)
    zero = Factored(update.a, np.zeros_like(update.b), 1.0)
    assert zero.norm == 0.0
    assert cosine(update, zero) is None
    assert overlap(update, zero, 4) is None


def test_fewer_directions_than_asked_for_are_compared_as_they_are(rng):
    update = random_update(rng, rank=2)
    assert overlap(update, update, 4) == pytest.approx(1.0)


def test_a_direction_that_the_base_does_not_have_is_an_intruder(rng):
    left = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    right = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    weight = left[:, :5] @ np.diag([9.0, 8.0, 7.0, 6.0, 5.0]) @ right.T  # (12, 5): five directions of twelve
    delta = 30 * np.outer(left[:, 6], right[:, 0])  # a sixth one, and stronger than the others
    found = intruder_cosines(weight, delta, 3)
    assert found[0] < INTRUDER  # the top one is 30 parts new, 9 parts the first of the base
    assert found[0] == pytest.approx(9 / np.hypot(30, 9), abs=1e-9)
    np.testing.assert_allclose(found[1:], 1.0)
    np.testing.assert_allclose(intruder_cosines(weight, 1e-6 * delta, 3), 1.0)


def test_a_dense_update_without_an_svd_has_a_norm_and_a_cosine(rng):
    update = Dense(random_update(rng).dense(), has_svd=False)
    assert update.parts is None
    assert overlap(update, update, 4) is None
    assert cosine(update, update) == pytest.approx(1.0)
