"""CKA and divergences: invariances of the paper, and small cases by hand."""

import numpy as np
import pytest

from mlx_finetune.app.trace.similarity import centred, divergence, linear_cka, log_softmax


@pytest.mark.parametrize("shape", [(50, 12), (12, 50)])  # by columns, and by rows
def test_cka_is_one_under_rotation_scale_and_shift(shape):
    rng = np.random.default_rng(3)
    states = rng.normal(size=shape).astype(np.float32)
    rotation = np.linalg.qr(rng.normal(size=(shape[1], shape[1])))[0]
    moved = 3.5 * states @ rotation + rng.normal(size=shape[1])
    assert linear_cka(centred(states), centred(moved)) == pytest.approx(1.0, abs=1e-6)


def test_cka_of_unlike_states_is_far_below_one_and_stretching_is_seen():
    rng = np.random.default_rng(4)
    first, second = rng.normal(size=(2, 500, 8))
    assert (linear_cka(centred(first), centred(second)) or 0.0) < 0.1
    stretched = first * np.array([10.0] + [0.1] * 7)
    assert (linear_cka(centred(first), centred(stretched)) or 1.0) < 0.9


def test_both_ways_of_computing_it_agree():
    rng = np.random.default_rng(5)
    first, second = rng.normal(size=(20, 6)), rng.normal(size=(20, 40))
    x, y = first - first.mean(axis=0), second - second.mean(axis=0)
    expected = np.linalg.norm(y.T @ x) ** 2 / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)
    assert linear_cka(centred(first), centred(second)) == pytest.approx(expected)
    few = rng.normal(size=(5, 6)), rng.normal(size=(5, 9))
    x, y = (one - one.mean(axis=0) for one in few)
    expected = np.linalg.norm(y.T @ x) ** 2 / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)
    assert linear_cka(*map(centred, few)) == pytest.approx(expected)


def test_states_that_are_all_the_same_have_no_cka():
    same = np.ones((5, 3), np.float32)
    assert linear_cka(centred(same), centred(same)) is None


def test_divergence_by_hand():
    p, q = np.log(np.array([[0.5, 0.5]], np.float32)), np.log(np.array([[0.25, 0.75]], np.float32))
    assert divergence(p, q) == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3), abs=1e-6)
    assert divergence(p, p) == 0.0


def test_log_probabilities_add_up_to_one_also_for_large_logits():
    logits = np.array([[1000.0, 1001.0, -1000.0]], np.float32)
    assert np.exp(log_softmax(logits)).sum() == pytest.approx(1.0)
