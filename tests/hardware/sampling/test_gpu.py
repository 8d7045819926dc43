"""Busy share and memory of a GPU in every recorded listing of the register of devices, and in broken ones."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mlx_finetune.hardware.sampling.gpu import parse_gpu_plist, parse_gpu_text, read_gpu

Shared = Callable[..., Path]

TEXTS = {
    "m1_8core.txt": (14, 730_251_264),
    "m4_10core_grep.txt": (21, 351_141_888),
    "m3pro_18core_busy.txt": (95, 1234),
    "m5pro.txt": (41, 1_284_358_144),
    "spaced_equals.txt": (27, 3_221_225_472),
    "m4max_40core_split_keys.txt": (37, 0),
    "empty_no_stats.txt": (None, None),
}
PLISTS = {"m4_constructed.plist": (21, 351_141_888)}
GARBAGE = ["", "\n", "\x00\xff", "<plist>", "<?xml version='1.0' encoding='x'?><plist/>", "bplist00", "{", "[]", "0"]


def test_every_recorded_listing_is_read(shared: Shared) -> None:
    folder = shared("macos-fixtures", "ioreg")
    assert {file.name for file in folder.iterdir()} == {*TEXTS, *PLISTS}
    assert {name: parse_gpu_text((folder / name).read_text()) for name in TEXTS} == TEXTS
    assert {name: parse_gpu_plist((folder / name).read_text()) for name in PLISTS} == PLISTS


@pytest.mark.parametrize("name", TEXTS)
def test_a_listing_cut_anywhere_never_becomes_another_one(shared: Shared, name: str) -> None:
    text = shared("macos-fixtures", "ioreg", name).read_text()
    for length in range(len(text)):
        busy, memory = parse_gpu_text(text[:length])
        assert busy in (None, TEXTS[name][0])
        assert memory in (None, TEXTS[name][1])


def test_a_property_list_cut_anywhere_is_none(shared: Shared) -> None:
    text = shared("macos-fixtures", "ioreg", "m4_constructed.plist").read_text().rstrip()
    assert {parse_gpu_plist(text[:length]) for length in range(len(text))} == {(None, None)}


@pytest.mark.parametrize("text", GARBAGE)
def test_nonsense_is_no_gpu(text: str) -> None:
    assert parse_gpu_plist(text) == (None, None)
    assert parse_gpu_text(text) == (None, None)


@pytest.mark.parametrize("value", ["<integer>101</integer>", "<integer>-1</integer>", "<true/>", "<string>7</string>"])
def test_what_is_no_share_is_none(shared: Shared, value: str) -> None:
    text = shared("macos-fixtures", "ioreg", "m4_constructed.plist").read_text()
    assert parse_gpu_plist(text.replace("<integer>21</integer>", value)) == (None, 351_141_888)


def test_the_plain_listing_is_asked_for_only_where_the_property_list_fails(shared: Shared) -> None:
    folder, asked = shared("macos-fixtures", "ioreg"), list[bool]()

    def run(command: Sequence[str], plist: str | None) -> str | None:
        assert command[0] == "/usr/sbin/ioreg"
        asked.append("-a" in command)
        return plist if "-a" in command else (folder / "m1_8core.txt").read_text().strip()

    whole = (folder / "m4_constructed.plist").read_text()
    assert read_gpu(lambda command: run(command, whole)) == {"gpu_percent": 21, "gpu_memory_bytes": 351_141_888}
    assert read_gpu(lambda command: run(command, "<plist")) == {"gpu_percent": 14, "gpu_memory_bytes": 730_251_264}
    assert asked == [True, True, False]
    assert read_gpu(lambda command: None) == {"gpu_percent": None, "gpu_memory_bytes": None}
