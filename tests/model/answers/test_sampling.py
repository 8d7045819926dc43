"""Sampling: each filter by numbers worked out by hand, and the draw by its seed and position."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_finetune.model.answers.sampling import Sampling, draw_token, filter_logits, penalise

OFF: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}


def sampling(**fields: Any) -> Sampling:
    return Sampling(**{**OFF, **fields})


def drawn_token(logits: mx.array, previous: list[int], settings: Sampling, index: int) -> Any:
    return draw_token(logits, previous, settings, index).item()


def kept(probabilities: list[float], **fields: Any) -> set[int]:
    ids, logits = filter_logits(mx.log(mx.array(probabilities)), sampling(**fields))
    return {int(i) for i, logit in zip(np.array(ids), np.array(logits), strict=True) if np.isfinite(logit)}


def test_the_penalty_divides_positive_logits_and_multiplies_negative_ones() -> None:
    logits = np.array(penalise(mx.array([2.0, -2.0, 1.0]), [0, 1, 0], 1.2))
    np.testing.assert_allclose(logits, [1.6667, -2.4, 1.0], atol=5e-5)


def test_the_penalty_sees_the_last_64_tokens_only() -> None:
    logits = mx.ones((4,))
    assert np.array(penalise(logits, [3, *[1] * 64], 2.0)).tolist() == [1.0, 0.5, 1.0, 1.0]
    assert np.array(penalise(logits, [3, *[1] * 63], 2.0)).tolist() == [1.0, 0.5, 1.0, 0.5]
    assert np.array(logits).tolist() == [1.0] * 4


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [(0.9, {1, 2, 3}), (0.91, {1, 2, 3, 4}), (0.8, {1, 2}), (0.5, {1}), (0.01, {1}), (0.51, {1, 2})],
)
def test_top_p_keeps_the_smallest_set_with_that_mass(top_p: float, expected: set[int]) -> None:
    assert kept([0.04, 0.5, 0.3, 0.1, 0.06], top_p=top_p) == expected


def test_top_p_of_a_random_distribution_is_minimal() -> None:
    probabilities = np.random.default_rng(0).dirichlet(np.ones(300))
    chosen = kept(probabilities.tolist(), top_p=0.9)
    masses = sorted(probabilities[list(chosen)])
    assert sum(masses) >= 0.9 - 1e-6
    assert sum(masses[1:]) < 0.9
    assert min(masses) > max(probabilities[[i for i in range(300) if i not in chosen]])


def test_top_k_keeps_exactly_k_even_among_equals() -> None:
    assert kept([0.1, 0.4, 0.2, 0.3], top_k=2) == {1, 3}
    assert len(kept([0.25] * 4, top_k=3)) == 3
    assert kept([0.1, 0.4, 0.2, 0.3], top_k=9) == {0, 1, 2, 3}


def test_top_p_counts_the_mass_that_top_k_left() -> None:
    # of (0.4, 0.3) the first has 0.571: enough for 0.57, though it is 0.4 of the whole
    assert kept([0.1, 0.4, 0.2, 0.3], top_k=2, top_p=0.57) == {1}
    assert kept([0.1, 0.4, 0.2, 0.3], top_p=0.57) == {1, 3}


def test_min_p_is_a_share_of_the_likeliest() -> None:
    assert kept([0.5, 0.26, 0.24], min_p=0.5) == {0, 1}
    assert kept([0.5, 0.5], min_p=1.0) == {0, 1}


def test_temperature_comes_before_top_p() -> None:
    # p = (0.7, 0.2, 0.1); at temperature 2 they become (0.523, 0.279, 0.198)
    logits = mx.log(mx.array([0.7, 0.2, 0.1]))
    settings = Sampling(temperature=2.0, top_p=0.7, top_k=0)
    drawn = {drawn_token(logits, [], settings, index) for index in range(200)}
    assert drawn == {0, 1}
    assert {drawn_token(logits, [], Sampling(temperature=1.0, top_p=0.7, top_k=0), index) for index in range(50)} == {0}


def test_temperature_zero_is_greedy_after_the_penalty() -> None:
    logits = mx.array([1.0, 3.0, 2.9])
    assert drawn_token(logits, [], Sampling(temperature=0), 0) == 1
    assert drawn_token(logits, [1], Sampling(temperature=0, repetition_penalty=1.2), 0) == 2


def test_draws_have_the_frequencies_of_the_distribution() -> None:
    logits = mx.log(mx.array([0.5, 0.3, 0.2]))
    counts = np.bincount([drawn_token(logits, [], sampling(seed=3), index) for index in range(1500)])
    np.testing.assert_allclose(counts / 1500, [0.5, 0.3, 0.2], atol=0.04)  # three standard errors


def test_a_draw_depends_on_seed_and_index_only() -> None:
    logits = mx.zeros((1000,))
    first = [drawn_token(logits, [], sampling(seed=1), index) for index in range(20)]
    mx.random.seed(5)
    assert [drawn_token(logits, [], sampling(seed=1), index) for index in range(20)] == first
    assert [drawn_token(logits, [], sampling(seed=2), index) for index in range(20)] != first
    assert len(set(first)) > 15


def test_half_precision_logits_are_sampled_in_float32() -> None:
    ids, logits = filter_logits(mx.zeros((5,), mx.float32), sampling(top_k=3))
    assert ids.shape == logits.shape == (3,)
    assert drawn_token(mx.array([0.0, 9.0], mx.bfloat16), [], sampling(), 0) == 1
