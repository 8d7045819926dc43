"""Figures and changes: closed forms, exact enumeration, and the figures of the papers."""

import math
from itertools import product

import numpy as np
import pytest

from mlx_finetune.app.eval.figures import Result, change, corrected, figure, paired_rates, sign_flip
from mlx_finetune.app.eval.measures import LOSS, Measure, measures_of, without_texts_of_tokens, without_tokens
from mlx_finetune.scoring.labels import macro_f1

RIGHT = Measure("exact_match", "exact_match", "answer", "right", "right", is_tested=True)
MEAN = Measure("token_f1", "token_f1", "answer", "mean", "F1", is_tested=True)
LOSS_MEASURE = Measure("loss", "loss", LOSS, "ratio", "loss", is_higher_better=False, is_tested=True)


def rates(*values: float) -> dict[int, tuple[float, ...]]:
    return {row: (float(value),) for row, value in enumerate(values)}


def test_a_rate_has_wilsons_interval_and_its_count() -> None:
    found = figure(RIGHT, rates(*[1] * 8, 0, 0), seed=0)
    assert found is not None
    assert (found.value, found.num_right, found.num_rows) == (0.8, 8, 10)
    assert (found.low, found.high) == (pytest.approx(0.490, abs=5e-4), pytest.approx(0.943, abs=5e-4))


def test_a_tie_is_half_a_right_row_in_figure_change_and_test() -> None:
    before, after = rates(0, 0, 0.5, 0.5, 1, 1, 0, 0), rates(1, 0.5, 0.5, 1, 1, 0.5, 0, 0)
    found = figure(RIGHT, after, seed=0)
    assert found is not None
    assert (found.num_right, found.value) == (4.5, 4.5 / 8)
    assert figure(RIGHT, rates(0.5, 0.5), seed=0) == figure(RIGHT, rates(1, 0), seed=0)
    moved = change(RIGHT, before, after, seed=0)
    assert moved is not None
    assert moved.value == 1.5 / 8
    interval = paired_rates(2.5, 0.5, 2, 3)
    assert (moved.low, moved.high) == (interval.low, interval.high)
    assert moved.p == sign_flip(np.array([1, 0.5, 0, 0.5, 0, -0.5, 0, 0]), seed=0)
    whole = change(RIGHT, rates(0.5, 0, 1), rates(0.5, 1, 1), seed=0)  # a tie on both sides is no change
    assert whole is not None
    assert whole.p == 1.0


def test_a_ratio_is_of_sums_and_its_scales_are_of_the_whole() -> None:
    rows = {0: (2.0, 1.0), 1: (3.0, 4.0), 2: (4.0, 4.0)}
    plain = figure(LOSS_MEASURE, rows, seed=0)
    perplexity, bits, _ = measures_of(["perplexity"], has_schema=False)
    exp, in_bits = figure(perplexity, rows, seed=0), figure(bits, rows, seed=0)
    assert plain is not None
    assert exp is not None
    assert in_bits is not None
    assert plain.value == pytest.approx(1.0)
    assert exp.value == pytest.approx(math.e)
    assert plain.low is not None
    assert plain.high is not None
    assert (exp.low, exp.high) == (pytest.approx(math.exp(plain.low)), pytest.approx(math.exp(plain.high)))
    assert in_bits.value == pytest.approx(1 / math.log(2))


def test_the_change_of_a_perplexity_is_a_factor() -> None:
    perplexity, *_ = measures_of(["perplexity"], has_schema=False)
    before = {row: (10.0 + row, 10.0) for row in range(20)}
    after = {row: (4.0 + row + 2 * (row % 2), 10.0) for row in range(20)}
    found = change(perplexity, before, after, seed=0)
    assert found is not None
    assert found.is_factor
    assert found.value == pytest.approx(math.exp(-0.5))
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high
    assert found.p < 0.001
    (result,) = corrected([Result(perplexity, {}, found)])
    assert result.is_better
    assert not result.is_worse


def test_the_change_of_a_ratio_is_that_of_its_figures_where_two_tokenizers_count_otherwise() -> None:
    bits = Measure("bits_per_byte", "perplexity", LOSS, "ratio", "bits", is_higher_better=False, scale="bits")
    before = {row: (30.0 + row % 5, 20.0) for row in range(30)}
    after = {row: (nats * 0.9, 19.0 - row % 2) for row, (nats, _) in before.items()}
    figures = [figure(bits, rows, seed=0) for rows in (before, after)]
    moved = change(bits, before, after, seed=0)
    assert moved is not None
    assert figures[0] is not None
    assert figures[1] is not None
    assert moved.value == pytest.approx(figures[1].value - figures[0].value)
    assert (moved.low or 0) < moved.value < (moved.high or 0)


def test_where_tokenizers_differ_the_losses_of_preferences_have_nothing_in_their_place() -> None:
    kinds = [measures_of(["preference"], has_schema=False, kind=kind) for kind in ("pairs", "marked")]
    names = [[one.name for one in without_tokens(measures)] for measures in kinds]
    assert names == [["preferred", "preferred_per_token"], ["good_over_bad"]]
    assert list(without_texts_of_tokens(kinds[0])) == list(kinds[0])


def test_only_rows_that_both_have_are_compared() -> None:
    found = change(MEAN, {0: (0.0,), 1: (0.5,), 7: (1.0,)}, {1: (1.0,), 7: (1.0,), 9: (0.0,)}, seed=0)
    assert found is not None
    assert (found.value, found.num_rows) == (0.25, 2)
    assert change(MEAN, {0: (0.0,)}, {1: (0.0,)}, seed=0) is None


def test_right_and_wrong_are_tested_by_mcnemar() -> None:
    before = rates(*[1] * 3, *[0] * 12, *[1] * 5)
    after = rates(*[0] * 3, *[1] * 12, *[1] * 5)
    found = change(RIGHT, before, after, seed=0)
    assert found is not None
    assert found.p == pytest.approx(0.03516, abs=5e-6)
    assert found.value == pytest.approx(9 / 20)


def test_newcombes_interval_is_that_of_the_paper() -> None:
    found = paired_rates(20, 2, 12, 16)
    assert (found.low, found.high) == (pytest.approx(0.0562, abs=1e-4), pytest.approx(0.3292, abs=1e-4))
    mirrored = paired_rates(20, 12, 2, 16)
    assert (mirrored.low, mirrored.high) == (pytest.approx(-found.high), pytest.approx(-found.low))
    nothing = paired_rates(8, 0, 0, 4)
    assert nothing.low < 0 < nothing.high
    assert paired_rates(0, 0, 12, 0).high == pytest.approx(1.0)


def test_newcombes_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    cells = (0.3, 0.1, 0.25, 0.35)
    hits = 0
    for counts in rng.multinomial(30, cells, size=2000):
        hits += 0.15 in paired_rates(*map(int, counts))
    assert 0.93 <= hits / 2000 <= 0.99


def test_sign_flips_are_exact_for_few_rows() -> None:
    differences = np.array([0.3, -0.1, 0.4, 0.2, 0.1])
    seen = abs(differences.sum()) - 1e-12
    every = [abs(float(np.dot(signs, differences))) >= seen for signs in product((1, -1), repeat=5)]
    assert sign_flip(differences, seed=0) == pytest.approx(sum(every) / 32)
    assert sign_flip(np.zeros(9), seed=0) == 1.0


def test_sign_flips_of_many_rows_are_drawn_near_the_exact_value_and_repeat() -> None:
    differences = np.random.default_rng(3).normal(0.25, 1.0, 16)
    bits = (np.arange(2**16)[:, None] >> np.arange(16)) & 1
    exact = float(np.mean(np.abs((1 - 2 * bits) @ differences) >= abs(differences.sum()) - 1e-12))
    assert sign_flip(differences, seed=1) == pytest.approx(exact, abs=0.02)
    assert sign_flip(differences, seed=1) == sign_flip(differences, seed=1)


def test_holm_counts_the_tested_measures_only() -> None:
    before = rates(*[0] * 10)
    sure = change(RIGHT, before, rates(*[1] * 6, *[0] * 4), seed=0)
    assert sure is not None
    shown = Measure("rouge1", "rouge", "answer", "mean", "ROUGE-1")
    results = corrected([Result(RIGHT, {}, sure), Result(MEAN, {}, sure), Result(shown, {}, sure)])
    adjusted = [one.change.p_holm for one in results if one.change]
    assert adjusted == [pytest.approx(2 * sure.p), pytest.approx(2 * sure.p), None]


def test_macro_f1_is_that_of_the_labels_and_has_an_interval() -> None:
    names = ["red", "blue", "green", None]
    pairs = [(0, 0), (0, 1), (1, 1), (2, -1), (2, 2), (1, 0), (0, 0), (0, 2)]
    measure = next(one for one in measures_of(["labels"], has_schema=False) if one.name == "macro_f1")
    found = figure(measure, {row: (float(a), float(b)) for row, (a, b) in enumerate(pairs)}, seed=0)
    assert found is not None
    assert found.value == pytest.approx(macro_f1([(str(names[a]), names[b]) for a, b in pairs]))
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.value <= found.high
    assert found.low < found.high


F1 = next(one for one in measures_of(["labels"], has_schema=False) if one.kind == "f1")


@pytest.mark.parametrize(
    ("measure", "rows"),
    [
        (MEAN, {0: (0.25,)}),
        (MEAN, dict.fromkeys(range(6), (0.1,))),
        (LOSS_MEASURE, {0: (2.0, 3.0)}),
        (LOSS_MEASURE, {row: (0.1 * (row + 1), 1.0 + row) for row in range(7)}),
        (F1, {row: (float(row), float(row)) for row in range(3)}),
    ],
)
def test_one_row_or_rows_that_do_not_differ_have_no_interval(measure: Measure, rows: dict) -> None:
    found = figure(measure, rows, seed=0)
    assert found is not None
    assert (found.low, found.high) == (None, None)
    if measure.kind != "f1":
        after = {row: (value[0] + 0.3 * (value[1] if len(value) > 1 else 1), *value[1:]) for row, value in rows.items()}
        changed = change(measure, rows, after, seed=0)
        assert changed is not None
        assert (changed.low, changed.high) == (None, None)


def test_a_rate_of_one_row_keeps_its_interval() -> None:
    found = figure(RIGHT, rates(1), seed=0)
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(0.2065, abs=1e-4), 1.0)
