"""The losses of ALGORITHMS.md 6 on its test vector, and where they must be exact or finite."""

import math

import mlx.core as mx
import pytest

from mlx_finetune.recipe.preference import PreferenceRecipe, kto_weights, preference_settings
from mlx_finetune.scoring.picks import share_right
from mlx_finetune.train.objectives.preference.formulas import kto_losses, pair_losses
from mlx_finetune.train.step import as_float

LOGPS, REFERENCE, LENGTHS = mx.array([[-10.0, -21.0]]), mx.array([[-11.0, -20.0]]), mx.array([[5.0, 7.0]])


def loss_of(task: str, logps: mx.array = LOGPS, reference: mx.array = REFERENCE, **given: object) -> float:
    settings = preference_settings(task, PreferenceRecipe.model_validate(given))
    losses, _ = pair_losses(task, settings, logps, LENGTHS, reference)
    return as_float(losses)


@pytest.mark.parametrize(
    ("task", "given", "expected"),
    [
        ("dpo", {}, 0.598139),
        ("cdpo", {}, 0.618139),
        ("rdpo", {}, 0.573139),
        ("ipo", {"length_normalise": False}, 9.0),
        ("ipo", {}, 21.688980),
        ("simpo", {}, 0.313262),
        ("orpo", {}, 2.028875),
    ],
)
def test_the_vector_of_the_specification(task, given, expected):
    """To 1e-6, or to the last place of fp32 where that is more: behind 21.7 the next number is 1.9e-6 away."""
    assert loss_of(task, **given) == pytest.approx(expected, abs=1e-6, rel=1e-7)


def test_kto_of_the_vector():
    settings = preference_settings("kto", PreferenceRecipe.model_validate({"good_weight": 1.0, "bad_weight": 1.0}))
    is_good = mx.array([1.0, 0.0])
    losses, rewards = kto_losses(settings, LOGPS[0], REFERENCE[0], is_good, mx.array([0.5, 0.5]))
    assert losses.tolist() == pytest.approx([0.487503, 0.462570], abs=1e-6)
    assert rewards.tolist() == pytest.approx([0.1, -0.1], abs=1e-6)


@pytest.mark.parametrize("task", ["dpo", "cdpo"])
def test_before_the_first_step_the_loss_is_ln_2_and_the_margin_0(task):
    settings = preference_settings(task, None)
    losses, rewards = pair_losses(task, settings, LOGPS, LENGTHS, LOGPS)
    assert losses.item() == pytest.approx(math.log(2), abs=1e-7)
    assert (rewards[:, 0] - rewards[:, 1]).item() == 0.0


@pytest.mark.parametrize("task", ["dpo", "cdpo", "rdpo", "simpo", "orpo"])
@pytest.mark.parametrize("far", [5e3, -5e3])
def test_losses_and_slopes_stay_finite_far_away(task, far):
    """``log(sigmoid(x))`` would be minus infinity there."""
    settings = preference_settings(task, None)

    def loss(logps: mx.array) -> mx.array:
        return pair_losses(task, settings, logps, LENGTHS, REFERENCE)[0][0]

    logps = mx.array([[-10.0, -10.0 - far]]) if far > 0 else mx.array([[-10.0 + far, -10.0]])
    value, slope = mx.value_and_grad(loss)(logps)
    assert math.isfinite(as_float(value))
    assert all(map(math.isfinite, slope.tolist()[0]))


def test_the_odds_of_a_certain_answer_are_finite():
    certain = mx.array([[0.0, -5.0]])
    assert math.isfinite(loss_of("orpo", certain))


def test_alpha_adds_the_loss_of_the_chosen_answer_per_token():
    assert loss_of("dpo", alpha=0.5) - loss_of("dpo") == pytest.approx(0.5 * 10 / 5, abs=1e-6)


@pytest.mark.parametrize(("counts", "expected"), [((10, 10), (1, 1)), ((30, 10), (1, 3)), ((5, 10), (2, 1))])
def test_weights_of_kto_make_both_kinds_weigh_alike(counts, expected):
    weights = kto_weights(*counts)
    assert weights == expected
    assert weights[0] * counts[0] == weights[1] * counts[1]


def test_a_tie_is_half_right():
    assert share_right(mx.sign(mx.array([0.2, 0.0, -0.1]))).tolist() == [1.0, 0.5, 0.0]
