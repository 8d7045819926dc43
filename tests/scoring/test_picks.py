from itertools import combinations

import pytest

from mlx_finetune.scoring.picks import best_of, majority, pass_at_k, ranked


def test_pass_at_k_is_the_unbiased_estimate():
    assert pass_at_k(10, 3, 5) == pytest.approx(0.916667, abs=1e-6)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_pass_at_k_counts_the_sets_with_a_right_answer(k: int):
    right = [True, False, False, True]
    sets = list(combinations(right, k))
    assert pass_at_k(4, 2, k) == pytest.approx(sum(any(one) for one in sets) / len(sets))


def test_the_majority_is_what_most_answers_say():
    assert majority(["5", "7", "7", None, "5", "7"]) == 1


def test_of_equal_votes_the_first_said_wins():
    assert majority(["9", "4", "4", "9"]) == 0
    assert majority([None, "4", "9"]) == 1


def test_answers_that_say_nothing_have_no_majority():
    assert majority([None, None]) is None


def test_of_equal_scores_the_first_answer_is_taken():
    assert ranked([0.5, 0.9, 0.9, 0.1]) == [1, 2, 0, 3]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_the_best_of_n_is_the_mean_over_all_sets_of_n(n: int):
    scores, right = [0.2, 0.9, 0.9, 0.4, -1.0], [True, False, True, True, False]
    picks = [right[min(chosen, key=lambda i: (-scores[i], i))] for chosen in combinations(range(5), n)]
    assert best_of(scores, right, n) == pytest.approx(sum(picks) / len(picks))
