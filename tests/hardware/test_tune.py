"""What mlxft tune tries and what it keeps, with times that are made up: noise, ties, crashes, time that is up."""

import random
from dataclasses import replace
from typing import Any

import pytest

from mlx_finetune.hardware.tune import (
    HOPELESS,
    LEAST_GAIN,
    Case,
    Failure,
    Run,
    candidates,
    compare,
    is_open,
    noise_of,
    settle,
    stages,
    why_unsafe,
)
from mlx_finetune.hardware.tuned import TunedSettings

CPU = Case(
    on_gpu=False,
    is_full=False,
    num_cores=8,
    compute_dtype="float32",
    batch_size=4,
    accumulation=1,
    microbatch=4,
    gradient_checkpointing=False,
    num_threads="halves",
)
MAC = Case(
    on_gpu=True,
    is_full=False,
    num_cores=12,
    compute_dtype="bfloat16",
    batch_size=1,
    accumulation=16,
    microbatch=1,
    gradient_checkpointing=False,
    num_threads="auto",
)
A, B = TunedSettings(batch_size=1), TunedSettings(batch_size=2)
STEPS = (1.0, 2.0, 1.5)


def run(speed: float = 1.0, *, peak: int = 10**9, losses: tuple[float, ...] = (2.0, 1.9, 1.8), **more: float) -> Run:
    """A run ``speed`` times as fast as the default; ``step`` (from 0) of it was held up by ``held`` seconds."""
    seconds = [one / speed for one in STEPS]
    if "held" in more:
        seconds[int(more["step"])] += more["held"]
    return Run(tuple(seconds), losses, peak, 8 * 10**9)


def shown(case: Case) -> dict[str, list[dict[str, Any]]]:
    return {stage: [dict(one.values()) for one in candidates(stage, case)] for stage in stages(case)}


# --- candidates ---


def test_a_cpu_tries_threads_fewer_rows_at_once_and_recomputation() -> None:
    assert shown(CPU) == {
        "num_threads": [{"num_threads": 1}, {"num_threads": 4}, {"num_threads": 8}],
        "batch_size": [{"batch_size": 1}, {"batch_size": 2}],
        "gradient_checkpointing": [{"gradient_checkpointing": True}],
    }


def test_a_mac_tries_the_other_type_joined_rows_and_buffers() -> None:
    found = shown(MAC)
    assert found["compute_dtype"] == [{"compute_dtype": "float16"}]
    assert found["batch_size"] == [{"batch_size": 2}, {"batch_size": 4}]
    sizes = [one.get("max_ops_per_buffer") or one["max_mb_per_buffer"] for one in found["buffers"]]
    assert (min(sizes), max(sizes)) == (10, 200)
    assert list(found) == ["compute_dtype", "batch_size", "buffers", "gradient_checkpointing"]


def test_rows_at_once_never_exceed_those_of_a_step() -> None:
    for batch, accumulation, at_once in ((4, 1, 4), (6, 3, 6), (1, 1, 1), (3, 5, 15), (64, 1, 64)):
        case = replace(CPU, batch_size=batch, accumulation=accumulation, microbatch=at_once)
        sizes = [one.batch_size for one in candidates("batch_size", case)]
        assert all(size is not None and 1 <= size <= batch * accumulation and size != at_once for size in sizes)
        assert len(sizes) == len(set(sizes))


def test_what_the_recipe_decides_itself_is_not_tried() -> None:
    fixed = replace(CPU, fixed=frozenset({"batch_size", "gradient_checkpointing"}))
    assert shown(fixed)["batch_size"] == shown(fixed)["gradient_checkpointing"] == []
    assert shown(fixed)["num_threads"]


def test_a_full_fine_tuning_keeps_its_type_and_one_core_has_no_second_thread() -> None:
    assert shown(replace(MAC, is_full=True))["compute_dtype"] == []
    assert shown(replace(CPU, num_cores=1))["num_threads"] == [{"num_threads": 1}]


def test_where_memory_asked_for_recomputation_fewer_rows_without_it_are_tried() -> None:
    case = replace(MAC, batch_size=4, microbatch=4, gradient_checkpointing=True)
    assert shown(case)["gradient_checkpointing"] == [
        {"gradient_checkpointing": False, "batch_size": 1},
        {"gradient_checkpointing": False, "batch_size": 2},
    ]


def test_the_case_after_a_stage_has_what_was_kept() -> None:
    kept = CPU.with_settings(TunedSettings(num_threads=4, batch_size=2, gradient_checkpointing=True))
    assert (kept.num_threads, kept.microbatch, kept.gradient_checkpointing) == (4, 2, True)
    assert kept.with_settings(TunedSettings(gradient_checkpointing=False)).gradient_checkpointing is False
    assert kept.with_settings(TunedSettings()) == kept


# --- the rule ---


def test_faster_in_every_round_and_beyond_the_noise_wins() -> None:
    found = compare([run(), run(1.01), run(0.99)], [run(1.2), run(1.19), run(1.21)])
    assert found.is_faster
    assert found.gain == pytest.approx(1.2, abs=0.02)
    assert found.noise == pytest.approx(LEAST_GAIN, abs=0.01)


def test_two_rounds_are_not_enough_and_equal_times_are_a_tie() -> None:
    assert not compare([run(), run()], [run(2.0), run(2.0)]).is_faster
    assert not compare([run()] * 3, [run()] * 3).is_faster
    assert not compare([run()] * 3, [run(1 + LEAST_GAIN / 2)] * 3).is_faster


def test_one_slower_round_keeps_the_default() -> None:
    assert not compare([run()] * 3, [run(1.3), run(1.3), run(0.99)]).is_faster


def test_the_noise_is_that_of_the_default_against_itself() -> None:
    assert noise_of([run()]) == 0.0
    assert noise_of([run(), run(), run()]) == 0.0
    noisy = [run(1.0), run(1.3), run(0.75)]
    assert noise_of(noisy) > 0.3
    assert not compare(noisy, [run(1.25), run(1.6), run(0.95)]).is_faster


def test_a_run_that_was_held_up_once_moves_nothing() -> None:
    held = run(step=1, held=100.0)
    assert compare([run(), held, run()], [run(1.2)] * 3).is_faster
    assert compare([run()] * 3, [run(1.2), run(1.2, step=2, held=100.0), run(1.2)]).is_faster
    assert compare([run(), held, run()], [run()] * 3).gain == pytest.approx(1.0)


def test_of_many_comparisons_of_equals_few_find_a_winner() -> None:
    for spread in (0.02, 0.1, 0.5, 2.0):
        chance = random.Random(0)

        def noisy(gain: float, chance: random.Random = chance, spread: float = spread) -> Run:
            seconds = (one / gain * (1 + spread * chance.random()) for one in STEPS * 2)
            return Run(tuple(seconds), (2.0,), 1, 2)

        def won(gain: float) -> float:
            found = [compare([noisy(1.0) for _ in range(3)], [noisy(gain) for _ in range(3)]) for _ in range(500)]
            return sum(one.is_faster for one in found) / len(found)

        assert won(1.0) <= 0.04
        if spread <= 0.1:
            assert won(1.2) >= 0.99


# --- safety ---


@pytest.mark.parametrize(
    ("candidate", "is_16_bit", "said"),
    [
        (run(peak=9 * 10**9), False, "9.0 GB of memory, and the limit is 8.0 GB"),
        (run(losses=(2.0, float("nan"), 1.8)), False, "the loss of step 2 is not finite"),
        (run(losses=(2.0, 1.9, 1.81)), False, "the loss of step 3 is 1.8100 instead of 1.8000: more than rounding"),
        (run(losses=(2.0, 1.9, 1.81)), True, ""),
        (run(losses=(2.0, 1.9, 1.9)), True, "the loss of step 3 is 1.9000 instead of 1.8000: more than rounding"),
        (run(losses=(2.0005, 1.9, 1.8)), False, ""),
    ],
)
def test_only_what_fits_and_learns_the_same_is_safe(candidate: Run, is_16_bit: bool, said: str) -> None:
    assert why_unsafe(candidate, run(), is_16_bit=is_16_bit) == said


def test_the_fastest_unsafe_one_is_not_kept() -> None:
    tried, kept = settle(CPU, [run()] * 3, {A: [run(3.0, losses=(2.0, 1.9, 1.0))] * 3, B: [run(1.3)] * 3})
    assert kept == B
    assert [one.verdict for one in tried] == ["unsafe", "kept"]
    assert "instead of 1.8000" in tried[0].message


# --- what becomes of a stage ---


def test_the_fastest_of_several_winners_is_kept() -> None:
    tried, kept = settle(CPU, [run()] * 3, {A: [run(1.2)] * 3, B: [run(1.4)] * 3})
    assert kept == B
    assert [one.verdict for one in tried] == ["beaten", "kept"]
    assert tried[1].settings == {"hardware.microbatch": 2}
    assert tried[1].instead_of == {"hardware.microbatch": "4"}
    assert tried[1].gain == pytest.approx(1.4)


def test_a_tie_keeps_the_default_and_says_how_large_the_noise_was() -> None:
    tried, kept = settle(CPU, [run()] * 3, {A: [run(1.01)] * 3, B: [run(0.9)] * 3})
    assert kept is None
    assert [(one.verdict, one.noise) for one in tried] == [("tie", LEAST_GAIN), ("slower", LEAST_GAIN)]


@pytest.mark.parametrize("verdict", ["crashed", "timed_out", "no_memory", "refused"])
def test_a_candidate_that_fails_is_a_result_and_loses_whatever_it_did_before(verdict: str) -> None:
    failure = Failure(verdict, "it was not done after 60 s and was killed")  # pyright: ignore[reportArgumentType]
    tried, kept = settle(CPU, [run()] * 3, {A: [run(2.0), run(2.0), failure], B: [failure]})
    assert kept is None
    assert [(one.verdict, one.message) for one in tried] == [(verdict, failure.message)] * 2
    assert not is_open(CPU, A, [run()], [failure])


def test_all_that_fail_leave_the_default() -> None:
    failure = Failure("crashed", "a library aborted the training process (SIGABRT)")
    tried, kept = settle(CPU, [run()], {A: [failure], B: [failure]})
    assert kept is None
    assert {one.verdict for one in tried} == {"crashed"}


def test_a_round_without_the_default_or_without_the_candidate_does_not_count() -> None:
    tried, kept = settle(CPU, [run(), None, run()], {A: [run(2.0)] * 3, B: [run(2.0), None, run(2.0)]})
    assert kept is None
    assert [(one.verdict, one.rounds) for one in tried] == [("unsure", 2), ("unsure", 2)]
    assert "2 of 3 rounds" in tried[0].message


def test_what_was_never_run_is_not_known() -> None:
    tried, kept = settle(CPU, [None], {A: [None], B: []})
    assert kept is None
    assert [(one.verdict, one.gain, one.message) for one in tried] == [("unsure", None, "there was no time for it")] * 2


def test_only_the_hopeless_are_given_up_after_one_round() -> None:
    assert is_open(CPU, A, [run()], [run(1 - HOPELESS / 2)])
    assert not is_open(CPU, A, [run()], [run(1 - 2 * HOPELESS)])
    assert not is_open(CPU, A, [run()], [run(losses=(9.0, 9.0, 9.0))])
    assert is_open(CPU, A, [None], [run(0.1)])  # nothing to compare with yet
