"""Watts and joules: the chip's counters through a stand-in for zeus-apple-silicon, macmon as a real process."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlx_finetune.hardware.sampling import energy
from mlx_finetune.hardware.sampling.energy import (
    Chip,
    Macmon,
    MacmonLine,
    PowerMeter,
    energy_sources,
    open_monitor,
    parse_macmon,
    spawn_reading,
)
from mlx_finetune.hardware.system.programs import find_program

Shared = Callable[..., Path]


@dataclass
class FakeCounters:
    cpu_total_mj: int | None = 0
    gpu_mj: int | None = 0
    gpu_sram_mj: int | None = None
    dram_mj: int | None = None
    ane_mj: int | None = None


class FakeChip:
    """Counters and a clock that are set by hand."""

    def __init__(self) -> None:
        self.counters = FakeCounters()
        self.now = 100.0

    def get_cumulative_energy(self) -> FakeCounters:
        return FakeCounters(**vars(self.counters))

    def clock(self) -> float:
        return self.now


def test_watts_are_the_mean_since_the_last_look_and_joules_add_up() -> None:
    fake = FakeChip()
    chip = Chip(fake, fake.clock)
    assert chip.read() == {}
    fake.counters, fake.now = FakeCounters(10_000, 40_000, ane_mj=0), 105.0
    assert chip.read() == {"cpu_watts": 2.0, "gpu_watts": 8.0, "watts": 10.0, "energy_joules": 50.0}
    fake.counters, fake.now = FakeCounters(10_000, 90_000, ane_mj=5_000), 115.0
    assert chip.read() == {"cpu_watts": 0.0, "gpu_watts": 5.0, "watts": 5.5, "energy_joules": 105.0}


def test_a_part_that_a_chip_does_not_tell_is_none_and_not_zero() -> None:
    fake = FakeChip()
    chip = Chip(fake, fake.clock)
    fake.counters = FakeCounters(None, 0)
    chip.read()
    fake.counters, fake.now = FakeCounters(None, 20_000), 110.0
    assert chip.read() == {"cpu_watts": None, "gpu_watts": 2.0, "watts": 2.0, "energy_joules": 20.0}
    fake.counters, fake.now = FakeCounters(None, None), 120.0
    assert chip.read() == {}


def test_a_counter_that_begins_anew_takes_nothing_back() -> None:
    fake = FakeChip()
    chip = Chip(fake, fake.clock)
    fake.counters = FakeCounters(50_000, 1_000)
    chip.read()
    fake.counters, fake.now = FakeCounters(10, 2_000), 101.0
    assert chip.read() == {"cpu_watts": None, "gpu_watts": 1.0, "watts": 1.0, "energy_joules": 1.0}


@pytest.mark.skipif(sys.platform == "darwin", reason="the package exists there")
def test_without_the_package_there_are_no_counters() -> None:
    assert open_monitor() is None


def test_a_package_whose_counters_cannot_be_opened_is_no_source(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def AppleEnergyMonitor(self) -> None:
            raise RuntimeError("Failed to create IOReport subscription.")

    monkeypatch.setattr(energy, "import_module", lambda name: Broken())
    assert open_monitor() is None
    monkeypatch.setattr(energy, "import_module", lambda name: object())
    assert open_monitor() is None


LINES = {
    "pipe_v0_7.json": MacmonLine(5.876533, 0.20486385, 0.017451683, 43.73614, 2.1497859),
    "pipe_v0_8.json": MacmonLine(5.876533, 0.20486385, 0.017451683, 43.73614, 9.0),
}


def test_both_generations_of_macmon_are_read(shared: Shared) -> None:
    files = shared("macos-fixtures", "macmon").iterdir()
    assert {file.name: parse_macmon(file.read_text()) for file in files} == LINES


@pytest.mark.parametrize("name", LINES)
def test_a_line_cut_anywhere_is_none(shared: Shared, name: str) -> None:
    text = shared("macos-fixtures", "macmon", name).read_text().rstrip()
    assert {parse_macmon(text[:length]) for length in range(len(text))} == {MacmonLine()}


@pytest.mark.parametrize(
    "text", ["", "\n", "\x00", "{", "[]", "null", "3", '{"temp": 3, "gpu_usage": 2}', '{"temp": {"cpu_temp_avg": "x"}}']
)
def test_nonsense_is_nothing(text: str) -> None:
    assert parse_macmon(text) == MacmonLine()


def test_values_that_cannot_be_are_none() -> None:
    text = '{"sys_power": 0, "all_power": NaN, "cpu_power": -1, "gpu_power": 1e9, "temp": {"cpu_temp_avg": 0.0}}'
    assert parse_macmon(text) == MacmonLine()
    assert parse_macmon('{"gpu_active_ratio": 0.0}') == MacmonLine(gpu_percent=0.0), "an idle GPU is no missing one"


PRINTS = """
import sys, time
for number in range(3):
    print('{"sys_power": %d, "cpu_power": 1.5, "temp": {"gpu_temp_avg": 50.5}}' % (10 + number), flush=True)
sys.stdout.write('{"sys_power": 99'); sys.stdout.flush()
time.sleep(60)
"""


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def running(code: str, clock: Clock, seconds: float = 5.0) -> Macmon:
    def spawn(command: Sequence[str]) -> "subprocess.Popen[bytes]":
        assert command == ("/opt/macmon", "pipe", "-s", "0", "-i", str(round(1000 * seconds)))
        return spawn_reading([sys.executable, "-c", code])

    return Macmon("/opt/macmon", seconds=seconds, clock=clock, spawn=spawn)


def until(read: Callable[[], object]) -> object:
    """What ``read`` gives once it gives something."""
    deadline = time.monotonic() + 30
    while not (found := read()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def test_one_macmon_is_read_as_it_prints_and_half_a_line_waits() -> None:
    clock = Clock()
    macmon = running(PRINTS, clock)
    assert macmon.read() == {}
    try:
        clock.now = 10.0

        def read() -> object:
            found = macmon.read()
            return found if found.get("watts") == 12.0 else None

        found = until(read)
        assert isinstance(found, dict)
        assert (found["cpu_watts"], found["temperature_celsius"]) == (1.5, 50.5)
        assert 100.0 <= found["energy_joules"] <= 120.0, "ten seconds of 10, 11 and 12 W"
        assert macmon.read() == found, "what it said last counts until it says something new"
    finally:
        macmon.close()


def test_a_macmon_that_says_nothing_is_ended_and_started_again() -> None:
    clock = Clock()
    macmon = running("import time; time.sleep(60)", clock)
    macmon.read()
    clock.now = 14.0
    assert macmon.read() == {}
    clock.now = 16.0
    with pytest.raises(TimeoutError):
        macmon.read()
    assert macmon.read() == {}, "a new one"
    macmon.close()


def test_a_macmon_that_ends_is_a_failure_and_no_end() -> None:
    macmon = running("pass", Clock())
    macmon.read()

    def ended() -> bool:
        try:
            return bool(macmon.read())
        except ChildProcessError:
            return True

    assert until(ended)
    macmon.close()
    missing = Macmon("/nonexistent/macmon", seconds=5)
    with pytest.raises(OSError, match="macmon"):
        missing.read()


def test_macmon_is_found_where_path_does_not_lead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_program("macmon", {"PATH": str(tmp_path)}) is None
    program = tmp_path / ".cargo" / "bin" / "macmon"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_program("macmon", {}) == str(program)


def test_a_plan_takes_the_machines_watts_and_else_those_of_the_chip() -> None:
    fake = FakeChip()
    assert PowerMeter(fake, clock=fake.clock, read=lambda: 23.0).watts() == 23.0
    meter = PowerMeter(fake, clock=fake.clock, read=lambda: None)
    fake.counters, fake.now = FakeCounters(10_000, 50_000), fake.now + 4
    assert meter.watts() == 15.0
    assert PowerMeter(fake, clock=fake.clock, read=lambda: None).watts() is None, "no time has passed"
    assert PowerMeter(None, read=lambda: None).watts() is None


def test_the_machines_watts_count_where_macmon_is_and_the_chips_where_it_is_not() -> None:
    fake = FakeChip()
    alone = energy_sources(fake, None, seconds=5)
    assert [source.name for source in alone] == ["chip"]
    both = {source.name: source for source in energy_sources(fake, "/opt/macmon", seconds=5)}
    assert list(both) == ["macmon", "chip"]
    assert both["chip"].read().keys() == {"cpu_watts", "gpu_watts"}
    assert energy_sources(None, None, seconds=5) == []
