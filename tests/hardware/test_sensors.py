"""Power and memory as macOS prints them: every recorded output, and what a broken one must not turn into."""

import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

from mlx_finetune.hardware import sensors
from mlx_finetune.hardware.sensors import Aside, Memory, parse_watts, read_aside, read_watts, system_sensors
from mlx_finetune.hardware.system.macos import parse_level, parse_swap
from mlx_finetune.hardware.system.power import Power, parse_power
from mlx_finetune.hardware.system.programs import Runner, run_program

MIB = 2**20
BATTERY = "Now drawing from 'Battery Power'\n -InternalBattery-0 (id=1)\t78%; discharging; 5:05 remaining present: true"
PRESSURE, SWAP = "kern.memorystatus_vm_pressure_level", "vm.swapusage"


def answers(by_last_word: dict[str, str]) -> Runner:
    def run(command: Sequence[str]) -> str | None:
        assert command[0] in ("/usr/bin/pmset", "/usr/sbin/sysctl")
        return by_last_word.get(command[-1])

    return run


POWER = {
    "batt_ac_charged.txt": Power(False, 100),
    "batt_desktop_mac.txt": Power(False, None),
    "batt_discharging.txt": Power(True, 78),
    "batt_low.txt": Power(True, 19),
}
SWAPS = {
    "swapusage.txt": round(11625.69 * MIB),
    "swapusage_n_form.txt": round(4878.56 * MIB),
    "swapusage_none.txt": 0,
    "swapusage_comma_locale_constructed.txt": 124 * MIB,
    "loaded_48gb_18core.txt": round(11625.69 * MIB),
    "unknown_oid_stderr.txt": None,
}


def test_every_recorded_power_source_is_read(shared: Callable[..., Path]) -> None:
    files = shared("macos-fixtures", "pmset").glob("batt_*")
    assert {file.name: parse_power(file.read_text()) for file in files} == POWER


def test_every_recorded_swap_is_read(shared: Callable[..., Path]) -> None:
    folder = shared("macos-fixtures", "sysctl")
    assert {file.name for file in folder.glob("swapusage*")} < SWAPS.keys()
    assert {name: parse_swap((folder / name).read_text()) for name in SWAPS} == SWAPS


def test_a_loaded_mac_reports_a_warning(shared: Callable[..., Path]) -> None:
    first = shared("macos-fixtures", "sysctl", "loaded_48gb_18core.txt").read_text().splitlines()[0]
    assert (parse_level(first), parse_level("2")) == ("warning", "warning")


@pytest.mark.parametrize(("number", "level"), [("1", "normal"), ("2", "warning"), ("4", "critical")])
def test_three_numbers_are_levels_of_pressure(number: str, level: str) -> None:
    assert parse_level(f"{number}\n") == level


@pytest.mark.parametrize("text", ["0", "3", "8", "", "critical", "sysctl: unknown oid 'kern.x'", "\x00\xff"])
def test_any_other_number_is_no_level(text: str) -> None:
    assert parse_level(text) is None


@pytest.mark.parametrize(
    ("used", "num_bytes"),
    [("512.00K", 512 * 1024), ("1.50G", 1536 * MIB), ("2,25T", 2304 * 1024 * MIB), ("0.00M", 0), ("7M", 7 * MIB)],
)
def test_swap_has_units_and_either_decimal_mark(used: str, num_bytes: int) -> None:
    assert parse_swap(f"total = 9.00T  used = {used}  free = 1.00M  (encrypted)") == num_bytes


@pytest.mark.parametrize("used", ["", "4878.56", "4878.5", "1,024.00M", "-3.00M", "4.00X", "nanM", "M"])
def test_half_a_number_is_no_swap(used: str) -> None:
    assert parse_swap(f"total = 6144.00M  used = {used}") is None


def test_a_power_report_cut_anywhere_never_becomes_another_one() -> None:
    read = {parse_power(BATTERY[:length]) for length in range(len(BATTERY) + 1)}
    assert read == {Power(None, None), Power(True, None), Power(True, 78)}


@pytest.mark.parametrize("text", ["", "\x00\xff%;", "Now drawing from 'Warp Core'", "(id=1)\t178%; charging"])
def test_nonsense_is_no_power_source_and_no_charge(text: str) -> None:
    assert parse_power(text) == Power(None, None)


def test_a_mac_on_an_emergency_supply_is_on_battery() -> None:
    ups = "Now drawing from 'UPS Power'\n -APC UPS (id=2)\t40%; discharging; 0:12 remaining present: true"
    assert parse_power(ups) == Power(True, 40)


def test_one_source_that_fails_does_not_blank_the_others() -> None:
    whole = {"batt": BATTERY, PRESSURE: "4", SWAP: "total = 2.00M  used = 1.00M  free = 1.00M  (encrypted)"}

    def seen(missing: str) -> tuple[Power, Memory]:
        mac = system_sensors(system="darwin", run=answers({key: whole[key] for key in whole if key != missing}))
        return mac.read_power(), mac.read_memory()

    assert seen("") == (Power(True, 78), Memory("critical", MIB))
    assert seen("batt") == (Power(None, None), Memory("critical", MIB))
    assert seen(PRESSURE) == (Power(True, 78), Memory(None, MIB))
    assert seen(SWAP) == (Power(True, 78), Memory("critical", None))


def test_a_tool_that_hangs_or_prints_bytes_is_a_source_that_fails(tmp_path: Path) -> None:
    script = tmp_path / "pmset"
    script.write_text("#!/bin/sh\nprintf '\\377\\376 %s' \"$LC_ALL\"\n")
    script.chmod(0o755)
    assert run_program([str(script)]) == "\ufffd\ufffd C"
    script.write_text("#!/bin/sh\nexec sleep 30\n")
    hung = system_sensors(system="darwin", run=lambda command: run_program([str(script)], timeout_seconds=0.1))
    assert (hung.read_power(), hung.read_memory()) == (Power(None, None), Memory(None, None))


class Battery:
    def __init__(self, percent: float, power_plugged: bool | None) -> None:
        self.percent, self.power_plugged = percent, power_plugged


@pytest.mark.parametrize(
    ("battery", "power"),
    [
        (None, Power(False, None)),
        (Battery(19.4, False), Power(True, 19)),
        (Battery(100.2, True), Power(False, 100)),
        (Battery(50, None), Power(None, 50)),
    ],
)
def test_elsewhere_psutil_is_asked(battery: Battery | None, power: Power, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "sensors_battery", lambda: battery)
    assert system_sensors(system="linux").read_power() == power


def test_files_that_psutil_cannot_read_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise FileNotFoundError("/proc/meminfo")

    monkeypatch.setattr(psutil, "sensors_battery", broken)
    monkeypatch.setattr(psutil, "swap_memory", broken)
    linux = system_sensors(system="linux")
    assert (linux.read_power(), linux.read_memory()) == (Power(None, None), Memory(None, None))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_this_machine_has_a_swap_and_no_level() -> None:
    here = sensors.system_sensors().read_memory()
    assert here.level is None
    assert here.swap_bytes is not None


@pytest.mark.parametrize("name", ["pipe_v0_7.json", "pipe_v0_8.json"])
def test_watts_are_those_of_the_whole_machine(shared: Callable[..., Path], name: str) -> None:
    text = shared("macos-fixtures", "macmon", name).read_text()
    assert parse_watts(text) == 5.876533
    assert parse_watts(text.replace('"sys_power"', '"other"')) == 0.22231553


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"sys_power": "x"}', '{"sys_power": 0}', '{"all_power": -3}'])
def test_what_is_no_power_is_none_and_never_zero(text: str) -> None:
    assert parse_watts(text) is None


def test_power_is_asked_for_on_a_mac_only() -> None:
    asked: list[Sequence[str]] = []

    def run(command: Sequence[str]) -> str | None:
        asked.append(command)
        return '{"sys_power": 12.5}'

    assert read_watts(system="linux", run=run) is None
    assert asked == []
    assert read_watts(system="darwin", run=run) == 12.5
    assert asked == [["macmon", "pipe", "-s", "1", "-i", "2000"]]


def test_a_reading_aside_gives_what_the_one_before_has_found() -> None:
    counted = iter(range(100))
    aside = Aside(lambda: next(counted), -1)
    seen = [aside()]
    for _ in range(3):
        settle(aside)
        seen.append(aside())
    assert seen == [0, 0, 1, 2], "the first call waits, so its reading is told by the second too"


def settle(aside: Aside[int]) -> None:
    assert aside._thread is not None
    aside._thread.join(30)


def test_a_reading_aside_never_waits_for_a_tool_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensors, "FIRST_SECONDS", 0.01)
    released, asked = threading.Event(), list[int]()

    def hang() -> int:
        asked.append(1)
        released.wait(60)
        return 7

    aside = Aside(hang, -1)
    assert [aside(), aside(), aside()] == [-1, -1, -1]
    assert asked == [1], "it is not asked again while it hangs"
    released.set()
    settle(aside)
    assert aside() == 7


def test_power_and_memory_are_read_aside_of_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensors, "FIRST_SECONDS", 0.01)
    released = threading.Event()

    def hang() -> Power:
        released.wait(60)
        return Power(True, 3)

    both = read_aside(sensors.Sensors(hang, lambda: Memory("critical", 1)))
    assert (both.read_power(), both.read_memory()) == (Power(None, None), Memory("critical", 1))
    released.set()
