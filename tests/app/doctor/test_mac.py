import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from doctor_facts import GB, HEALTHY_MAC, MAC, TYPED, answering

from mlx_finetune.app.doctor.finding import Finding
from mlx_finetune.app.doctor.mac import (
    MacState,
    mac_problems,
    parse_quarantine,
    parse_settings,
    read_mac,
)
from mlx_finetune.hardware.device import parse_metal
from mlx_finetune.hardware.system.power import UNKNOWN, parse_power, parse_power_mode

assert HEALTHY_MAC.mac is not None
WELL: MacState = HEALTHY_MAC.mac
Recorded = Callable[..., str]
GARBAGE = ["", "\x00\xff\x00", "usage: pmset <options>\n", " powermode", "=" * 5000, '{"a": [1, 2'.replace(",", "\n")]


@pytest.fixture(name="recorded")
def recorded_fixture(shared: Callable[..., Path]) -> Recorded:
    return lambda *parts: shared("macos-fixtures", *parts).read_text("utf-8")


def problems(state: MacState, **device: object) -> list[Finding]:
    return list(mac_problems(state, replace(MAC, **device), TYPED))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "mode", "key"),
    [
        ("g_low_power.txt", "low", "lowpowermode"),
        ("g_powermode_low.txt", "low", "powermode"),
        ("g_powermode_high.txt", "high", "powermode"),
    ],
)
def test_low_power_mode_is_told_under_the_name_that_this_macos_has(recorded: Recorded, name: str, mode: str, key: str):
    text = recorded("pmset", name)
    state = read_mac(answering({"pmset -g": text}), [])
    assert state.power_key == key
    found = problems(replace(WELL, power_key=key), power_mode=parse_power_mode(text))
    if mode != "low":
        assert found == []
        return
    (finding,) = found
    assert "Low Power Mode" in finding.message
    assert finding.command.startswith(f"sudo pmset -a {key} 0")


def test_a_value_with_a_remark_behind_it_is_the_value(recorded: Recorded):
    assert parse_settings(recorded("pmset", "g_low_power.txt")) == {
        "standby": "1",
        "sleep": "1",
        "lowpowermode": "1",
        "displaysleep": "10",
    }


def test_a_laptop_that_saves_power_on_battery_alone_is_a_note(recorded: Recorded):
    state = read_mac(answering({"pmset -g custom": recorded("pmset", "custom_laptop_lowpower_on_battery.txt")}), [])
    assert state.low_on_battery
    (finding,) = problems(replace(WELL, low_on_battery=True))
    assert (finding.level, finding.command) == ("note", "sudo pmset -b lowpowermode 0")


def test_a_desktop_mac_whose_display_never_sleeps_is_told_how_to_put_it_to_sleep(recorded: Recorded):
    """The settings in use are listed as those of a source are, only without a heading."""
    listing = recorded("pmset", "custom_mac_mini_m4_macos26_3.txt").partition("\n")[2]
    state = read_mac(answering({"pmset -g": listing}), [])
    assert (state.display_sleep_minutes, state.sleep_minutes, state.low_on_battery) == (0, 0, False)
    (finding,) = problems(replace(WELL, display_sleep_minutes=0))
    assert (finding.level, finding.command) == ("note", "pmset displaysleepnow")


@pytest.mark.parametrize(
    ("name", "level", "says"),
    [
        ("batt_ac_charged.txt", None, ""),
        ("batt_desktop_mac.txt", None, ""),
        ("batt_discharging.txt", "note", "78 % left"),
        ("batt_low.txt", "warning", "19 % left"),
    ],
)
def test_a_mac_on_battery_is_told_so(recorded: Recorded, name: str, level: str | None, says: str):
    power = parse_power(recorded("pmset", name))
    found = problems(WELL, power=power)
    assert [finding.level for finding in found] == ([level] if level else [])
    assert all(says in finding.message for finding in found)


@pytest.mark.parametrize(
    ("name", "throttled"),
    [
        ("therm_apple_silicon_nominal.txt", ""),
        ("therm_nominal_with_limits.txt", ""),
        ("therm_throttled.txt", "the processor's speed at 62 %, its time for programs at 80 %"),
    ],
)
def test_a_hot_mac_is_told_how_far_it_is_held_back(recorded: Recorded, name: str, throttled: str):
    state = read_mac(answering({"pmset -g therm": recorded("pmset", name).strip()}), [])
    assert state.throttled == throttled
    found = problems(replace(WELL, throttled=throttled))
    assert [finding.message for finding in found] == [
        f"this Mac is held back because it is hot: {throttled}; let it cool" for _ in range(bool(throttled))
    ]


@pytest.mark.parametrize(
    ("level", "swap", "says"),
    [
        ("loaded_48gb_18core.txt", "swapusage_n_form.txt", "pressure: warning, 5.1 GB are swapped out"),
        ("loaded_48gb_18core.txt", "swapusage.txt", "pressure: warning, 12.2 GB are swapped out"),
        ("loaded_48gb_18core.txt", "swapusage_comma_locale_constructed.txt", "pressure: warning, 130.0 MB are swapped"),
        ("loaded_48gb_18core.txt", "swapusage_none.txt", "(pressure: warning)"),
    ],
)
def test_short_memory_is_told_with_what_is_swapped_out(recorded: Recorded, level: str, swap: str, says: str):
    state = read_mac(
        answering(
            {
                "sysctl -n kern.memorystatus_vm_pressure_level": recorded("sysctl", level).splitlines()[0],
                "sysctl -n vm.swapusage": recorded("sysctl", swap),
            }
        ),
        [],
    )
    (finding,) = problems(replace(WELL, pressure=state.pressure, swap_bytes=state.swap_bytes))
    assert says in finding.message
    assert finding.command.startswith("top ")


def test_a_working_set_that_was_raised_too_far_is_found_by_its_share_alone(recorded: Recorded):
    info = json.loads(recorded("mlx_device_info", "m5max_64gb_wired_limit_raised.json"))
    metal = parse_metal(info, is_available=True)
    (finding,) = problems(replace(WELL, wired_limit_mb=None), metal=metal, memory_bytes=info["memory_size"])
    assert finding.level == "warning"
    assert "60.1 GB of 68.7 GB" in finding.message
    assert finding.command.startswith("sudo sysctl iogpu.wired_limit_mb=0")


@pytest.mark.parametrize("name", ["m4pro_48gb.json", "m5max_128gb.json", "m3ultra_256gb.json"])
def test_a_working_set_that_macos_chose_is_no_problem(recorded: Recorded, name: str):
    info = json.loads(recorded("mlx_device_info", name))
    assert problems(WELL, metal=parse_metal(info, is_available=True), memory_bytes=info["memory_size"]) == []


def test_a_raise_that_leaves_macos_enough_is_no_problem_and_a_lowered_limit_is():
    assert MAC.metal is not None
    raised = replace(MAC.metal, working_set_bytes=100 * GB)
    assert problems(replace(WELL, wired_limit_mb=95_367), metal=raised, memory_bytes=128 * GB) == []
    lowered = replace(MAC.metal, working_set_bytes=6 * GB)
    (finding,) = problems(replace(WELL, wired_limit_mb=5722), metal=lowered, memory_bytes=16 * GB)
    assert "was lowered to 6.0 GB of 16.0 GB" in finding.message


def test_an_8_gb_mac_with_the_limit_of_macos_is_no_problem():
    """There 0.67 of the memory leave less than the 4 GiB that our own limits leave, and nobody raised anything."""
    assert MAC.metal is not None
    metal = replace(MAC.metal, working_set_bytes=round(8.6 * GB * 0.667))
    assert problems(WELL, metal=metal, memory_bytes=round(8.6 * GB)) == []


def test_quarantined_files_are_named_with_the_command_for_them_alone(recorded: Recorded):
    value = recorded("errors", "quarantine_xattr.txt").strip()
    paths = ["/Users/me/mlxft", "/Users/me/mlxft/launchers/Train overnight.command", "/Users/me/mlxft/launchers/mlxft"]
    listing = f"{paths[0]}: com.apple.lastuseddate#PS: x\n{paths[1]}: {value}\n"
    state = read_mac(lambda command: listing if command[0] == "/usr/bin/xattr" else None, paths)
    assert state.quarantined == (paths[1],)
    (finding,) = problems(replace(WELL, quarantined=state.quarantined))
    assert "Train overnight.command is marked as downloaded" in finding.message
    assert finding.command == "xattr -d com.apple.quarantine './launchers/Train overnight.command'"


def test_xattr_names_no_file_where_it_got_only_one(recorded: Recorded):
    value = recorded("errors", "quarantine_xattr.txt")
    assert parse_quarantine(value, ["/a"]) == ("/a",)
    assert parse_quarantine(value, ["/a", "/b"]) == ()
    assert parse_quarantine("", ["/a"]) == ()


@pytest.mark.parametrize("text", GARBAGE)
def test_what_cannot_be_read_is_not_known_and_blanks_nothing_else(recorded: Recorded, text: str):
    whole = read_mac(lambda command: text, ["/a", "/b"])
    assert whole == replace(MacState(), power_key=whole.power_key)
    heat = recorded("pmset", "therm_throttled.txt")
    others = read_mac(lambda command: heat if command[-1] == "therm" else text, [])
    assert "62 %" in (others.throttled or "")
    assert others.pressure is None


def test_tools_that_are_missing_or_hang_leave_everything_unknown():
    assert read_mac(lambda command: None, ["/a"]) == MacState()
    assert problems(MacState(), power=UNKNOWN, power_mode=None, metal=None) == []


@pytest.mark.parametrize("name", ["pmset/g_low_power.txt", "errors/quarantine_xattr.txt", "sysctl/swapusage.txt"])
def test_an_output_that_was_cut_short_says_nothing_wrong(recorded: Recorded, name: str):
    text = recorded(*name.split("/"))
    for end in range(0, len(text), 7):
        state = read_mac(lambda command, end=end: text[:end], ["/a"])
        assert state.display_sleep_minutes in (None, 1, 10)
        assert state.throttled is None
        assert state.swap_bytes in (None, round(11625.69 * 2**20))


def test_a_virtual_mac_and_a_limit_are_read_with_or_without_their_names():
    state = read_mac(answering({"sysctl -n kern.hv_vmm_present": "1", "sysctl -n iogpu.wired_limit_mb": "57344"}), [])
    assert (state.is_virtual, state.wired_limit_mb) == (True, 57344)
    named = read_mac(answering({"sysctl -n iogpu.wired_limit_mb": "iogpu.wired_limit_mb: 0"}), [])
    assert (named.is_virtual, named.wired_limit_mb) == (False, 0)
