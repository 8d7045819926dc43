"""The journal's follower: every whole line once, in order, also where a restart has cut the file back."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_finetune.events import Notice, Phase, Resources, summarise_resources, to_json
from mlx_finetune.journal import EventFollower, read_resources


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def line(text: str) -> bytes:
    return to_json(Phase(text), 1.0).encode() + b"\n"


def write(path: Path, *texts: str, keep: int | None = None, torn: bytes = b"") -> None:
    """Append lines, after cutting the file back to its first ``keep`` lines."""
    if keep is not None:
        os.truncate(path, sum(map(len, path.read_bytes().splitlines(keepends=True)[:keep])))
    with path.open("ab") as file:
        file.write(b"".join(map(line, texts)) + torn)


def poller(path: Path, *, from_end: bool = False) -> Callable[[], list[tuple[int, str]]]:
    """A function that gives number and name of the phases that are new."""
    follower = EventFollower(path, from_end=from_end)
    return lambda: [(one.index, one.event.name) for one in follower.poll() if isinstance(one.event, Phase)]


def test_a_line_is_given_once_and_only_when_it_is_whole(journal: Path) -> None:
    new = poller(journal)
    assert new() == []
    write(journal, "a", torn=line("b")[:9])
    assert new() == [(0, "a")]
    assert new() == []
    with journal.open("ab") as file:
        file.write(line("b")[9:])
    assert new() == [(1, "b")]


def test_what_was_there_before_can_be_left_out(journal: Path) -> None:
    write(journal, "a", "b", torn=b'{"kind": "pha')
    new = poller(journal, from_end=True)
    assert new() == []
    write(journal, "c", keep=2)
    assert new() == [(2, "c")]


@pytest.mark.parametrize("is_seen", [True, False], ids=["cut seen", "cut and rewritten between two looks"])
@pytest.mark.parametrize("more", [("x",), ("x", "y"), ("x", "y", "a line that is longer than all that was cut off")])
@pytest.mark.parametrize("keep", [0, 1, 2])
def test_after_a_cut_the_new_lines_are_given_however_many(
    journal: Path, keep: int, more: tuple[str, ...], is_seen: bool
) -> None:
    write(journal, "a", "b", "c")
    follow, skip = poller(journal), poller(journal, from_end=True)
    assert len(follow()) == 3
    if is_seen:
        write(journal, keep=keep)
        assert follow() == skip() == []
    write(journal, *more, keep=keep)
    expected = list(enumerate(more, start=keep))
    assert follow() == skip() == expected
    write(journal, "z", keep=keep)
    assert follow() == skip() == [(keep, "z")]


@pytest.mark.parametrize("is_seen", [True, False], ids=["cut seen", "cut and put back between two looks"])
def test_what_was_left_out_stays_left_out_where_a_refused_continuation_puts_it_back(
    journal: Path, is_seen: bool
) -> None:
    write(journal, "a", "b", "stopped")
    new = poller(journal, from_end=True)
    write(journal, "read", keep=1)
    assert not is_seen or new() == [(1, "read")]
    write(journal, "b", "stopped", keep=1)
    assert new() == []
    write(journal, "c")
    assert new() == [(3, "c")]


def test_lines_of_another_version_count_but_are_left_out(journal: Path) -> None:
    write(journal, "a", torn=b'{"kind": "unknown", "time": 1.0}\nnonsense\n')
    write(journal, torn=to_json(Notice("info", "n"), 1.0).encode() + b"\n")
    assert [(one.index, one.event.kind) for one in EventFollower(journal).poll()] == [(0, "phase"), (3, "notice")]


def test_a_file_in_the_place_of_the_run_folder_has_no_events(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert list(EventFollower(tmp_path / "file" / "events.jsonl").poll()) == []


def test_samples_of_the_machine_add_up_to_means_and_largest_values() -> None:
    samples = [
        Resources(1, gpu_percent=0, watts=10.0, energy_joules=50.0, throttled="", disk_free_bytes=9),
        Resources(2, gpu_percent=90, watts=20.0, energy_joules=150.0, throttled="the processor's speed at 62 %"),
        Resources(3, gpu_percent=None, watts=None, disk_free_bytes=7),
    ]
    assert summarise_resources(samples) == {
        "samples": 3,
        "mean": {"gpu_percent": 45.0, "watts": 15.0},
        "max": {"gpu_percent": 90, "watts": 20.0},
        "energy_joules": 150.0,
        "throttled_share": 0.5,
        "least_disk_free_bytes": 7,
    }
    assert summarise_resources([]) is None
    nothing = summarise_resources([Resources(1)])
    assert nothing is not None
    assert (nothing["mean"], nothing["energy_joules"], nothing["throttled_share"]) == ({}, None, None)


def test_samples_are_read_out_of_a_journal_that_is_torn_and_has_other_lines(journal: Path) -> None:
    assert read_resources(journal) == []
    samples = [Resources(1, watts=2.5), Resources(2, pressure="warning")]
    content = b"".join(to_json(one, 1.0).encode() + b"\n" for one in (samples[0], Phase("resources"), samples[1]))
    journal.write_bytes(content + to_json(samples[0], 2.0).encode()[:-5])
    assert read_resources(journal) == samples
