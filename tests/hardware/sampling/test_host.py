"""Processor, memory, disk, footprint and heat of the machine, from psutil and from a Mac's tools."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from mlx_finetune.hardware.sampling.host import (
    Processor,
    parse_footprint,
    read_disk,
    read_footprint,
    read_memory,
    read_resident,
    read_temperature,
    read_throttling,
)

Shared = Callable[..., Path]

FOOTPRINTS = {"mlx_server_m3ultra.txt": round(199.2 * 2**30), "zsh.txt": 2272 * 1024}


def test_every_recorded_footprint_is_read(shared: Shared) -> None:
    files = shared("macos-fixtures", "footprint").iterdir()
    assert {file.name: parse_footprint(file.read_text()) for file in files} == FOOTPRINTS


@pytest.mark.parametrize("name", FOOTPRINTS)
def test_a_footprint_cut_anywhere_never_becomes_another_one(shared: Shared, name: str) -> None:
    text = shared("macos-fixtures", "footprint", name).read_text()
    assert {parse_footprint(text[:length]) for length in range(len(text))} <= {None, FOOTPRINTS[name]}


@pytest.mark.parametrize("text", ["", "\x00\xff", "Footprint: 3 XB (", "Footprint: 0 KB (16384", "Footprint: GB ("])
def test_nonsense_is_no_footprint(text: str) -> None:
    assert parse_footprint(text) is None


def test_the_footprint_is_asked_for_by_the_number_of_the_process(shared: Shared) -> None:
    text = shared("macos-fixtures", "footprint", "zsh.txt").read_text()

    def run(command: Sequence[str]) -> str | None:
        return text if list(command) == ["/usr/bin/footprint", "-p", "9002"] else None

    assert read_footprint(9002, run) == {"process_bytes": 2272 * 1024}
    assert read_footprint(1, run) == {"process_bytes": None}


def times(*busy_and_idle: tuple[float, float]) -> Callable[[], Mapping[str, float]]:
    waiting: Iterator[tuple[float, float]] = iter(busy_and_idle)

    def read() -> Mapping[str, float]:
        busy, idle = next(waiting)
        return {"user": busy, "idle": idle / 2, "iowait": idle / 2, "guest": busy, "guest_nice": 0.0}

    return read


def test_the_processors_share_is_of_the_time_since_the_last_look() -> None:
    processor = Processor(times((10, 90), (13, 91), (13, 95), (13, 95)))
    assert processor.read() == {}
    assert processor.read() == {"cpu_percent": 75.0}
    assert processor.read() == {"cpu_percent": 0.0}
    assert processor.read() == {}, "no time has passed: nothing is known, and not nothing done"


MAC = {"vm_stat": "vm_stat/m1.txt", "memory_pressure": "memory_pressure/q_darwin24_16gb.txt"}


def test_memory_of_a_mac_comes_from_vm_stat_and_else_from_memory_pressure(shared: Shared) -> None:
    def used(*missing: str) -> object:
        def run(command: Sequence[str]) -> str | None:
            name = Path(command[0]).name
            return None if name in missing else shared("macos-fixtures", *MAC[name].split("/")).read_text()

        return read_memory("darwin", run)["memory_used_bytes"]

    assert used() == 13_637_386_240
    assert used("vm_stat") == round(0.4 * 17_179_869_184)
    assert used(*MAC) is None


def test_heat_is_unknown_where_the_tool_fails_and_nothing_where_it_says_so(shared: Shared) -> None:
    def seen(name: str | None) -> object:
        def run(command: Sequence[str]) -> str | None:
            assert list(command) == ["/usr/bin/pmset", "-g", "therm"]
            return shared("macos-fixtures", "pmset", name).read_text().strip() if name else None

        return read_throttling(run)["throttled"]

    assert seen("therm_apple_silicon_nominal.txt") == ""
    assert seen("therm_throttled.txt") == "the processor's speed at 62 %, its time for programs at 80 %"
    assert seen(None) is None


@pytest.mark.skipif(sys.platform != "linux", reason="psutil tells it on Linux alone")
@pytest.mark.parametrize(
    ("sensors", "degrees"),
    [
        ({}, None),
        ({"nvme": [44.0], "coretemp": [51.0, 63.5]}, 63.5),
        ({"nvme": [44.0, 0.0, 655.3]}, 44.0),
        ({"coretemp": [], "nvme": [41.0]}, 41.0),
    ],
)
def test_the_temperature_is_the_processors_where_it_has_a_sensor(
    sensors: dict[str, list[float]], degrees: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {name: [SimpleNamespace(current=value) for value in values] for name, values in sensors.items()}
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: found)
    assert read_temperature() == {"temperature_celsius": degrees}


def test_this_machine_tells_what_every_machine_has(tmp_path: Path) -> None:
    memory = read_memory("linux", lambda command: None)
    used, total = memory["memory_used_bytes"], memory["memory_total_bytes"]
    assert isinstance(used, int)
    assert isinstance(total, int)
    assert 0 < used < total
    resident, free = read_resident()["process_bytes"], read_disk(tmp_path / "not there")["disk_free_bytes"]
    assert isinstance(resident, int)
    assert isinstance(free, int)
    assert resident > 10**6
    assert free > 0
