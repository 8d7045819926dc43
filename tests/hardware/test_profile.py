"""The profile of a machine: kept whole, corrected by runs, never in the way of one."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_finetune.errors import RunError
from mlx_finetune.hardware.limits import Machine
from mlx_finetune.hardware.profile import (
    KEPT_PLANS,
    KEPT_RUNS,
    Corrections,
    Happened,
    Planned,
    machine_key,
    plan_key,
    read_profile,
    record_run,
    remember_plan,
)
from mlx_finetune.recipe.schema import Recipe

GB = 10**9
PLANNED = Planned(2e9, 2.0, is_measured=True)
HAPPENED = Happened(2_200_000_000, 3.0, 1e12, 1.1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "profile.json"


def test_without_a_file_nothing_is_corrected_and_nothing_warned_about(path: Path) -> None:
    profile = read_profile(path)
    assert (profile.warning, profile.of("any")) == ("", Corrections())
    assert (Corrections().memory_factor, Corrections().time_factor) == (1.0, 1.0)


def test_a_plan_is_kept_until_its_run_is_over(path: Path) -> None:
    remember_plan(path, "a", PLANNED)
    remember_plan(path, "b", PLANNED)
    assert read_profile(path).plans == {"a": PLANNED, "b": PLANNED}
    record_run(path, "mac", "a", PLANNED, HAPPENED)
    profile = read_profile(path)
    assert profile.plans == {"b": PLANNED}
    assert profile.of("mac") == Corrections((1.1,), (1.5,), (1e12,))
    assert profile.of("another") == Corrections()


def test_only_the_newest_plans_stay(path: Path) -> None:
    for number in range(KEPT_PLANS + 3):
        remember_plan(path, f"plan {99 - number}", Planned(1e9, 1.0, is_measured=True, made=float(number)))
    kept = read_profile(path).plans
    assert len(kept) == KEPT_PLANS
    assert {"plan 99", "plan 98", "plan 97"}.isdisjoint(kept)


def test_only_the_newest_runs_count(path: Path) -> None:
    for number in range(KEPT_RUNS + 2):
        happened = Happened(2 * GB, 2.0 + number / 10, 1e12 + number, 1.0)
        record_run(path, "mac", "", PLANNED, happened)
    known = read_profile(path).of("mac")
    assert len(known.time_ratios) == len(known.memory_ratios) == len(known.flops_per_second) == KEPT_RUNS
    assert known.flops_per_second[-1] == 1e12 + KEPT_RUNS + 1


def test_one_odd_run_moves_little_and_twenty_equal_ones_nearly_all_the_way() -> None:
    assert Corrections(memory_ratios=(2.0,)).memory_factor == pytest.approx(2 ** (1 / 5))
    assert Corrections(memory_ratios=(1.5,) * 20).memory_factor == pytest.approx(1.5 ** (20 / 24))
    assert Corrections(time_ratios=(0.5, 2.0)).time_factor == pytest.approx(1.0)


def test_a_correction_that_was_in_the_plan_is_not_counted_twice(path: Path) -> None:
    record_run(path, "mac", "", Planned(2e9, 3.0, is_measured=True, time_factor=1.5), HAPPENED)
    assert read_profile(path).of("mac").time_ratios == (1.5,)  # 3 s happened; the plan said 2 s, times 1.5


def test_a_plan_by_arithmetic_teaches_nothing_about_measured_times(path: Path) -> None:
    record_run(path, "mac", "", Planned(2e9, 9.0, is_measured=False), HAPPENED)
    record_run(path, "mac", "", None, HAPPENED)
    known = read_profile(path).of("mac")
    assert (known.time_ratios, known.num_runs) == ((), 2)


def test_runs_of_toys_and_runs_that_are_another_thing_than_planned_teach_nothing(path: Path) -> None:
    record_run(path, "mac", "", PLANNED, Happened(20_000_000, 0.1, 1e9, 2.0))
    assert read_profile(path).of("mac") == Corrections()
    record_run(path, "mac", "", PLANNED, Happened(2 * GB, 200.0, 1e12, 1.0))
    assert read_profile(path).of("mac").time_ratios == ()


def test_a_run_that_saw_a_part_teaches_only_where_it_took_more_than_planned(path: Path) -> None:
    for ratio in (0.57, 0.99, 1.3):
        record_run(path, "mac", "", PLANNED, Happened(2 * GB, 3.0, 1e12, ratio, is_whole=False))
    known = read_profile(path).of("mac")
    assert known.memory_ratios == (1.3,)
    assert len(known.time_ratios) == len(known.flops_per_second) == 3


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"format_version": 99, "machines": {}, "plans": {}}',
        b'{"format_version": 2}',
        b'{"format_version": 2, "machines": [], "plans": {}}',
        b'{"format_version": 2, "machines": {"m": {"other": [1]}}, "plans": {}}',
        b'{"format_version": 2, "machines": {"m": {"memory_ratios": [-1]}}, "plans": {}}',
        b'{"format_version": 2, "machines": {"m": {"memory_ratios": ["x"]}}, "plans": {}}',
        b'{"format_version": 2, "machines": {"m": {"memory_ratios": [NaN]}}, "plans": {}}',
        b'{"format_version": 2, "machines": {}, "plans": {"k": {"peak_bytes": 0, "step_seconds": 1}}}',
        b'{"format_version": 2, "machines": {}, "plans": {"k": [1]}}',
    ],
)
def test_a_file_that_cannot_be_used_is_left_out_with_one_warning_and_written_anew(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    profile = read_profile(path)
    assert str(path) in profile.warning
    assert (profile.machines, profile.plans) == ({}, {})
    record_run(path, "mac", "", PLANNED, HAPPENED)
    again = read_profile(path)
    assert again.warning == ""
    assert again.of("mac").num_runs == 1


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_whatever_is_in_the_file_reading_gives_a_profile(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("profile") / "profile.json"
    path.write_bytes(content)
    assert read_profile(path).of("mac") == Corrections()


def test_a_profile_that_cannot_be_written_says_so(path: Path) -> None:
    path.mkdir(parents=True)
    assert "cannot be read" in read_profile(path).warning
    with pytest.raises((OSError, RunError)):
        remember_plan(path, "a", PLANNED)


def test_the_file_is_json_that_names_the_machine(path: Path) -> None:
    record_run(path, "Apple M4", "", PLANNED, HAPPENED)
    assert json.loads(path.read_text())["machines"]["Apple M4"]["flops_per_second"] == [1e12]


def test_a_machine_is_its_chip_its_cores_its_memory_and_its_mlx() -> None:
    mac = Machine(True, 64 * 2**30, 50 * GB, "Apple M4 Max", 40)
    assert machine_key(mac).startswith("Apple M4 Max, 40 GPU cores, 64.0 GiB, GPU, mlx 0.")
    others = [
        Machine(True, 64 * 2**30, 50 * GB, "Apple M4 Max", 32),
        Machine(True, 36 * 2**30, 50 * GB, "Apple M4 Max", 40),
        Machine(False, 64 * 2**30, 50 * GB, "Apple M4 Max", 40),
    ]
    assert machine_key(mac) not in {machine_key(other) for other in others}


def test_a_plan_belongs_to_its_recipe_wherever_that_writes_to() -> None:
    def recipe(**more: object) -> Recipe:
        return Recipe.model_validate({"model": "m", "output_dir": "a", "data": {"path": "d"}, "lora": {}, **more})

    assert plan_key(recipe(), "mac") == plan_key(recipe(output_dir="b"), "mac")
    assert plan_key(recipe(), "mac") != plan_key(recipe(), "another")
    assert plan_key(recipe(), "mac") != plan_key(recipe(seed=1), "mac")
