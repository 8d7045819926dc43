"""The arithmetic of a learning-rate range test: rates, smoothing, where it ends, what it suggests."""

import itertools
import json
import math
from collections.abc import Sequence

import pytest

from mlx_finetune.hardware.planning.lr_range import (
    BETA,
    HIGHEST,
    LOWEST,
    NUM_STEPS,
    SETTLED,
    RangeFound,
    RangeTest,
    most_steps,
    rate_at,
)


def run(losses: list[float], before: Sequence[float] = ()) -> RangeFound:
    """``before`` is what the rows of each step cost before the test: all the same where it is left out."""
    test, has_diverged = RangeTest(), False
    for step, loss in enumerate(losses):
        has_diverged = test.add(rate_at(step, len(losses)), loss, before[step] if before else 2.0)
        if has_diverged:
            break
    return test.found(2e-4, has_diverged=has_diverged)


def valley(lowest_at: int, num_steps: int = NUM_STEPS) -> list[float]:
    """A loss that falls to ``lowest_at`` and rises steeply behind it."""
    return [2.0 - step / 100 if step <= lowest_at else 1.5 * 1.3 ** (step - lowest_at) for step in range(num_steps)]


def test_rates_rise_by_one_factor_from_the_lowest_to_the_highest() -> None:
    rates = [rate_at(step) for step in range(NUM_STEPS)]
    assert rates[0] == LOWEST
    assert rates[-1] == pytest.approx(HIGHEST, rel=1e-12)
    factors = [later / earlier for earlier, later in itertools.pairwise(rates)]
    assert max(factors) == pytest.approx(min(factors), rel=1e-9)


def test_the_average_has_bias_correction() -> None:
    points = run([3.0, 1.0, 2.0]).points
    assert points[0].smoothed == pytest.approx(3.0)
    second = (BETA * 0.1 * 3 + 0.1 * 1) / (1 - BETA**2)
    assert points[1].smoothed == pytest.approx(second)


def test_easy_rows_are_no_least_loss() -> None:
    """What rows cost differs by ten times what is learned; the easiest come at a rate that teaches nothing."""
    cost = [2.0 + 5 * math.sin(number / 9) for number in range(NUM_STEPS)]
    cost = [one + 5 for one in cost]
    learned = valley(60)
    found = run([now + one - 2.0 for now, one in zip(learned, cost, strict=True)], cost)
    plain = run(learned)
    assert found.best is not None
    assert plain.best is not None
    assert found.best.rate == plain.best.rate
    level = sum(cost[: len(found.points)]) / len(found.points)
    assert found.points[0].smoothed == pytest.approx(level)
    assert found.points[30].smoothed == pytest.approx(level + plain.points[30].smoothed - 2.0)


def test_it_ends_at_four_times_the_least_and_suggests_a_lower_rate_than_the_best() -> None:
    found = run(valley(60))
    assert found.has_diverged
    assert len(found.points) < NUM_STEPS
    least = min(one.smoothed for one in found.points)
    assert found.points[-1].smoothed > 4 * least >= found.points[-2].smoothed
    assert found.best is not None
    assert found.best.smoothed == least
    assert found.suggestion == pytest.approx(found.best.rate / 3, rel=0.05)
    assert found.is_third
    assert not found.is_at_end


def test_of_a_flat_valley_the_near_end_is_suggested() -> None:
    """Where the least loss lies in it is chance: here at its far end, a decade behind nine tenths of the fall."""
    found = run([2.0 - min(1.0, max(0, step - 40) / 20) - step / 1e4 for step in range(85)] + [9.0] * 15)
    assert found.best is not None
    assert found.best.rate > 7 * rate_at(60)
    assert found.suggestion is not None
    assert rate_at(60) < found.suggestion < 3 * rate_at(60)
    assert found.suggestion < found.best.rate / 3
    assert not found.is_third


def test_a_loss_that_is_no_number_ends_it_and_is_no_point() -> None:
    found = run([*valley(40)[:45], math.nan, 1.0])
    assert found.has_diverged
    assert len(found.points) == 45


@pytest.mark.parametrize("lowest_at", [NUM_STEPS - 1, NUM_STEPS - 3])
def test_nothing_is_suggested_where_the_loss_still_falls_at_the_end(lowest_at: int) -> None:
    """The average lags behind and is noisy, so the last few points are all the end."""
    found = run([2.0 - min(step, 2 * lowest_at - step) / 100 for step in range(NUM_STEPS)])
    assert (found.has_diverged, found.is_at_end) == (False, True)
    assert found.best is not None
    assert found.suggestion is None


def test_rates_go_on_beyond_the_highest_by_the_same_factor_for_two_decades() -> None:
    assert most_steps() == NUM_STEPS + 50
    assert rate_at(most_steps() - 1) == pytest.approx(100 * HIGHEST, rel=0.1)


@pytest.mark.parametrize("losses", [[2.0] * 5, [1.0 + step / 10 for step in range(NUM_STEPS)], []])
def test_nothing_is_suggested_where_nothing_was_learned(losses: list[float]) -> None:
    """The first losses are no least: an average of two may be low by chance."""
    found = run(losses)
    assert found.best is None
    assert found.suggestion is None


def test_the_least_of_the_first_points_does_not_count() -> None:
    losses = [0.1, *([2.0] * (SETTLED + 5)), *valley(60)[20:]]
    found = run(losses)
    assert found.best is None or found.best in found.points[SETTLED:]


def test_it_survives_json() -> None:
    found = run(valley(60))
    fields = json.loads(json.dumps(found.to_json()))
    assert RangeFound.from_json(fields) == found
    assert fields["suggestion"] == found.suggestion
