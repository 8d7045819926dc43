"""The buffer sizes that a training process is started with: the recipe's, those it began with, or those tuned."""

from pathlib import Path
from typing import Any

import pytest
from tuned_sets import tuned_set

from mlx_finetune.app.running.launch import child_environment
from mlx_finetune.app.tune.buffers import tuned_buffers
from mlx_finetune.hardware.limits import Machine
from mlx_finetune.hardware.profile import machine_key, remember_tuned
from mlx_finetune.hardware.tuned import GENERAL, TunedSettings
from mlx_finetune.recipe.schema import Recipe

MAC = Machine(on_gpu=True, memory_bytes=64 * 2**30, working_set_bytes=51 * 10**9, chip="Apple M4 Max", gpu_cores=40)
TUNED = TunedSettings(max_ops_per_buffer=100, max_mb_per_buffer=25)


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    path = tmp_path / "profile.json"
    remember_tuned(path, machine_key(MAC), GENERAL, tuned_set(settings=TUNED))
    return path


def recipe(**hardware: Any) -> Recipe:
    values = {"model": "m", "output_dir": "o", "lora": {}, "data": {"path": "d"}, "hardware": hardware}
    return Recipe.model_validate(values)


def sizes(profile: Path, run_info: dict[str, Any] | None = None, *, system: str = "darwin", **hardware: Any):
    return tuned_buffers(recipe(**hardware), run_info, profile=profile, machine=MAC, system=system)


def test_on_a_mac_what_was_tuned_is_handed_to_the_process(profile: Path) -> None:
    tuned = sizes(profile)
    assert tuned == {"max_ops_per_buffer": 100, "max_mb_per_buffer": 25}
    environment = child_environment({}, "darwin", recipe().hardware, tuned)
    assert (environment["MLX_MAX_OPS_PER_BUFFER"], environment["MLX_MAX_MB_PER_BUFFER"]) == ("100", "25")


def test_what_the_recipe_says_counts(profile: Path) -> None:
    assert sizes(profile, max_ops_per_buffer=7) == {"max_mb_per_buffer": 25}
    assert sizes(profile, max_ops_per_buffer="off", max_mb_per_buffer="off") == {}


def test_a_run_that_goes_on_keeps_what_it_began_with(profile: Path) -> None:
    began = {"resolved": {"hardware": {"max_ops_per_buffer": 200, "max_mb_per_buffer": "auto"}}}
    assert sizes(profile, began) == {"max_ops_per_buffer": 200}
    assert sizes(profile, {"resolved": {"hardware": {}}}) == {}
    assert sizes(profile, {"resolved": 3}) == {}


def test_elsewhere_there_are_no_buffers_and_without_a_profile_no_numbers(profile: Path, tmp_path: Path) -> None:
    assert sizes(profile, system="linux") == {}
    assert sizes(tmp_path / "none.json") == {}
