"""What macOS prints about itself: every recorded listing by its name, and what a damaged one must not turn into."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_finetune.hardware.system.macos import (
    Cores,
    Hardware,
    parse_cores,
    parse_free_share,
    parse_hardware,
    parse_level_and_swap,
    parse_memory_and_chip,
    parse_sysctl,
    parse_used_memory,
)

GIB = 2**30
GARBAGE = ["", "\n", "\x00\xff", "sysctl: unknown oid 'hw'", "{", "[]", "null", "1", '{"SPHardwareDataType": [3]}']

Shared = Callable[..., Path]


def prefixes(text: str) -> list[str]:
    """Every text that a cut can leave."""
    return [text[:length] for length in range(len(text))]


CORES = {
    "m1.txt": (Cores("Performance", 4), Cores("Efficiency", 4)),
    "m3max_128gb_hw_tail.txt": (Cores("Performance", 12), Cores("Efficiency", 4)),
    "three_perf_levels.txt": (Cores("Performance", 4), Cores("Performance", 4), Cores("Efficiency", 2)),
    "loaded_48gb_18core.txt": (),
    "m3ultra_n_form.txt": (),
    "native_arm64_macos26_5.txt": (),
    "rosetta.txt": (),
    "swapusage.txt": (),
    "swapusage_comma_locale_constructed.txt": (),
    "swapusage_n_form.txt": (),
    "swapusage_none.txt": (),
    "unknown_oid_stderr.txt": (),
}


def test_the_kinds_of_cores_in_every_recorded_listing(shared: Shared) -> None:
    files = shared("macos-fixtures", "sysctl").iterdir()
    assert {file.name: parse_cores(parse_sysctl(file.read_text())) for file in files} == CORES


@pytest.mark.parametrize("name", ["m1.txt", "m3max_128gb_hw_tail.txt", "three_perf_levels.txt"])
def test_a_listing_of_cores_cut_anywhere_never_becomes_another_one(shared: Shared, name: str) -> None:
    text = shared("macos-fixtures", "sysctl", name).read_text()
    assert {parse_cores(parse_sysctl(cut)) for cut in prefixes(text)} <= {(), CORES[name]}


def test_cores_under_the_names_of_an_m5() -> None:
    text = (
        "hw.physicalcpu: 18\nhw.perflevel0.physicalcpu: 6\nhw.perflevel0.name: Super\nhw.perflevel1.physicalcpu: 12\n"
    )
    named = parse_cores(parse_sysctl(text + "hw.perflevel1.name: Performance\n"))
    assert named == (Cores("Super", 6), Cores("Performance", 12))
    assert parse_cores(parse_sysctl(text))[1] == Cores("Efficiency", 12), "a system too old to name them"


def test_memory_and_chip_are_two_lines_of_one_answer(shared: Shared) -> None:
    text = shared("macos-fixtures", "sysctl", "m3ultra_n_form.txt").read_text()
    assert parse_memory_and_chip(text) == (549_755_813_888, "Apple M3 Ultra")
    assert {parse_memory_and_chip(cut) for cut in prefixes(text)} == {(None, None)}
    assert parse_memory_and_chip("Apple M4 Pro\n") == (None, "Apple M4 Pro")


@pytest.mark.parametrize("text", [*GARBAGE, "0\n\n", "12\n", "1\n2\n3\n"])
def test_nonsense_is_no_memory_and_no_chip(text: str) -> None:
    assert parse_memory_and_chip(text)[0] is None


PROFILED = {
    "hardware_m2_16gb.json": Hardware(
        "Apple M2", "Mac14,7", 16 * GIB, 8, (Cores("Performance", 4), Cores("Efficiency", 4))
    ),
    "displays_hardware_m2pro_19core.json": Hardware(
        "Apple M2 Pro", "Mac14,10", 16 * GIB, 12, (Cores("Performance", 8), Cores("Efficiency", 4)), 19
    ),
    "hardware_vm_m4max.json": Hardware("Apple M4 Max (Virtual)", "VirtualMac2,1", 4 * GIB, 2),
}


def test_every_recorded_profile_of_a_mac_is_read(shared: Shared) -> None:
    files = shared("macos-fixtures", "system_profiler").iterdir()
    assert {file.name: parse_hardware(file.read_text()) for file in files} == PROFILED


@pytest.mark.parametrize("name", PROFILED)
def test_a_profile_cut_anywhere_is_none(shared: Shared, name: str) -> None:
    text = shared("macos-fixtures", "system_profiler", name).read_text().rstrip()
    assert {parse_hardware(cut) for cut in prefixes(text)} == {Hardware()}


@pytest.mark.parametrize("text", [*GARBAGE, '{"SPHardwareDataType": {}}', "[" * 100_000])
def test_nonsense_is_no_profile(text: str) -> None:
    assert parse_hardware(text) == Hardware()


@pytest.mark.parametrize("cores", ["proc 8", "proc 8:4:5", "proc x:4:4", "proc 0:0:0", 0, -2, True, None, [8]])
def test_cores_that_do_not_add_up_are_unknown(cores: object) -> None:
    import json

    found = parse_hardware(json.dumps({"SPHardwareDataType": [{"number_processors": cores}]}))
    assert (found.cores, found.num_cores) in [((), None), ((), 8)]


USED = {
    "4k_pages_16gb.txt": 11_979_382_784,
    "m1.txt": 13_637_386_240,
    "m3pro_18gb.txt": 7_392_296_960,
    "macos26_tag_storage_swapping.txt": 28_334_751_744,
    "m3ultra_512gb_head.txt": None,  # cut before the anonymous pages
}


def test_memory_in_use_in_every_recorded_vm_stat(shared: Shared) -> None:
    files = shared("macos-fixtures", "vm_stat").iterdir()
    assert {file.name: parse_used_memory(file.read_text()) for file in files} == USED


@pytest.mark.parametrize("name", USED)
def test_a_vm_stat_cut_anywhere_never_becomes_another_one(shared: Shared, name: str) -> None:
    text = shared("macos-fixtures", "vm_stat", name).read_text()
    assert {parse_used_memory(cut) for cut in prefixes(text)} <= {None, USED[name]}


FREE = {
    "full_4k_16gb.txt": (17_179_869_184, 0.72),
    "q_apple_silicon_32gb.txt": (34_359_738_368, 0.80),
    "q_darwin24_16gb.txt": (17_179_869_184, 0.60),
}


def test_the_free_share_in_every_recorded_memory_pressure(shared: Shared) -> None:
    files = shared("macos-fixtures", "memory_pressure").iterdir()
    assert {file.name: parse_free_share(file.read_text()) for file in files} == FREE


@pytest.mark.parametrize("name", FREE)
def test_a_memory_pressure_cut_anywhere_never_becomes_another_one(shared: Shared, name: str) -> None:
    text = shared("macos-fixtures", "memory_pressure", name).read_text()
    assert {parse_free_share(cut) for cut in prefixes(text)} <= {None, FREE[name]}


@pytest.mark.parametrize("text", GARBAGE)
def test_nonsense_is_no_memory(text: str) -> None:
    assert parse_used_memory(text) is None
    assert parse_free_share(text) is None
    assert parse_level_and_swap(text) in (None, (None, None))


def test_pressure_and_swap_come_from_one_program() -> None:
    swap = "total = 6144.00M  used = 4878.56M  free = 1265.44M  (encrypted)"
    assert parse_level_and_swap(f"2\n{swap}") == ("warning", round(4878.56 * 2**20))
    assert parse_level_and_swap(swap) is None
