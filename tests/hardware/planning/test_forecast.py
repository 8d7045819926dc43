"""Times fitted to timings, error bars that are as wide as what is not known, and sums over real runs."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes_of_models import TINYLLAMA

from mlx_finetune.hardware.limits import Machine
from mlx_finetune.hardware.planning.auto import Resolved, resolve_auto
from mlx_finetune.hardware.planning.chips import parse_mac
from mlx_finetune.hardware.planning.disk import DiskPlan
from mlx_finetune.hardware.planning.facts import Facts
from mlx_finetune.hardware.planning.forecast import (
    UNKNOWN_CPU,
    UNKNOWN_GPU,
    Beside,
    disk_at_end,
    forecast_arithmetic,
    forecast_mac,
    forecast_measured,
    overhead_of,
    plan_beside,
    time_sigma,
)
from mlx_finetune.hardware.planning.layout import epoch_positions
from mlx_finetune.hardware.planning.measured import Measured, ShapeCount, Timed, fit_times
from mlx_finetune.hardware.planning.overhead import operations_per_second, step_overhead
from mlx_finetune.hardware.planning.ranges import Range
from mlx_finetune.hardware.planning.shapes import read_shape
from mlx_finetune.hardware.profile import Corrections
from mlx_finetune.recipe.schema import Recipe

CPU = Machine(on_gpu=False, memory_bytes=24 * 10**9, working_set_bytes=16 * 10**9, chip="x86_64")
DISK = DiskPlan(adapter=2_000_000, checkpoint=10_000_000, needed=52_000_000, free=10**12)
NO_DISK = Range(0.0, 0.0, 0.0)


def seconds(rows: int, length: int) -> float:
    return 0.05 + 2e-4 * rows * length + 1e-6 * rows * length**2


def timings(*shapes: tuple[int, int], noise: float = 0.0) -> list[Timed]:
    rng = np.random.default_rng(0)
    return [Timed(b, t, seconds(b, t) * float(np.exp(noise * rng.normal()))) for b, t in shapes]


SHAPES = ((4, 64), (4, 512), (4, 128), (4, 256), (2, 512), (4, 384), (4, 128), (1, 64))


def test_a_fit_finds_the_law_behind_exact_timings() -> None:
    fit = fit_times(timings(*SHAPES))
    for rows, length in ((3, 200), (4, 450), (1, 100)):
        assert fit.seconds(rows, length) == pytest.approx(seconds(rows, length), rel=1e-6)
    assert fit.spread <= 0.011


def test_scattered_timings_are_taken_at_their_mean_not_at_their_fastest() -> None:
    times = (9.0, 0.3, 0.3, 0.9, 0.9)
    fit = fit_times([Timed(4, 100, seconds) for seconds in times])
    assert fit.seconds(4, 100) == pytest.approx(0.6)


def test_one_shape_is_taken_in_proportion_to_its_positions() -> None:
    fit = fit_times([Timed(4, 100, 2.0), Timed(4, 100, 1.0), Timed(4, 100, 1.0)])
    assert fit.seconds(4, 100) == pytest.approx(1.0)
    assert fit.seconds(8, 100) == pytest.approx(2.0)
    assert fit.cold_extra == pytest.approx(1.0)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([32, 64, 128, 256]), st.floats(0.01, 50.0)),
        min_size=1,
        max_size=12,
    )
)
def test_no_timings_make_a_microbatch_take_less_than_nothing(timed: list[tuple[int, int, float]]) -> None:
    fit = fit_times([Timed(*one) for one in timed])
    assert min(fit.constant, fit.per_position, fit.per_score, fit.first_extra, fit.cold_extra) >= 0
    assert fit.seconds(4, 256) > 0
    assert math.isfinite(fit.spread)


def test_compiling_is_counted_once_a_shape_and_not_for_every_microbatch() -> None:
    warm = timings((4, 64), (4, 128), (4, 128), (4, 256), (4, 256))
    timed = [replace(warm[0], seconds=9.0), *warm[1:]]
    timed[1] = replace(timed[1], seconds=timed[1].seconds + 3.0, is_first=True)
    timed[3] = replace(timed[3], seconds=timed[3].seconds + 3.0, is_first=True)
    fit = fit_times(timed)
    assert fit.first_extra == pytest.approx(3.0)
    assert fit.seconds(4, 128) == pytest.approx(seconds(4, 128), rel=0.02)
    shapes = (ShapeCount(4, 128, 100), ShapeCount(4, 256, 100))
    once = 100 * (fit.seconds(4, 128) + fit.seconds(4, 256))
    assert fit.total(shapes) == pytest.approx(once + 2 * 3.0 + fit.cold_extra)


def measured(**more: object) -> Measured:
    values = Measured(
        startup_seconds=4.0,
        load_peak_bytes=6 * 10**8,
        peak_bytes=15 * 10**8,
        process_bytes=2 * 10**9,
        microbatches=tuple(timings(*SHAPES)),
        update_seconds=0.1,
        validation=(Timed(4, 100, 0.4, is_first=True),),
        answer_seconds=0.1,
        shapes=(ShapeCount(4, 128, 30), ShapeCount(4, 256, 10)),
        valid_shapes=(ShapeCount(4, 100, 5),),
        total_steps=20,
        others_share=0.0,
        own_share=1.0,
        watts=None,
        seconds=20.0,
        is_cut_short=False,
    )
    return replace(values, **more)  # pyright: ignore[reportArgumentType]


BESIDE = Beside(num_evaluations=3, num_prompts=2, max_new_tokens=40, num_saves=4, checkpoint_bytes=10**8)


def forecast(found: Measured | None = None, known: Corrections | None = None, planned: int = 0):
    return forecast_measured(
        found or measured(),
        BESIDE,
        known or Corrections(),
        planned_peak_bytes=planned,
        on_gpu=False,
        disk_bytes=NO_DISK,
    )


def test_the_time_of_a_step_is_the_mean_over_the_real_microbatches() -> None:
    made = forecast()
    assert made.step_seconds is not None
    steps = (30 * seconds(4, 128) + 10 * seconds(4, 256) + 20 * 0.1) / 20
    assert made.step_seconds.expected == pytest.approx(steps, rel=1e-3)


def test_the_end_has_start_evaluations_answers_and_saves_in_it() -> None:
    with_all, steps = forecast().finish_seconds, forecast().step_seconds
    assert with_all is not None
    assert steps is not None
    rest = with_all.expected - 20 * steps.expected
    start, evaluations, answers = 4.0, 3 * 5 * 0.4, 0.7 * 3 * 2 * 40 * 0.1
    assert rest == pytest.approx(start + evaluations + answers + 1.0 + 4 * (0.15 + 1e8 / 150e6))
    assert forecast(measured(answer_seconds=None)).finish_seconds.expected == pytest.approx(  # pyright: ignore[reportOptionalMemberAccess]
        with_all.expected - answers
    )


def test_the_peak_is_the_larger_of_loading_and_training() -> None:
    assert forecast().peak_bytes.expected == 15 * 10**8
    assert forecast(measured(load_peak_bytes=2 * 10**9)).peak_bytes.expected == 2 * 10**9
    assert 15.3e8 in forecast().peak_bytes


def test_the_peak_may_be_what_arithmetic_says_where_the_threads_did_not_meet() -> None:
    assert 15.7e8 not in forecast().peak_bytes
    assert 15.7e8 in forecast(planned=1_580_000_000).peak_bytes
    assert 17e8 not in forecast(planned=4 * 10**9).peak_bytes


def test_energy_is_stated_only_where_a_sensor_told() -> None:
    assert forecast().joules is None
    with_sensor = forecast(measured(watts=30.0))
    assert with_sensor.joules is not None
    assert with_sensor.finish_seconds is not None
    assert with_sensor.joules.expected == pytest.approx(30 * with_sensor.finish_seconds.expected)


def width(value: Range | None) -> float:
    assert value is not None
    return value.high / value.low


def test_other_programs_and_scattered_timings_widen_the_bar() -> None:
    calm = width(forecast().step_seconds)
    assert width(forecast(measured(others_share=0.5)).step_seconds) > 1.5 * calm
    starved = forecast(measured(own_share=0.4)).step_seconds
    assert width(starved) > 0.95 / 0.4**2
    noisy = measured(microbatches=tuple(timings(*SHAPES, noise=0.5)))
    assert width(forecast(noisy).step_seconds) > 1.02 * calm


def test_plans_that_were_right_narrow_the_bar_and_wrong_ones_widen_and_move_it() -> None:
    fresh = forecast().step_seconds
    right = forecast(known=Corrections(time_ratios=(1.02, 0.98) * 8)).step_seconds
    wrong = forecast(known=Corrections(time_ratios=(2.0, 0.5) * 8)).step_seconds
    slow = forecast(known=Corrections(time_ratios=(1.3,) * 16)).step_seconds
    assert width(right) < width(fresh) < width(wrong)
    assert fresh is not None
    assert slow is not None
    assert slow.expected == pytest.approx(fresh.expected * 1.3**0.8)
    assert fresh.expected * 1.3 in slow


def test_before_a_run_was_compared_the_bar_is_that_of_a_machine_we_do_not_know() -> None:
    assert time_sigma((), on_gpu=False) == UNKNOWN_CPU
    assert time_sigma((), on_gpu=True) == UNKNOWN_GPU


def resolved(**training: object) -> tuple[Resolved, Facts]:
    values: dict[str, object] = {"max_steps": 20, "batch_size": 4, "learning_rate": 1e-4}
    recipe = Recipe.model_validate(
        {
            "model": "m",
            "output_dir": "o",
            "lora": {},
            "data": {"path": "d", "packing": False},
            "training": values | training,
        }
    )
    facts = Facts(np.array([65] * 40 + [129] * 40), read_shape(TINYLLAMA), CPU)
    return resolve_auto(recipe, facts), facts


def test_evaluations_and_saves_are_those_of_the_loop() -> None:
    made, _ = resolved(eval_steps=8, save_steps=5)
    beside = plan_beside(made, made.recipe.eval, 7)
    assert beside.num_evaluations == 1 + 3  # before step 1, after 8, 16 and 20
    assert beside.num_saves == len({5, 10, 15, 20, 8, 16})
    made, _ = resolved(eval_steps=8, save_steps=5, keep_best=False)
    assert plan_beside(made, made.recipe.eval, 7).num_saves == 4


def test_the_folder_at_the_end_holds_the_newest_checkpoints_and_perhaps_the_best() -> None:
    made, _ = resolved(eval_steps=2, save_steps=2, keep_checkpoints=3)
    bar = disk_at_end(made, DISK, plan_beside(made, made.recipe.eval, DISK.checkpoint))
    assert 3 * 10_000_000 + 2_000_000 in bar
    assert 4 * 10_000_000 + 2_000_000 in bar
    assert 6 * 10_000_000 not in bar


def test_positions_of_an_epoch_count_the_padding() -> None:
    lengths = np.array([9, 17, 33, 33])
    assert epoch_positions(lengths, None, 2) == 2 * 16 + 2 * 32
    assert epoch_positions(lengths, None, 4) == 4 * 32
    assert epoch_positions(lengths, 64, 2) == 2 * 64


def test_without_a_run_on_this_machine_no_time_is_invented() -> None:
    made, facts = resolved()
    by_arithmetic = forecast_arithmetic(made, facts.shape, 1e4, Corrections(), on_gpu=False, disk_bytes=NO_DISK)
    assert (by_arithmetic.step_seconds, by_arithmetic.finish_seconds) == (None, None)
    assert by_arithmetic.peak_bytes.expected == made.peak_bytes


def test_the_speed_of_earlier_runs_gives_a_time_without_measuring() -> None:
    made, facts = resolved()
    known = Corrections(flops_per_second=(1e12, 1e12))
    told = forecast_arithmetic(made, facts.shape, 1e4, known, on_gpu=False, disk_bytes=NO_DISK)
    assert told.finish_seconds is not None
    work = 1e4 * 4 * facts.shape.num_parameters / 1e12
    beside = made.total_steps * overhead_of(made, facts.shape, 1e4 / made.total_steps, on_gpu=False)
    assert told.finish_seconds.expected == pytest.approx(work + beside)


def test_a_small_model_takes_what_python_takes_for_its_blocks() -> None:
    """14 to 18 ms, 19 to 28 ms and 37 to 49 ms were measured of one row of 16 tokens (``overhead``)."""
    for blocks, found in ((2, 0.016), (3, 0.024), (6, 0.043)):
        shape = replace(read_shape(TINYLLAMA), num_layers=blocks)
        planned = step_overhead(shape, num_microbatches=1, positions=16, on_gpu=False)
        assert planned == pytest.approx(found, rel=0.4)
        assert step_overhead(shape, num_microbatches=1, positions=16, on_gpu=True) == 0


def test_the_rate_of_a_run_is_that_of_its_operations_alone() -> None:
    assert operations_per_second(1e9, 1.5, 0.5) == pytest.approx(1e9)
    assert operations_per_second(1e9, 1.5, 9.0) == pytest.approx(1e9 / 0.75)  # a machine that is faster at Python


def test_another_mac_is_a_range_of_its_share_of_the_peak() -> None:
    made, facts = resolved()
    told = forecast_mac(made, facts.shape, 1e6, parse_mac("M4 Max 64GB"), disk_bytes=NO_DISK)
    assert told.finish_seconds is not None
    assert told.finish_seconds.high / told.finish_seconds.low == pytest.approx(0.55 / 0.25)
    assert told.is_calibrated
    assert not forecast_mac(made, facts.shape, 1e6, parse_mac("M5 Max 64GB"), disk_bytes=NO_DISK).is_calibrated


def test_what_was_measured_survives_its_way_through_json() -> None:
    import json

    found = measured()
    assert Measured.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_range_says_its_bar_where_that_can_be_seen() -> None:
    assert Range(1.0, 2.0, 3.0).text(lambda value: f"{value:.0f} s") == "2 s (1 s to 3 s)"
    assert Range(1.9, 2.0, 2.1).text(lambda value: f"{value:.0f} s") == "2 s"
    assert Range.from_json(Range(1.0, 2.0, 3.0).to_json()) == Range(1.0, 2.0, 3.0)
    assert Range.from_json({"low": 3, "expected": 2, "high": 1}) is None
    assert Range.from_json("x") is None
