"""Which trial comes next: the best rate, then the best rank, then the best third and the recipe with all steps."""

from collections.abc import Callable

import pytest

from mlx_finetune.app.sweep.design import MOST_TRIALS, Base, Done, Trial, best_of, edges_of, next_trial, steps_of

BASE = Base(2e-4, 16, 300)


def run(base: Base, loss_of: Callable[[Trial], float | None]) -> list[Done]:
    """A whole sweep whose trials come to ``loss_of``."""
    done: list[Done] = []
    while (trial := next_trial(base, done)) is not None:
        assert len(done) < MOST_TRIALS
        done.append(Done(trial, loss_of(trial), failure="" if loss_of(trial) is not None else "diverged"))
    return done


def far_from(rate: float, rank: int = 16) -> Callable[[Trial], float]:
    """A loss that is lowest at ``rate`` and ``rank``, and lower with more steps."""
    import math

    return lambda trial: (
        1
        + abs(math.log(trial.learning_rate / rate))
        + 0.1 * abs(math.log((trial.rank or rank) / rank))
        - trial.steps / 1000
    )


def settings(done: list[Done]) -> list[tuple[str, float, int | None, int]]:
    return [(one.trial.rung, round(one.trial.learning_rate, 7), one.trial.rank, one.trial.steps) for one in done]


def test_the_recipes_rate_in_the_middle_needs_no_further_rate() -> None:
    done = run(BASE, far_from(2e-4, rank=32))
    assert settings(done) == [
        ("learning rate", 2e-4, 16, 100),
        ("learning rate", 6.67e-5, 16, 100),
        ("learning rate", 6e-4, 16, 100),
        ("rank", 2e-4, 8, 100),
        ("rank", 2e-4, 32, 100),
        ("all steps", 2e-4, 32, 300),
        ("all steps", 2e-4, 16, 300),
    ]
    best = best_of(done)
    assert best is not None
    assert (best.trial.rank, best.trial.steps) == (32, 300)


@pytest.mark.parametrize(("rate", "beyond"), [(1e-5, 2e-4 / 9), (1e-2, 2e-4 * 9)])
def test_a_best_rate_at_an_end_is_followed_once(rate: float, beyond: float) -> None:
    done = run(BASE, far_from(rate))
    rates = [one.trial.learning_rate for one in done if one.trial.rung == "learning rate"]
    assert len(rates) == 4
    assert rates[-1] == pytest.approx(beyond)
    assert len(done) == MOST_TRIALS
    assert {one.trial.learning_rate for one in done[4:7]} == {rates[-1]}
    assert (done[7].trial.learning_rate, done[7].trial.rank) == (2e-4, 16)


def test_without_an_adapter_there_is_no_rank_to_try() -> None:
    done = run(Base(1e-5, None, 31), far_from(1e-5))
    assert [one.trial.rung for one in done] == ["learning rate"] * 3 + ["all steps"]
    assert [one.trial.steps for one in done] == [11, 11, 11, 31]


@pytest.mark.parametrize("rank", [None, 1, 16])
@pytest.mark.parametrize("rate", [1e-5, 2e-4, 1e-2])
@pytest.mark.parametrize("best_rank", [1, 16, 100])
def test_what_wins_has_beaten_the_recipe_with_all_steps(rank: int | None, rate: float, best_rank: int) -> None:
    """A third of the steps likes other settings than all of them."""
    base = Base(2e-4, rank, 300)
    few = far_from(rate, best_rank)
    done = run(base, lambda trial: few(trial) if trial.steps < 300 else far_from(2e-4, rank or 1)(trial))
    best = best_of(done)
    assert best is not None
    assert (best.trial.learning_rate, best.trial.rank, best.trial.steps) == (2e-4, rank, 300)
    least, most = steps_of(base)
    assert least <= sum(one.trial.steps for one in done) <= most


def test_rank_1_has_no_half() -> None:
    assert {one.trial.rank for one in run(Base(1e-4, 1, 30), far_from(1e-4, rank=1))} == {1, 2}


def test_a_trial_that_diverged_is_no_candidate() -> None:
    done = run(BASE, lambda trial: None if trial.learning_rate > 3e-4 else far_from(3e-3)(trial))
    assert all(one.trial.learning_rate <= 3e-4 for one in done[3:])
    assert best_of(done) is not None


def test_a_sweep_whose_rates_all_diverge_ends() -> None:
    done = run(BASE, lambda trial: None)
    assert len(done) == 3
    assert best_of(done) is None


def test_the_winner_has_all_steps_although_a_shorter_trial_had_less_loss() -> None:
    done = [Done(Trial(1, "learning rate", 1e-4, 8, 10), 1.0), Done(Trial(2, "all steps", 1e-4, 8, 30), 1.2)]
    assert best_of(done) == done[1]


@pytest.mark.parametrize("cut", range(7))
def test_it_goes_on_where_it_was_left(cut: int) -> None:
    """The next trial depends on those that are done alone."""
    done = run(BASE, far_from(6e-4))
    assert next_trial(BASE, done[:cut]) == done[cut].trial


@pytest.mark.parametrize(
    ("loss_of", "edges"),
    [
        (far_from(2e-4, rank=16), {}),
        (far_from(1e-2), {"learning rate": "highest"}),
        (far_from(1e-5, rank=100), {"learning rate": "lowest", "rank": "highest"}),
        (far_from(2e-4, rank=1), {"rank": "lowest"}),
        (lambda trial: None if trial.learning_rate > 7e-4 else far_from(6e-4)(trial), {}),
        (lambda trial: None, {}),
    ],
)
def test_a_winner_at_an_end_of_what_was_tried_is_named(
    loss_of: Callable[[Trial], float | None], edges: dict[str, str]
) -> None:
    assert edges_of(run(BASE, loss_of)) == edges


def test_a_whole_model_has_no_rank_at_an_end() -> None:
    assert edges_of(run(Base(1e-5, None, 31), far_from(1e-5))) == {}
