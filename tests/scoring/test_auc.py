"""Areas under the ROC curve worked out by hand, and resamples against counting every pair."""

import numpy as np
import pytest

from mlx_finetune.scoring.auc import _Pairs, area_over_all, area_within, interval_words, mean_area
from mlx_finetune.scoring.intervals import wilson

SCORES = [[0.1, 0.2, 0.3, 0.9], [0.1, 0.8, 0.2, 0.3], [0.5, 0.1, 0.2, 0.3], [0.1, 0.2, 0.3, 0.9]]
RIGHT = [[True, False, False, True], [False, True, False, False], [False] * 4, [True, True, True, False]]


def test_the_areas_are_those_by_hand():
    """Six right and ten wrong answers: 0.1 twice wins 1 of 10 (two ties), 0.9 wins 9.5, 0.8 9, 0.2 3.5, 0.3 6.5."""
    whole, within, mean = (area(SCORES, RIGHT, seed=0) for area in (area_over_all, area_within, mean_area))
    assert whole is not None
    assert within is not None
    assert mean is not None
    assert (whole.value, whole.num_problems) == (pytest.approx(30.5 / 60), 4)
    assert (within.value, within.num_problems) == (pytest.approx((2 + 3 + 0) / (4 + 3 + 3)), 3)
    assert (mean.value, mean.num_problems) == (pytest.approx((2 / 4 + 3 / 3 + 0 / 3) / 3), 3)
    for one in (whole, within, mean):
        assert one.interval is not None
        assert one.interval.low < one.value < one.interval.high


def test_pairs_of_a_problem_weigh_alike_and_in_the_mean_problems_do():
    scores, right = [[2.0, 1.0], [1.0, 2.0, 3.0, 0.0]], [[True, False], [True, False, False, False]]
    within, mean = area_within(scores, right, seed=0), mean_area(scores, right, seed=0)
    assert within is not None
    assert mean is not None
    assert (within.value, mean.value) == (pytest.approx(2 / 4), pytest.approx((1 + 1 / 3) / 2))


def test_equal_scores_are_a_tie_also_those_without_one():
    lowest = -float("inf")
    for scores in ([[1.0, 1.0]], [[lowest, lowest]]):
        for area in (area_over_all, area_within, mean_area):
            found = area(scores, [[True, False]], seed=0)
            assert found is not None
            assert (found.value, found.interval) == (0.5, None)  # of one problem


@pytest.mark.parametrize("verdict", [True, False])
def test_answers_of_one_kind_have_no_area(verdict: bool):
    assert [area([[1.0, 2.0]], [[verdict] * 2], seed=0) for area in (area_over_all, area_within, mean_area)] == [
        None
    ] * 3


def test_resamples_count_every_pair_as_often_as_its_problems_were_drawn():
    random = np.random.default_rng(0)
    scores = random.integers(0, 5, (6, 4)).astype(float).tolist()
    right = (random.random((6, 4)) < 0.4).tolist()
    draws = random.integers(0, 6, (20, 6))
    weights = np.stack([np.bincount(draw, minlength=6) for draw in draws]).astype(float)
    for draw, found in zip(draws, _Pairs(scores, right).areas(weights), strict=True):
        good = [s for one in draw for s, r in zip(scores[one], right[one], strict=True) if r]
        bad = [s for one in draw for s, r in zip(scores[one], right[one], strict=True) if not r]
        wins = [(a > b) + 0.5 * (a == b) for a in good for b in bad]
        assert found == pytest.approx(sum(wins) / len(wins))


def test_resamples_without_a_pair_are_left_out_of_the_interval():
    """Of two problems one has the right answers, the other the wrong ones: half of the resamples have no pair."""
    found = area_over_all([[1.0, 1.0], [0.0, 0.0]], [[True, True], [False, False]], seed=0)
    assert found is not None
    assert (found.value, found.interval) == (1.0, None)  # one problem with either kind
    many = area_over_all([[1.0], [2.0], [0.0], [1.5]], [[True], [True], [False], [False]], seed=0)
    assert many is not None
    assert many.interval is not None
    assert (many.value, many.interval.low, many.interval.high) == (0.75, 0.0, 1.0)


@pytest.mark.parametrize("area", [area_over_all, area_within, mean_area])
def test_problems_that_are_all_alike_do_not_claim_certainty(area):
    found = area([[2.0, 1.0, 0.0]] * 12, [[True, False, False]] * 12, seed=0)
    assert (found.value, found.interval) == (1.0, wilson(12, 12))
    tied = area([[1.0, 1.0]] * 12, [[True, False]] * 12, seed=0)
    assert (tied.value, tied.interval) == (0.5, wilson(6, 12))


def test_no_interval_is_said_with_its_reason():
    assert interval_words(0.6, 0.7, 20) == "0.600 to 0.700"
    assert interval_words(0.4, 0.7, 20) == "0.400 to 0.700   unsure: the interval holds 0.5"
    assert interval_words(0.1, 0.2, 20) == "0.100 to 0.200   below chance: wrong answers score higher"
    assert interval_words(None, None, 1) == "no interval: one problem"
    assert interval_words(None, None, 2) == "no interval: too few problems"
    assert interval_words(1.0, 1.0, 40) == "no interval: problems all alike"  # kept before
