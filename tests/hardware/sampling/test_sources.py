"""A whole Mac out of recorded outputs: each figure from its own source, and no source that spoils another."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

import pytest

from mlx_finetune.events import Resources
from mlx_finetune.hardware.sampling.sampler import Sampler
from mlx_finetune.hardware.sampling.sources import system_sources

Shared = Callable[..., Path]

RECORDED = {
    "ioreg": "ioreg/m4_constructed.plist",
    "vm_stat": "vm_stat/m3pro_18gb.txt",
    "pmset": "pmset/therm_throttled.txt",
    "footprint": "footprint/mlx_server_m3ultra.txt",
}
TOLD = {
    "gpu_percent": ("ioreg", 21),
    "gpu_memory_bytes": ("ioreg", 351_141_888),
    "memory_used_bytes": ("vm_stat", 7_392_296_960),
    "throttled": ("pmset", "the processor's speed at 62 %, its time for programs at 80 %"),
    "process_bytes": ("footprint", round(199.2 * 2**30)),
}
#: Read by others, or by nobody without macmon and the chip's counters.
ELSEWHERE = {
    *("step", "pressure", "swap_bytes", "on_battery", "battery_percent"),
    *("watts", "cpu_watts", "gpu_watts", "energy_joules", "temperature_celsius"),
}


def looked(shared: Shared, folder: Path, **broken: str | None) -> Resources:
    """One sample of a Mac whose tools print what was recorded, or what ``broken`` says."""

    def run(command: Sequence[str]) -> str | None:
        assert command[0].startswith("/usr/")
        name = Path(command[0]).name
        if name in broken:
            return broken[name]
        return shared("macos-fixtures", *RECORDED[name].split("/")).read_text().strip() if name in RECORDED else None

    sampler = Sampler(system_sources(folder, seconds=5, environment={}, system="darwin", run=run), seconds=5)
    return sampler.look()


def test_every_figure_of_a_mac_is_that_of_its_tool(shared: Shared, tmp_path: Path) -> None:
    sample = looked(shared, tmp_path)
    assert {name: getattr(sample, name) for name in TOLD} == {name: value for name, (_, value) in TOLD.items()}
    assert sample.disk_free_bytes
    assert sample.memory_total_bytes
    assert {one.name for one in fields(Resources) if getattr(sample, one.name) is None} < ELSEWHERE | {"cpu_percent"}


@pytest.mark.parametrize("text", [None, "", "\x00\xff", "<plist>", "Footprint: 3", "{" * 1000, "0\n" * 9], ids=repr)
@pytest.mark.parametrize("tool", RECORDED)
def test_a_tool_that_fails_hangs_or_prints_nonsense_blanks_its_own_figures_alone(
    shared: Shared, tmp_path: Path, tool: str, text: str | None
) -> None:
    """None is what the runner gives for a tool that is missing, fails or takes too long."""
    sample = looked(shared, tmp_path, **{tool: text})
    for name, (told_by, value) in TOLD.items():
        if told_by != tool:
            assert getattr(sample, name) == value
        elif name == "process_bytes":
            assert sample.process_bytes is not None
            assert 0 < sample.process_bytes < 10**11, "the resident size in its place"
        else:
            assert getattr(sample, name) is None
