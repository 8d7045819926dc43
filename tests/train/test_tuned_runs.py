"""Runs with settings that were tuned: the same training but for rounding; a resumed run keeps those it began with."""

import hashlib
import json
import tomllib
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_runs import CALM as QUIET
from small_runs import course, train, write_recipe
from tuned_sets import MADE, tuned_set

from mlx_finetune import rundir
from mlx_finetune.errors import RunError
from mlx_finetune.events import Evaluated, StepDone
from mlx_finetune.hardware import blas
from mlx_finetune.hardware.limits import read_machine
from mlx_finetune.hardware.profile import forget_tuned, machine_key, remember_tuned
from mlx_finetune.hardware.tuned import GENERAL, Tried, TunedSettings, recipe_key
from mlx_finetune.journal import read_events
from mlx_finetune.recipe.hardware import HardwareRecipe
from mlx_finetune.recipe.load import load_recipe
from mlx_finetune.rundir import RunDir
from mlx_finetune.train.compare import profile_path
from mlx_finetune.train.machine import with_setting_reasons

CALM = ("lora.dropout=0", "training.neftune_alpha=0")
REASON = "mlxft tune, 26 Nov 2026: 1.30 times as fast as the default"


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """A cache of its own, and as many BLAS threads afterwards as before: they belong to the process."""
    monkeypatch.setenv("MLXFT_CACHE", str(tmp_path / "cache"))
    threads = blas.num_threads()
    yield
    if threads is not None:
        blas.use_threads(threads)


def machine() -> str:
    return machine_key(read_machine(on_gpu=False))


def tune(recipe: Path, **settings: Any) -> None:
    """As if mlxft tune had been asked for this recipe."""
    kept = TunedSettings(**settings)
    tried = tuple(Tried({key.partition("=")[0]: 1}, {}, "kept", 3, 1.3, 0.02) for key in kept.overrides())
    key = recipe_key(load_recipe(recipe).recipe)
    remember_tuned(profile_path(), machine(), key, tuned_set(settings=kept, tried=tried, made=MADE))


def results(run: RunDir) -> list[str]:
    names = (rundir.MLX_WEIGHTS, rundir.PEFT_WEIGHTS)
    return [hashlib.sha256(run.file(name).read_bytes()).hexdigest() for name in names]


def losses(run: RunDir) -> list[float]:
    events = [record.event for record in read_events(run.file(rundir.EVENTS))]
    return [one.loss for one in events if isinstance(one, StepDone | Evaluated) and one.loss is not None]


def targets(run: RunDir) -> list[int]:
    events = [record.event for record in read_events(run.file(rundir.EVENTS))]
    return [one.num_targets for one in events if isinstance(one, StepDone)]


def hardware(run: RunDir) -> dict[str, Any]:
    return tomllib.loads(run.file(rundir.RESOLVED).read_text())["hardware"]


@pytest.mark.some(3)
@pytest.mark.parametrize("packing", ["true", "false"])
@pytest.mark.parametrize(
    "changed",
    [
        "hardware.microbatch=1",
        "hardware.microbatch=3",
        "hardware.microbatch=4",
        "hardware.num_threads=1",
        "hardware.num_threads=2",
    ],
)
def test_another_microbatch_and_other_threads_learn_the_same_but_for_rounding(
    tiny_model: Callable[..., Path], tmp_path: Path, packing: str, changed: str
) -> None:
    plain = train(write_recipe(tmp_path, tiny_model("llama"), name="plain", packing=packing), overrides=CALM)
    other = train(
        write_recipe(tmp_path, tiny_model("llama"), name="other", packing=packing), overrides=(*CALM, changed)
    )
    assert losses(other) == pytest.approx(losses(plain), rel=1e-4)
    assert targets(other) == targets(plain)


def test_what_was_tuned_is_used_and_resolved_toml_says_since_when(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    tune(recipe, batch_size=1, num_threads=1, gradient_checkpointing=True)
    run = train(recipe)
    text = run.file(rundir.RESOLVED).read_text()
    assert (hardware(run)["microbatch"], hardware(run)["num_threads"]) == (1, 1)
    for line in ("microbatch = 1", "num_threads = 1", "gradient_checkpointing = true"):
        assert f"\n{line}  # {REASON}\n" in text, line


@pytest.mark.some(1)
@pytest.mark.parametrize("later", [{"batch_size": 2, "num_threads": 2}, {}])
def test_a_resumed_run_keeps_the_settings_it_began_with_bit_for_bit(
    tiny_model: Callable[..., Path], tmp_path: Path, later: dict[str, Any]
) -> None:
    straight, broken = (write_recipe(tmp_path, tiny_model("llama"), name=name) for name in ("straight", "broken"))
    tune(straight, batch_size=1, num_threads=1)
    whole = train(straight)
    run = train(broken, stop_after=3)
    before = hardware(run)
    forget_tuned(profile_path(), machine())
    if later:
        tune(broken, **later)
    train(broken, resume=True)
    assert hardware(run) == before
    assert course(run) == course(whole)
    assert results(run) == results(whole)


def test_a_run_that_began_without_tuning_goes_on_without_it(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    straight, broken = (write_recipe(tmp_path, tiny_model("llama"), name=name) for name in ("straight", "broken"))
    whole = train(straight)
    run = train(broken, kill_after=3)
    tune(broken, batch_size=1, num_threads=1)
    train(broken, resume=True)
    assert course(run) == course(whole)
    assert results(run) == results(whole)


def test_a_resumed_run_keeps_its_buffer_sizes_unless_the_recipe_says_another(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    run = train(recipe, stop_after=1)
    info = json.loads(run.file(rundir.RUN_INFO).read_text())
    info["resolved"]["hardware"]["max_ops_per_buffer"] = 100
    run.file(rundir.RUN_INFO).write_text(json.dumps(info))
    train(recipe, resume=True, stop_after=2)
    assert hardware(run)["max_ops_per_buffer"] == 100
    train(recipe, resume=True, overrides=("hardware.max_ops_per_buffer=50",))
    assert hardware(run)["max_ops_per_buffer"] == 50


def test_a_reason_gives_way_only_to_the_users_environment() -> None:
    buffers = HardwareRecipe.model_validate({"max_ops_per_buffer": 100, "max_mb_per_buffer": 25})
    around = replace(QUIET, environment={"MLX_MAX_MB_PER_BUFFER": "10"}, system="darwin")
    tuned = {"hardware.max_ops_per_buffer": REASON, "hardware.max_mb_per_buffer": REASON, "seed": "drawn"}
    reasons = with_setting_reasons(tuned, buffers, around)
    assert (reasons["hardware.max_ops_per_buffer"], reasons["seed"]) == (REASON, "drawn")
    assert reasons["hardware.max_mb_per_buffer"] == "the environment wins: MLX_MAX_MB_PER_BUFFER=10"


def test_a_run_of_a_version_without_these_keys_goes_on_as_it_began(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    straight, broken = (write_recipe(tmp_path, tiny_model("llama"), name=name) for name in ("straight", "broken"))
    whole = train(straight)
    run = train(broken, stop_after=3)
    for path in (run.file(rundir.RUN_INFO), run.checkpoints()[-1] / rundir.RUN_INFO):
        if path.is_file():
            info = json.loads(path.read_text())
            for name in ("microbatch", "num_threads"):
                del info["resolved"]["hardware"][name]
                del info["identity"]["recipe"][f"hardware.{name}"]
            path.write_text(json.dumps(info))
    tune(broken, batch_size=1, num_threads=1)
    train(broken, resume=True)
    assert course(run) == course(whole)
    assert results(run) == results(whole)


def test_a_setting_that_is_asked_for_may_not_change_on_resume(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    train(recipe, stop_after=3)
    with pytest.raises(RunError, match=r"hardware\.microbatch: was 'auto', is now 1"):
        train(recipe, resume=True, overrides=("hardware.microbatch=1",))


def test_the_set_for_all_recipes_leaves_a_batch_size_that_is_asked_for_alone(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    remember_tuned(profile_path(), machine(), GENERAL, tuned_set())
    run = train(recipe)
    assert (hardware(run)["microbatch"], hardware(run)["num_threads"]) == (2, 2)  # batch_size = 2, tuned threads
    assert train(write_recipe(tmp_path, tiny_model("llama"), name="other"), overrides=("training.batch_size=auto",))
    assert hardware(RunDir(tmp_path / "other"))["microbatch"] == 2  # 4 rows at once is the default
