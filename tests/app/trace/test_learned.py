"""The sentence that says when: learned is what stays, known before is not learned, few probes prove little."""

import numpy as np
import pytest

from mlx_finetune.app.trace.asking import Reply
from mlx_finetune.app.trace.journal import Reload, StepResult
from mlx_finetune.app.trace.learned import describe_categories
from mlx_finetune.app.trace.probes import Probe
from mlx_finetune.dataset.tokens import Tokens

STEPS = (0, 25, 50, 75)


def probe():
    row = Tokens(np.array([1, 2], np.int32), np.array([False, True]), "probe", 1)
    return Probe("f:1", "colour", "q", ("a", "b", "c", "d"), (row,) * 4)


def reply(*, is_right):
    return Reply(1.0, 2, (-1.0, -2.0 if is_right else -0.5, -9.0, -9.0), 3)


def category(shares, count=24):
    """One category whose share of right probes at each of STEPS is given."""
    results = [
        StepResult(
            step, True, None, None, Reload(None, None),
            tuple(reply(is_right=place < share * count) for place in range(count)),
            (), (), (),
        )
        for step, share in zip(STEPS, shares, strict=True)
    ]  # fmt: skip
    return describe_categories(results, [probe()] * count, seed=1)[0]


def test_it_was_learned_at_the_first_checkpoint_from_which_on_most_are_right():
    found = category((0.25, 0.5, 1.0, 1.0))
    assert (found.outcome, found.before, found.step) == ("learned", 25, 50)
    assert found.sentence == (
        "colour: learned between step 25 (50% right, 31 to 69) and step 50 (100% right, 86 to 100); 24 held-out "
        "probes, chance 25%"
    )


@pytest.mark.parametrize(
    ("shares", "outcome", "step"),
    [
        ((0.25, 1.0, 0.5, 1.0), "learned", 75),  # what is lost again was not learned yet
        ((0.25, 1.0, 1.0, 0.5), "not learned", None),
        ((1.0, 1.0, 1.0, 1.0), "known before", 0),
        ((1.0, 0.5, 1.0, 1.0), "learned", 50),
        ((0.25, 0.25, 0.6, 0.65), "not learned", None),  # most, but not surely
    ],
)
def test_outcomes(shares, outcome, step):
    found = category(shares)
    assert (found.outcome, found.step) == (outcome, step)


def test_three_right_of_three_are_too_few_to_say_and_four_are_enough():
    found = category((0, 0, 1, 1), count=3)
    assert (found.outcome, found.step) == ("too few", None)
    assert found.sentence == (
        "colour: too few probes to say; 100% right, 44 to 100 at the last step (3 held-out probes, chance 25%; ask at "
        "least 4)"
    )
    assert category((0, 0, 1, 1), count=4).outcome == "learned"
    assert category((0, 0, 0, 0), count=4).outcome == "not learned"


def test_margins_and_ranks_are_means_over_probes():
    point = category((0.25, 0.5, 1.0, 1.0)).course[1]
    assert (point.num_right, point.rank, point.token_rank, point.loss) == (12, 1.5, 3, 0.5)
    assert point.margin == pytest.approx((12 * 1.0 + 12 * -0.5) / 24)
    low, high = point.margin_low, point.margin_high
    assert low is not None
    assert high is not None
    assert point.margin is not None
    assert low < point.margin < high
