"""A process of mlxft tune: which steps it takes, what it says of them, and that nothing is drawn at random in it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import write_recipe

from mlx_finetune.app.tune.children import Report, run_trial
from mlx_finetune.app.tune.subject import Subject
from mlx_finetune.hardware.tune import Failure
from mlx_finetune.hardware.tuned import NOTHING_TUNED, TunedSettings
from mlx_finetune.recipe.load import load_recipe
from mlx_finetune.train.trial import LEAST_STEPS, MOST_STEPS, choose_steps, count_steps, without_noise


def test_the_largest_step_warms_up_and_typical_ones_are_timed() -> None:
    tokens = [10, 50, 20, 40, 30]
    largest, typical = choose_steps(tokens)
    assert largest == 1
    assert [tokens[step] for step in typical[:4]] == [30, 40, 20, 50]
    assert len(typical) == MOST_STEPS
    assert choose_steps([7]) == (0, [0] * MOST_STEPS)


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, 10), (0.1, 10), (1.0, 6), (2.0, 3), (100.0, 3)])
def test_as_many_steps_as_fit_into_the_time(seconds: float, expected: int) -> None:
    assert LEAST_STEPS <= count_steps(seconds, 6.0) == expected <= MOST_STEPS


def test_noise_is_switched_off_and_every_block_is_computed(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    recipe = without_noise(load_recipe(write_recipe(tmp_path, tiny_model("llama")), ["training.batch_size=3"])).recipe
    assert recipe.lora is not None
    assert (recipe.lora.dropout, recipe.training.neftune_alpha, recipe.training.batch_size) == (0, 0, 3)
    assert recipe.training.reuse_frozen_layers is False


def test_full_fine_tuning_stays_full(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    path = write_recipe(tmp_path, tiny_model("llama"))
    text = path.read_text()
    path.write_text(text[: text.index("[lora]")] + text[text.index("[data]") :])
    assert without_noise(load_recipe(path)).recipe.lora is None


def trial(recipe: Path, settings: TunedSettings = NOTHING_TUNED, *, num_steps: int = 3) -> Report | Failure:
    return run_trial(Subject(recipe, (), "", "tiny", ""), settings, num_steps, 300.0)


def test_a_real_process_takes_the_same_steps_whatever_the_settings(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLXFT_CACHE", str(tmp_path / "cache"))
    recipe = write_recipe(tmp_path, tiny_model("llama"), packing="false")
    before = sorted(path.name for path in tmp_path.iterdir())
    plain = trial(recipe, num_steps=0)
    assert isinstance(plain, Report), plain
    assert len(plain.run.seconds) == MOST_STEPS
    assert (plain.case.batch_size, plain.case.accumulation, plain.case.microbatch) == (2, 2, 2)
    assert plain.case.fixed == frozenset()
    other = trial(recipe, TunedSettings(batch_size=4, num_threads=1, gradient_checkpointing=True), num_steps=10)
    assert isinstance(other, Report), other
    assert other.run.losses == pytest.approx(plain.run.losses, rel=1e-4)
    assert other.run.losses != plain.run.losses
    assert (other.case.microbatch, other.case.num_threads, other.case.gradient_checkpointing) == (4, 1, True)
    assert all(seconds > 0 for seconds in other.run.seconds)
    assert 0 < other.run.peak_bytes < other.run.limit_bytes
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({*before, "cache"})


def test_a_process_whose_settings_do_not_fit_says_so(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLXFT_CACHE", str(tmp_path / "cache"))
    recipe = write_recipe(tmp_path, tiny_model("llama"), extra='[hardware]\nmemory_limit = "1 MB"')
    found = trial(recipe)
    assert isinstance(found, Failure)
    assert found.verdict == "no_memory"
    assert "the memory limit is 1.0 MB" in found.message


def test_an_orphan_leaves(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    arguments = [sys.executable, "-m", "mlx_finetune.train.trial", "--recipe", str(recipe), "--parent-pid", "1"]
    ended = subprocess.run(arguments, capture_output=True, text=True, env=os.environ, check=False, timeout=300)
    assert ended.returncode == 129
    assert "trial" not in ended.stdout
    assert json.dumps("error") not in ended.stdout
