"""What the machine did, in the journal of a run: written between steps, cut and continued with it, without a trace in
the weights."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from small_runs import CALM, course, train, write_recipe

from mlx_finetune import rundir
from mlx_finetune.events import Event, Resources, StepDone
from mlx_finetune.hardware.sampling.source import Figures, Source
from mlx_finetune.hardware.sampling.sources import system_sources
from mlx_finetune.hardware.sensors import Memory, Sensors
from mlx_finetune.hardware.system.power import Power
from mlx_finetune.journal import read_events, read_resources
from mlx_finetune.rundir import RunDir
from mlx_finetune.train.signals import StopRequest
from mlx_finetune.train.watch import Surroundings

OFTEN = ("hardware.sample_seconds=0.01",)
SENSORS = Sensors(lambda: Power(on_battery=True, percent=77), lambda: Memory("warning", 4096))


def looking_at(*sources: Source) -> Surroundings:
    """A machine with these sources alone."""
    return replace(CALM, sensors=SENSORS, find_sources=lambda folder, seconds: sources)


def metered() -> Source:
    """Ten joules between two looks."""
    used = [0.0]

    def read() -> Figures:
        used[0] += 10.0
        return {"watts": 20.0, "energy_joules": used[0], "temperature_celsius": 60.0 + used[0] / 100, "throttled": ""}

    return Source("meter", read)


def unhurried(event: Event, stop: StopRequest) -> None:
    """Steps that leave time for a sample in between."""
    del stop
    if isinstance(event, StepDone):
        time.sleep(0.05)


@pytest.fixture
def recipe(tiny_model: Callable[..., Path], tmp_path: Path) -> Path:
    return write_recipe(tmp_path, tiny_model("llama"))


def samples(run: RunDir) -> list[Resources]:
    return read_resources(run.file(rundir.EVENTS))


def test_samples_stand_in_the_journal_with_the_step_and_what_the_watch_has_read(recipe: Path) -> None:
    run = train(recipe, overrides=OFTEN, around=looking_at(metered()), on_event=unhurried)
    found = samples(run)
    assert len(found) >= 3
    assert [one.step for one in found] == sorted(one.step for one in found)
    assert {one.watts for one in found} == {20.0}
    watched = [(one.on_battery, one.battery_percent, one.pressure, one.swap_bytes) for one in found if one.step]
    assert set(watched) == {(True, 77, "warning", 4096)}, "the watch looks before the first step"
    metrics = json.loads(run.file(rundir.METRICS).read_text())["resources"]
    assert metrics["samples"] == len(found)
    assert metrics["energy_joules"] == found[-1].energy_joules
    assert metrics["mean"]["watts"] == 20.0
    assert metrics["max"]["temperature_celsius"] == found[-1].temperature_celsius
    assert (metrics["throttled_share"], metrics["least_disk_free_bytes"]) == (0.0, None)


def test_zero_seconds_never_look(recipe: Path) -> None:
    def find(folder: Path, seconds: float) -> Sequence[Source]:
        raise AssertionError(folder, seconds)

    run = train(recipe, overrides=("hardware.sample_seconds=0",), around=replace(CALM, find_sources=find))
    assert samples(run) == []
    assert json.loads(run.file(rundir.METRICS).read_text())["resources"] is None


def test_the_machine_is_looked_at_as_often_as_the_recipe_says(recipe: Path) -> None:
    asked: list[tuple[Path, float]] = []

    def find(folder: Path, seconds: float) -> Sequence[Source]:
        asked.append((folder, seconds))
        return ()

    run = train(recipe, around=replace(CALM, find_sources=find), stop_after=1)
    train(recipe, overrides=("hardware.sample_seconds=60",), around=replace(CALM, find_sources=find), resume=True)
    assert asked == [(run.path, 5.0), (run.path, 60.0)]


def test_a_resumed_run_goes_on_counting_from_where_the_journal_was_cut(recipe: Path) -> None:
    """Killed after step 3, it goes on from the checkpoint of step 2: what was used after that is cut off with it."""
    train(recipe, overrides=OFTEN, around=looking_at(metered()), on_event=unhurried, kill_after=3)
    run = train(recipe, overrides=OFTEN, around=looking_at(metered()), on_event=unhurried, resume=True)
    found = samples(run)
    energies = [one.energy_joules or 0.0 for one in found]
    assert energies == sorted(energies)
    kept = [one for one in found if one.step <= 2]
    later = next(one for one in found if one.step > 2)
    assert kept
    assert later.energy_joules is not None
    assert later.energy_joules > (kept[-1].energy_joules or 0.0)


def bits(run: RunDir) -> list[str]:
    names = (rundir.MLX_WEIGHTS, rundir.PEFT_WEIGHTS)
    return [hashlib.sha256(run.file(name).read_bytes()).hexdigest() for name in names]


def fail() -> Figures:
    raise RuntimeError("no such tool")


@pytest.mark.some(1)
@pytest.mark.parametrize("kill_after", [None, 3])
def test_looking_at_the_machine_changes_no_bit(recipe: Path, kill_after: int | None) -> None:
    """With all sources of this machine, one that fails, and one that never comes back."""

    def find(folder: Path, seconds: float) -> Sequence[Source]:
        everything = system_sources(folder, seconds=seconds, environment={})
        return (*everything, Source("fails", fail), Source("hangs", lambda: time.sleep(60) or {}))

    straight = train(recipe, overrides=("hardware.sample_seconds=0", f"output_dir={recipe.parent / 'straight'}"))
    around = replace(CALM, find_sources=find)
    run = train(recipe, overrides=OFTEN, around=around, on_event=unhurried, kill_after=kill_after)
    if kill_after is not None:
        train(recipe, overrides=OFTEN, around=around, on_event=unhurried, resume=True)
    assert course(run) == course(straight)
    assert bits(run) == bits(straight)


def test_a_step_is_never_kept_waiting_by_a_source_that_hangs(recipe: Path) -> None:
    hangs = Source("hangs", lambda: time.sleep(600) or {})
    started = time.monotonic()
    run = train(recipe, overrides=OFTEN, around=looking_at(hangs))
    assert time.monotonic() - started < 300
    assert [entry[1] for entry in course(run) if entry[0] == "step"] == [1, 2, 3, 4, 5, 6]


def test_why_each_switch_is_what_it_is_stands_in_resolved_toml(recipe: Path) -> None:
    given = {"MLX_ENABLE_TF32": "0", "MLX_MAX_MB_PER_BUFFER": "90"}
    mac = replace(CALM, environment=given, tuned={"max_mb_per_buffer": 90}, system="darwin")
    run = train(recipe, overrides=("hardware.max_ops_per_buffer=20",), around=mac, stop_after=1)
    lines = dict(line.split(" = ", 1) for line in run.file(rundir.RESOLVED).read_text().splitlines() if " = " in line)
    assert lines["relax_gpu_watchdog"].startswith('"auto"  # AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1: macOS 26')
    assert lines["max_ops_per_buffer"] == "20  # MLX_MAX_OPS_PER_BUFFER=20: as the recipe says"
    assert lines["tf32"] == '"auto"  # the environment wins: MLX_ENABLE_TF32=0'
    found = "MLX_MAX_MB_PER_BUFFER=90: the fastest that mlxft tune found on this Mac"
    assert lines["max_mb_per_buffer"] == f'"auto"  # {found}'
    assert lines["fast_synch"] == '"auto"  # MLX\'s own: false'


def test_switches_that_change_no_bit_may_differ_on_a_resume(recipe: Path) -> None:
    from mlx_finetune.errors import RunError

    run = train(recipe, stop_after=2)
    free = ("hardware.max_ops_per_buffer=20", "hardware.relax_gpu_watchdog=false", "hardware.sample_seconds=1")
    with pytest.raises(RunError, match=r"hardware\.tf32: was 'auto', is now False"):
        train(recipe, overrides=(*free, "hardware.tf32=false"), resume=True)
    train(recipe, overrides=free, resume=True)
    kinds = [type(record.event).__name__ for record in read_events(run.file(rundir.EVENTS))]
    assert kinds[-1] == "RunFinished"
