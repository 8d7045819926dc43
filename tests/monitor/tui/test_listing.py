"""The list of runs: what one look at both ends of a journal tells, in which order, and that it is not read twice."""

import dataclasses
from pathlib import Path

import pytest
from golden_screens import at_work
from screen_runs import START, STARTED, append, at_pace, step, write_run

from mlx_finetune.events import Event, Notice, RunFailed, RunFinished, RunStopped
from mlx_finetune.monitor.tui import listing as module
from mlx_finetune.monitor.tui.listing import Listing, glance
from mlx_finetune.rundir import RunDir, list_runs

FINISHED = RunFinished(2, "finished", 2.5, 1.25, 1, 1.25, 80.0, 16_000, 10**9, "", 1)


@pytest.mark.parametrize(
    ("events", "status"),
    [
        ([STARTED, step(1), step(2), FINISHED], "finished"),
        ([STARTED, step(1), step(2), RunStopped(2, 15)], "stopped"),
        ([STARTED, step(1), step(2), RunFailed("no", "", 1)], "failed"),
        ([STARTED, step(1), RunStopped(1, 15), dataclasses.replace(STARTED, first_step=1), step(2)], "interrupted"),
    ],
)
def test_a_glance_tells_how_a_run_ended(tmp_path: Path, events: list[Event], status: str) -> None:
    run = write_run(tmp_path / "run", at_pace(events))
    one = glance(run, is_at_work=False)
    assert (one.status, one.step, one.total_steps, one.model) == (status, 2, 400, "tiny-llama")
    assert one.loss == pytest.approx(step(2).loss)
    assert one.time == START + 4


def test_a_long_journal_is_read_at_both_ends_only(tmp_path: Path) -> None:
    long = [STARTED, *(Notice("info", "x" * 1000) for _ in range(300)), step(301)]
    run = write_run(tmp_path / "run", at_pace(long))
    assert run.file("events.jsonl").stat().st_size > 3 * module.END_BYTES
    one = glance(run, is_at_work=True)
    assert (one.status, one.step, one.model) == ("at work", 301, "tiny-llama")


def test_a_folder_without_a_readable_journal_is_listed_all_the_same(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    run.file("events.jsonl").write_bytes(b"\xff\xfe no json\n{}\n\n")
    one = glance(run, is_at_work=False)
    assert (one.status, one.step, one.total_steps, one.time) == ("interrupted", 0, None, 0.0)


def test_those_at_work_come_first_then_the_latest_and_no_journal_is_read_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, start in (("early", 0), ("late", 1000), ("middle", 500)):
        write_run(tmp_path / name, at_pace([STARTED, step(1)], start=START + start))
    reads: list[str] = []
    look = glance

    def counted(run: RunDir, *, is_at_work: bool) -> module.Glance:
        reads.append(run.path.name)
        return look(run, is_at_work=is_at_work)

    monkeypatch.setattr(module, "glance", counted)
    listing = Listing(lambda: list_runs(tmp_path))
    listing.look()
    assert [one.run.path.name for one in listing.glances] == ["late", "middle", "early"]
    with at_work(RunDir(tmp_path / "early")):
        listing.look()
        listing.look()
        assert [one.run.path.name for one in listing.glances] == ["early", "late", "middle"]
        assert sorted(reads) == ["early", "early", "late", "middle"]
        append(RunDir(tmp_path / "middle"), at_pace([step(2)], start=START + 2000))
        listing.look()
    assert reads[-1] == "middle"
    assert [one.run.path.name for one in listing.glances] == ["early", "middle", "late"]
