"""Source, charge, power mode and throttling as ``pmset`` prints them: every recorded output, and broken ones."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mlx_finetune.hardware.system.power import parse_power_mode, parse_power_modes, parse_throttling, read_power_mode

Shared = Callable[..., Path]

MODES = {"g_low_power.txt": "low", "g_powermode_high.txt": "high", "g_powermode_low.txt": "low"}
BY_SOURCE = {
    "custom_laptop_lowpower_on_battery.txt": {"Battery Power": "low", "AC Power": "automatic"},
    "custom_mac_mini_m4_macos26_3.txt": {"AC Power": "automatic"},
}
THROTTLED = {
    "therm_apple_silicon_nominal.txt": "",
    "therm_nominal_with_limits.txt": "",
    "therm_throttled.txt": "the processor's speed at 62 %, its time for programs at 80 %",
}
GARBAGE = ["", "\n", "\x00\xff", "powermode", "powermode x", "powermode 7", "lowpowermode -1", "therm", "= 100"]


def prefixes(text: str) -> list[str]:
    return [text[:length] for length in range(len(text))]


def test_every_recorded_power_mode_is_read(shared: Shared) -> None:
    files = shared("macos-fixtures", "pmset").glob("g_*")
    assert {file.name: parse_power_mode(file.read_text()) for file in files} == MODES


def test_every_recorded_list_of_settings_is_read_by_source(shared: Shared) -> None:
    files = shared("macos-fixtures", "pmset").glob("custom_*")
    assert {file.name: parse_power_modes(file.read_text()) for file in files} == BY_SOURCE


def test_every_recorded_report_of_heat_is_read(shared: Shared) -> None:
    files = shared("macos-fixtures", "pmset").glob("therm_*")
    assert {file.name: parse_throttling(file.read_text()) for file in files} == THROTTLED


@pytest.mark.parametrize("name", [*MODES, *BY_SOURCE, *THROTTLED])
def test_a_report_cut_anywhere_never_becomes_another_one(shared: Shared, name: str) -> None:
    text = shared("macos-fixtures", "pmset", name).read_text()
    for cut in prefixes(text):
        if name in MODES:
            assert parse_power_mode(cut) in (None, MODES[name])
        elif name in BY_SOURCE:
            assert parse_power_modes(cut).items() <= BY_SOURCE[name].items()
        else:
            found = parse_throttling(cut)
            assert found in (None, THROTTLED[name], "its time for programs at 80 %"), cut


@pytest.mark.parametrize("text", GARBAGE)
def test_nonsense_is_unknown_and_never_nominal(text: str) -> None:
    assert parse_power_mode(text) is None
    assert parse_power_modes(text) == {}
    assert parse_throttling(text) is None


NO_PERFORMANCE = "Note: No performance warning level has been recorded\n"


def test_a_recorded_warning_counts_until_its_level_is_0_again() -> None:
    warned = "2026-09-23 14:05:31 -0700 Thermal Warning Level = 5\n" + NO_PERFORMANCE
    assert parse_throttling(warned) == "macOS warns of heat (level 5)"
    assert parse_throttling(warned.replace("= 5", "= 0")) == ""
    assert parse_throttling("Thermal Warning Level = 5") is None, "the number may go on"


def test_the_newer_word_counts_where_both_stand() -> None:
    assert parse_power_mode(" lowpowermode 0\n powermode 2\n") == "high"


def test_the_settings_of_the_source_in_use_count_where_the_mode_in_use_is_not_told(shared: Shared) -> None:
    custom = shared("macos-fixtures", "pmset", "custom_laptop_lowpower_on_battery.txt").read_text()

    def run(command: Sequence[str]) -> str | None:
        assert command[0] == "/usr/bin/pmset"
        return custom if command[-1] == "custom" else None

    assert [read_power_mode(on_battery, run) for on_battery in (True, False, None)] == ["low", "automatic", None]
