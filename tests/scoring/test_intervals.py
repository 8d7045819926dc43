import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_finetune.errors import MlxftError
from mlx_finetune.scoring import intervals
from mlx_finetune.scoring.intervals import (
    Interval,
    bootstrap_mean,
    bootstrap_ratio,
    holm,
    mcnemar_exact,
    paired_bootstrap,
    paired_ratio,
    wilson,
)

#: The machine may be busy: a test is never judged by its time.
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

# Wilson


def test_wilson_of_8_of_10_is_the_published_interval():
    found = wilson(8, 10)
    assert (found.low, found.high) == (pytest.approx(0.490162, abs=1e-6), pytest.approx(0.943318, abs=1e-6))


@pytest.mark.parametrize(("successes", "total"), [(0, 1), (0, 50), (1, 7), (41, 50), (50, 50), (499_999, 1_000_000)])
def test_the_ends_of_wilson_solve_the_score_equation(successes: int, total: int):
    """Each end inside (0, 1) is a rate p at which the observed rate lies 1.96 standard errors *of p* away."""
    rate, found = successes / total, wilson(successes, total)
    for end in (found.low, found.high):
        if 0 < end < 1:
            assert abs(rate - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / total), rel=1e-6)
    assert (found.low == 0) == (successes == 0)
    assert (found.high == 1) == (successes == total)


def test_wilson_of_nothing_says_nothing():
    assert wilson(0, 0) == Interval(0.0, 1.0)


def test_wilson_covers_the_truth_as_often_as_it_says():
    """By exact sums over the binomial distribution, for rates and numbers of rows as evaluations have them."""
    covered = [
        sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1) if p in wilson(k, n))
        for n in (10, 30, 100)
        for p in np.linspace(0.05, 0.95, 19).tolist()
    ]
    assert sum(covered) / len(covered) == pytest.approx(0.95, abs=0.01)
    assert min(covered) > 0.83


# Bootstrap


def exact_means(values: Sequence[float]) -> list[float]:
    """The mean of every resample there is, each equally likely."""
    return sorted(sum(chosen) / len(values) for chosen in itertools.product(values, repeat=len(values)))


@pytest.mark.parametrize("values", [[0.0, 1.0, 2.0, 5.0, 11.0], [0.1, 0.2, 0.4, 0.8, 1.6, 3.2]])
def test_the_bootstrap_ends_are_quantiles_of_all_resamples(values: list[float]):
    """0.0016 is the standard error of a 2.5 % tail over 10,000 resamples; 5 of them are allowed."""
    means, found = np.array(exact_means(values)), bootstrap_mean(values, seed=3)
    for end, tail in ((found.low, 0.025), (found.high, 0.975)):
        assert (means < end - 1e-9).mean() < tail + 0.008
        assert (means <= end + 1e-9).mean() > tail - 0.008


def test_the_bootstrap_of_many_rows_is_the_normal_interval():
    values = np.random.default_rng(5).normal(3.0, 2.0, 2_000)
    half = 1.959964 * values.std() / math.sqrt(len(values))
    found = bootstrap_mean(values, seed=1)
    assert found.low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.05 * half)


def test_the_bootstrap_covers_the_truth_almost_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch):
    """1,500 trials of 30 rows (standard error 0.6 %); a percentile interval of 30 rows covers 93.5 % by theory."""
    monkeypatch.setattr(intervals, "NUM_RESAMPLES", 1_000)
    random = np.random.default_rng(7)
    covered = [1.0 in bootstrap_mean(random.normal(1.0, 3.0, 30), seed=trial) for trial in range(1_500)]
    assert 0.91 < sum(covered) / len(covered) < 0.96


def test_a_ratio_weighs_documents_by_their_length():
    """Exact again: all 4^4 resamples of four documents, one of them ten times as long."""
    sums, counts = [2.0, 9.0, 4.0, 50.0], [1.0, 3.0, 2.0, 30.0]
    chosen = itertools.product(range(4), repeat=4)
    ratios = np.array([sum(sums[i] for i in four) / sum(counts[i] for i in four) for four in chosen])
    found = bootstrap_ratio(sums, counts, seed=0)
    for end, tail in ((found.low, 0.025), (found.high, 0.975)):
        assert (ratios < end - 1e-9).mean() < tail + 0.008
        assert (ratios <= end + 1e-9).mean() > tail - 0.008
    assert sum(sums) / sum(counts) in found


def test_a_seed_gives_the_same_interval_for_ever():
    values = [float(value) for value in range(10)]
    found = bootstrap_mean(values, seed=0)
    assert (found.low, found.high) == (pytest.approx(2.7), pytest.approx(6.3))
    assert bootstrap_mean(values, seed=0) == found
    assert bootstrap_mean([0.1 * value**2 for value in values], seed=1) != bootstrap_mean(
        [0.1 * value**2 for value in values], seed=2
    )


def test_the_interval_does_not_depend_on_how_much_is_drawn_at_once(monkeypatch: pytest.MonkeyPatch):
    values = np.random.default_rng(0).normal(size=37)
    whole = bootstrap_mean(values, seed=9)
    monkeypatch.setattr(intervals, "_DRAWS_AT_ONCE", 1_000)
    assert bootstrap_mean(values, seed=9) == whole


def test_every_row_is_drawn_equally_often():
    drawn = np.bincount(intervals._draw(np.random.Philox(key=1), 10_000, 7).ravel(), minlength=7)
    assert drawn.sum() == 70_000
    assert abs(drawn - 10_000).max() < 5 * math.sqrt(10_000 * 6 / 7)


def test_one_row_has_no_width_and_equal_rows_none_either():
    assert bootstrap_mean([0.25], seed=0) == Interval(0.25, 0.25)
    assert bootstrap_ratio([2.0, 4.0], [1.0, 2.0], seed=0) == Interval(2.0, 2.0)


# Pairs


def test_a_constant_gain_is_certain_however_the_rows_differ():
    base = np.random.default_rng(2).normal(0, 10, 50)
    found = paired_bootstrap(base, base + 0.5, seed=0)
    assert found.value == pytest.approx(0.5)
    assert (found.interval.low, found.interval.high) == (pytest.approx(0.5), pytest.approx(0.5))


def test_the_paired_bootstrap_is_the_bootstrap_of_the_differences_and_the_sign_is_tuned_minus_base():
    found = paired_bootstrap([1.0, 2.0, 3.0], [0.0, 2.0, 1.0], seed=4)
    assert found.value == pytest.approx(-1.0)
    assert found.interval == bootstrap_mean([-1.0, 0.0, -2.0], seed=4)


def test_a_paired_ratio_is_the_difference_of_the_ratios():
    base, tuned, counts = [30.0, 8.0, 5.0], [20.0, 9.0, 4.0], [10.0, 2.0, 3.0]
    found = paired_ratio(base, tuned, counts, seed=0)
    assert found.value == pytest.approx(33 / 15 - 43 / 15)
    assert (found.interval.low, found.interval.high) == (pytest.approx(-1.0), pytest.approx(0.5))  # one document alone


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused_with_its_row(bad: float):
    with pytest.raises(MlxftError, match=r"row 2 of 3") as caught:
        bootstrap_mean([1.0, bad, 2.0], seed=0)
    assert caught.value.hint
    with pytest.raises(MlxftError, match="of the base model"):
        paired_bootstrap([bad, 1.0], [1.0, 1.0], seed=0)
    with pytest.raises(MlxftError, match="of the tuned model"):
        paired_ratio([1.0, 1.0], [1.0, bad], [1.0, 1.0], seed=0)


# Tests of right and wrong


def test_mcnemar_of_3_against_12_is_the_published_value():
    assert mcnemar_exact(3, 12) == pytest.approx(0.03515625, abs=1e-12)
    assert mcnemar_exact(12, 3) == mcnemar_exact(3, 12)


@pytest.mark.parametrize("total", range(1, 11))
def test_mcnemar_counts_the_outcomes_that_are_as_lopsided(total: int):
    """By listing all 2^n ways in which n rows may fall to one side or the other."""
    sides = [sum(way) for way in itertools.product((0, 1), repeat=total)]
    for ours in range(total + 1):
        as_far = sum(abs(2 * side - total) >= abs(2 * ours - total) for side in sides)
        assert mcnemar_exact(ours, total - ours) == pytest.approx(float(Fraction(as_far, 2**total)), abs=1e-15)


def test_mcnemar_without_a_difference_is_one_and_with_many_rows_is_still_exact():
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(5_000, 5_000) == 1.0
    z = (5_300 - 4_700 - 1) / math.sqrt(10_000)  # the normal approximation with its correction
    assert mcnemar_exact(4_700, 5_300) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.02)


def test_holm_gives_the_textbook_values_in_the_given_order():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5]) == [0.5]
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@CALM
@given(st.lists(st.floats(0, 1, allow_subnormal=False), max_size=8), st.randoms(use_true_random=False))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values: list[float], random):
    """The procedure as Holm states it: smallest p against a/m, next against a/(m-1), until the first that is larger."""
    rejected: set[int] = set()
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        if p_values[place] * (len(p_values) - rank) > 0.05:
            break
        rejected.add(place)
    adjusted = holm(p_values)
    assert {place for place, p in enumerate(adjusted) if p <= 0.05} == rejected
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    order = list(range(len(p_values)))
    random.shuffle(order)
    assert holm([p_values[place] for place in order]) == [adjusted[place] for place in order]
