"""What was tuned: who may use it, for how long it holds, and that nothing else is read from a file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tuned_sets import TRIED, tuned_set

from mlx_finetune.hardware.limits import Machine
from mlx_finetune.hardware.profile import (
    Happened,
    Planned,
    forget_tuned,
    machine_key,
    read_profile,
    record_run,
    remember_plan,
    remember_tuned,
    tuned_settings,
)
from mlx_finetune.hardware.tuned import (
    GENERAL,
    KEPT_SETS,
    NOTHING_TUNED,
    TunedSet,
    TunedSettings,
    recipe_key,
    stale_sentences,
    system_name,
    usable,
)
from mlx_finetune.recipe.schema import Recipe

CPU = Machine(on_gpu=False, memory_bytes=16 * 2**30, working_set_bytes=0, chip="some processor")
HERE = machine_key(CPU)


def recipe(**more: Any) -> Recipe:
    values = {"model": "m", "output_dir": "o", "lora": {}, "data": {"path": "d"}, "training": {"max_steps": 9}}
    return Recipe.model_validate(values | more)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "profile.json"


# --- values ---


def test_settings_become_overrides_and_variables() -> None:
    settings = TunedSettings(100, 25, "float16", 2, False, 4)
    assert settings.overrides() == [
        "hardware.compute_dtype=float16",
        "hardware.num_threads=4",
        "hardware.microbatch=2",
        "training.gradient_checkpointing=false",
    ]
    assert settings.environment() == {"MLX_MAX_OPS_PER_BUFFER": "100", "MLX_MAX_MB_PER_BUFFER": "25"}
    assert (NOTHING_TUNED.overrides(), NOTHING_TUNED.environment(), NOTHING_TUNED.values()) == ([], {}, {})


def test_the_later_settings_win_and_the_others_stay() -> None:
    first = TunedSettings(num_threads=4, gradient_checkpointing=True)
    assert first.merged(TunedSettings(gradient_checkpointing=False, batch_size=1)) == TunedSettings(
        num_threads=4, gradient_checkpointing=False, batch_size=1
    )


def test_a_set_survives_json_and_multiplies_what_was_kept() -> None:
    found = tuned_set()
    assert TunedSet.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert found.gain == pytest.approx(1.25 * 1.1)
    assert tuned_set(tried=TRIED[2:], settings=NOTHING_TUNED).gain == 1.0


def test_each_setting_has_its_reason() -> None:
    settings = tuned_set().with_reasons()
    assert settings.reasons == {
        "hardware.num_threads": "mlxft tune, 26 Nov 2026: 1.25 times as fast as halves",
        "hardware.microbatch": "mlxft tune, 26 Nov 2026: 1.10 times as fast as 4",
    }


@pytest.mark.parametrize(
    "change",
    [
        lambda one: one.pop("made"),
        lambda one: one.update(more=1),
        lambda one: one.update(made=float("nan")),
        lambda one: one.update(seconds="3"),
        lambda one: one.update(subject=None),
        lambda one: one["settings"].update(batch_size=0),
        lambda one: one["settings"].update(num_threads=True),
        lambda one: one["settings"].update(compute_dtype="int8"),
        lambda one: one["settings"].update(max_ops_per_buffer=10**9),
        lambda one: one["settings"].update(learning_rate=1.0),
        lambda one: one["tried"][0].update(verdict="perfect"),
        lambda one: one["tried"][0].update(gain=-1),
        lambda one: one["tried"][0].update(settings=[1]),
        lambda one: one.update(tried=3),
        lambda one: one.update(settings=None),
    ],
)
def test_nothing_else_is_read(change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(json.dumps(tuned_set().to_json()))
    change(values)
    with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
        TunedSet.from_json(values)


# --- who uses it ---


def test_recipes_of_one_model_and_shape_share_a_key_whatever_they_learn() -> None:
    key = recipe_key(recipe())
    assert key == recipe_key(recipe(seed=3, output_dir="p", training={"max_steps": 70, "learning_rate": 0.1}))
    assert key == recipe_key(recipe(data={"path": "other"}))
    others = [
        recipe(model="n"),
        recipe(quantize=4),
        recipe(lora=None),
        recipe(lora={"rank": 8}),
        recipe(data={"path": "d", "max_seq_length": 99}),
        recipe(training={"max_steps": 9, "batch_size": 2}),
    ]
    assert len({key, *map(recipe_key, others)}) == len(others) + 1


def test_the_recipes_own_set_comes_before_the_one_for_all() -> None:
    own = tuned_set(settings=TunedSettings(batch_size=1, gradient_checkpointing=True))
    sets = {GENERAL: tuned_set(), recipe_key(recipe()): own}
    assert usable(sets, recipe(), system_name()).batch_size == 1
    assert usable(sets, recipe(), system_name()).gradient_checkpointing is True
    assert usable(sets, recipe(model="n"), system_name()).values() == {"num_threads": 2, "batch_size": 2}


def test_a_batch_size_that_is_asked_for_goes_through_at_once_unless_its_recipe_was_tuned() -> None:
    asked = recipe(training={"max_steps": 9, "batch_size": 4})
    sets = {GENERAL: tuned_set()}
    assert usable(sets, asked, system_name()).values() == {"num_threads": 2}
    assert usable(sets | {recipe_key(asked): tuned_set()}, asked, system_name()).batch_size == 2


def test_recomputation_holds_for_the_model_it_was_measured_with_alone() -> None:
    sets = {GENERAL: tuned_set(settings=TunedSettings(gradient_checkpointing=True, num_threads=1))}
    assert usable(sets, recipe(), system_name()).values() == {"num_threads": 1}


def test_another_system_makes_it_stale() -> None:
    sets = {GENERAL: tuned_set(system="macOS 15.6"), recipe_key(recipe()): tuned_set(system="macOS 15.6")}
    assert usable(sets, recipe(), "macOS 26.1") == NOTHING_TUNED
    assert usable(sets, recipe(), "macOS 15.6") != NOTHING_TUNED
    assert usable({}, recipe(), "macOS 15.6") == NOTHING_TUNED


def test_of_macos_two_numbers_count_and_of_linux_none() -> None:
    assert system_name("darwin", "26.1.2") == "macOS 26.1"
    assert system_name("darwin", "14.0") == "macOS 14.0"
    assert system_name("linux", "6.1.0-18") == "Linux"


def test_what_is_stale_is_said_with_what_has_changed() -> None:
    mac = "Apple M4, 10 GPU cores, 16.0 GiB, GPU, mlx "
    sets = {mac + "0.32.4": {GENERAL: tuned_set(system="macOS 26.1")}}
    assert stale_sentences(sets, mac + "0.32.4", "macOS 26.1") == []
    assert stale_sentences(sets, mac + "0.33.0", "macOS 26.1") == ["tuned with mlx 0.32.4, and this is mlx 0.33.0"]
    assert stale_sentences(sets, mac + "0.32.4", "macOS 26.2") == ["tuned on macOS 26.1, and this is macOS 26.2"]
    both = sets | {mac + "0.33.0": {GENERAL: tuned_set(system="macOS 26.2")}}
    assert stale_sentences(both, mac + "0.33.0", "macOS 26.2") == []
    assert stale_sentences({}, mac + "0.32.4", "macOS 26.1") == []


# --- the profile ---


def test_sets_are_kept_beside_the_corrections_and_neither_loses_the_other(path: Path) -> None:
    remember_plan(path, "a", Planned(2e9, 2.0, is_measured=True))
    remember_tuned(path, HERE, GENERAL, tuned_set())
    record_run(path, HERE, "a", None, Happened(2 * 10**9, 3.0, 1e12, 1.1))
    remember_plan(path, "b", Planned(2e9, 2.0, is_measured=True))
    profile = read_profile(path)
    assert profile.warning == ""
    assert profile.tuned == {HERE: {GENERAL: tuned_set()}}
    assert profile.of(HERE).memory_ratios == (1.1,)
    assert list(profile.plans) == ["b"]
    assert tuned_settings(profile, CPU, recipe()).num_threads == 2


def test_a_profile_from_before_there_was_tuning_is_read(path: Path) -> None:
    remember_plan(path, "a", Planned(2e9, 2.0, is_measured=True))
    values = json.loads(path.read_text())
    del values["tuned"]
    path.write_text(json.dumps(values))
    profile = read_profile(path)
    assert (profile.warning, dict(profile.tuned), list(profile.plans)) == ("", {}, ["a"])


@pytest.mark.parametrize("tuned", [[1], {"m": 1}, {"m": {"": 1}}, {"m": {"": {}}}, "x"])
def test_a_damaged_set_damages_the_file_with_one_warning(path: Path, tuned: object) -> None:
    remember_plan(path, "a", Planned(2e9, 2.0, is_measured=True))
    values = json.loads(path.read_text()) | {"tuned": tuned}
    path.write_text(json.dumps(values))
    profile = read_profile(path)
    assert "is damaged" in profile.warning
    assert (dict(profile.tuned), dict(profile.plans)) == ({}, {})
    remember_tuned(path, HERE, GENERAL, tuned_set())
    assert read_profile(path).tuned == {HERE: {GENERAL: tuned_set()}}


def test_only_the_newest_sets_stay(path: Path) -> None:
    for number in range(KEPT_SETS + 2):
        remember_tuned(path, HERE, str(number), tuned_set(made=float(number)))
    assert {"0", "1"}.isdisjoint(read_profile(path).tuned[HERE])
    assert len(read_profile(path).tuned[HERE]) == KEPT_SETS


def test_forgetting_one_set_leaves_the_others_and_forgetting_all_takes_those_of_older_versions(path: Path) -> None:
    older = HERE.rpartition(", mlx ")[0] + ", mlx 0.1.0"
    for machine, key in ((HERE, GENERAL), (HERE, "a"), (older, GENERAL), ("another, mlx 1", GENERAL)):
        remember_tuned(path, machine, key, tuned_set())
    assert forget_tuned(path, HERE, "a") == 1
    assert {machine: list(sets) for machine, sets in read_profile(path).tuned.items()} == {
        HERE: [GENERAL],
        older: [GENERAL],
        "another, mlx 1": [GENERAL],
    }
    assert forget_tuned(path, HERE) == 2
    assert list(read_profile(path).tuned) == ["another, mlx 1"]
    before = path.read_bytes()
    assert forget_tuned(path, HERE) == 0
    assert path.read_bytes() == before


def test_forgetting_where_there_is_nothing_writes_nothing(path: Path) -> None:
    assert forget_tuned(path, HERE) == 0
    assert not path.exists()
