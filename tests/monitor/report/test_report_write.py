"""Where a report is put, what is never written over, and that the same run gives the same bytes."""

import json
import os
import time
from pathlib import Path

import pytest
from reported_runs import STARTED, events, step, write_events, write_run

from mlx_finetune.errors import RunError
from mlx_finetune.events import Evaluated, Event, Phase, RunFailed, Sampled
from mlx_finetune.monitor.report.write import write_report
from mlx_finetune.rundir import LOCK, RUN_INFO, RunDir, is_run_file, take_lock


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return write_run(tmp_path)


def test_the_same_run_gives_the_same_bytes(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write_report(run).read_bytes()
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        monkeypatch.chdir(run.path.parent)
        again = write_report(RunDir(Path(run.path.name)))
        assert again.read_bytes() == first
        (run.path / "log.txt").write_text("a log that grows")
        with_log = write_report(run).read_bytes()
        (run.path / "log.txt").write_text("a log that grows and grows")
        assert write_report(run).read_bytes() == with_log
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()


def test_an_unedited_report_is_replaced(run: RunDir) -> None:
    first = write_report(run)
    size = first.stat().st_size
    write_events(run, [*events()[:-1], Sampled(40, "One more?", "yes"), events()[-1]])
    assert write_report(run) == first == run.file("report.html")
    assert first.stat().st_size > size
    assert [path.name for path in run.path.glob("*report*")] == ["report.html"]


def test_an_edited_report_is_left_and_the_next_one_stands_beside_it(run: RunDir) -> None:
    path = write_report(run)
    edited = path.read_text("utf-8").replace("<h2>The data</h2>", "<h2>The data, which Anna collected</h2>")
    path.write_text(edited, "utf-8")
    assert write_report(run) == run.file("report-2.html")
    assert write_report(run) == run.file("report-2.html"), "that one is replaced: nobody has edited it"
    run.file("report-2.html").write_bytes(b"mine")
    assert write_report(run) == run.file("report-3.html")
    assert path.read_text("utf-8") == edited
    assert run.file("report-2.html").read_bytes() == b"mine"
    assert is_run_file("report-3.html")


def test_a_run_that_goes_on_with_other_data_has_its_report_in_the_same_place(run: RunDir) -> None:
    first = write_report(run)
    info = json.loads(run.file(RUN_INFO).read_text())
    info["identity"]["data_sha256"] = "other"
    run.file(RUN_INFO).write_text(json.dumps(info))
    assert write_report(run) == first


def test_a_report_is_no_part_of_the_next_one(run: RunDir) -> None:
    first = write_report(run)
    content = first.read_bytes()
    first.write_bytes(content + b"<!-- read -->\n")
    assert write_report(run).read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"mine", b"<!-- mlxft report, run 0, unedited 0 -->\n"])
def test_out_never_writes_over_what_is_not_this_runs_report(run: RunDir, content: bytes) -> None:
    out = run.path.parent / "page.html"
    out.write_bytes(content)
    with pytest.raises(RunError, match="is not an unedited report of this run") as raised:
        write_report(run, out=out)
    assert "--out" in raised.value.hint
    assert out.read_bytes() == content


def test_out_replaces_its_own_report_and_not_another_runs(run: RunDir, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert write_report(run, out=out) == out
    assert write_report(run, out=out) == out
    other = write_run(tmp_path, name="other")
    info = json.loads(other.file("run.json").read_text("utf-8")) | {"created": "2026-09-23T00:00:00+00:00"}
    other.file("run.json").write_text(json.dumps(info), "utf-8")
    with pytest.raises(RunError, match="is not an unedited report of this run"):
        write_report(other, out=out)


def test_out_is_a_file_in_a_folder_that_is_there(run: RunDir, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is a folder"):
        write_report(run, out=tmp_path)
    with pytest.raises(RunError, match="does not exist"):
        write_report(run, out=tmp_path / "no" / "page.html")
    (tmp_path / "link.html").symlink_to(tmp_path / "nowhere")
    with pytest.raises(RunError, match="is not an unedited report"):
        write_report(run, out=tmp_path / "link.html")


def test_a_run_before_its_start_has_nothing_to_report(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    write_events(run, [Phase("load", "tiny-llama")])
    lock = take_lock(run.file(LOCK))
    assert lock is not None
    with pytest.raises(RunError, match="nothing to report yet") as raised:
        write_report(run)
    assert raised.value.hint.startswith("watch it with: mlxft monitor ")
    os.close(lock)
    assert not run.file("report.html").exists()


@pytest.mark.parametrize(
    ("end", "message", "hint"),
    [
        ([RunFailed("no memory", "smaller", 0)], "failed before there was anything to report: no memory", "smaller"),
        ([RunFailed("no memory", "", 0)], "failed before there was anything to report: no memory", "more is in "),
        ([], "it ended before the model was loaded", "how to go on: mlxft runs show "),
    ],
)
def test_a_run_that_never_began_is_not_to_be_watched(tmp_path: Path, end: list[Event], message: str, hint: str) -> None:
    run = RunDir(tmp_path)
    write_events(run, [Phase("load", "tiny-llama"), *end])
    with pytest.raises(RunError, match=message) as raised:
        write_report(run)
    assert raised.value.hint.startswith(hint)


def test_a_journal_alone_is_enough(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "bare")
    run.path.mkdir()
    write_events(run, [STARTED])
    assert b"Not measured in this run." in write_report(run).read_bytes()


@pytest.mark.parametrize("name", ["run.json", "resolved.toml", "data_card.json", "microscope.json", "recipe.toml"])
@pytest.mark.parametrize("content", [b"", b"[1, 2", b"\xff\xfe\x00", b'{"rows": 3, "splits": 4, "identity": []}'])
def test_a_damaged_file_leaves_its_part_out(run: RunDir, name: str, content: bytes) -> None:
    run.file(name).write_bytes(content)
    assert b"Validation loss as a table" in write_report(run).read_bytes()


def long_run(num_steps: int, *, num_prompts: int, answer: str) -> list[Event]:
    """A run that is evaluated a hundred times and answers at length."""
    found: list[Event] = [STARTED, Evaluated(0, 2.5, 100, is_best=True, seconds=0.1)]
    for number in range(1, num_steps + 1):
        found.append(step(number))
        if number % (num_steps // 100) == 0:
            found.append(Evaluated(number, 2.5 - number / num_steps, 100, is_best=True, seconds=0.1))
            found += [Sampled(number, f"{place}?", f"{answer} {number}") for place in range(num_prompts)]
    return found


def test_ten_thousand_steps_with_long_answers_are_less_than_three_megabytes(run: RunDir) -> None:
    write_events(run, long_run(10_000, num_prompts=10, answer="<&> many words " * 300))
    path = write_report(run)
    page = path.read_text("utf-8")
    assert path.stat().st_size < 3_000_000
    assert "of 100 evaluations are shown" in page
    assert page.count('<div class="frame" data-frame="0">') == 10
    assert "step 10,000" in page, "the last answers are among them"


def test_more_prompts_than_a_page_carries_are_counted(run: RunDir) -> None:
    write_events(run, long_run(100, num_prompts=300, answer="many words " * 400))
    path = write_report(run)
    assert path.stat().st_size < 3_000_000
    assert "of 300 prompts are shown" in path.read_text("utf-8")


def test_a_report_that_cannot_be_written_leaves_the_old_one(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    before = write_report(run).read_bytes()
    write_events(run, [STARTED, step(1), step(2)])

    def refuse(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="No space left"):
        write_report(run)
    assert run.file("report.html").read_bytes() == before
