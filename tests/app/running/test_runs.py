"""Runs on disk: which one is at work, what it takes, and a removal that touches nothing else."""

import fcntl
from pathlib import Path

import pytest

from mlx_finetune.app.running.runs import count_corrections, foreign_entries, is_running, remove_run, run_bytes
from mlx_finetune.errors import RunError
from mlx_finetune.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    folder = tmp_path / "adapters" / "demo"
    (folder / "checkpoint-5").mkdir(parents=True)
    (folder / "events.jsonl").write_text("12345")
    (folder / "checkpoint-5" / "manifest.json").write_text("{}")
    (folder / ".lock").write_text("1\n")
    return RunDir(folder)


def test_size_counts_every_file_and_no_link(run: RunDir, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(10_000))
    (run.path / "checkpoint-5" / "link").symlink_to(tmp_path / "large")
    assert run_bytes(run) == 5 + 2 + 2


def test_a_run_is_at_work_while_its_lock_is_held(run: RunDir) -> None:
    assert not is_running(run)
    with (run.path / ".lock").open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert is_running(run)
        with pytest.raises(RunError, match="at work"):
            remove_run(run)
    assert not is_running(run)
    assert run.path.is_dir()


def test_a_removed_run_is_gone_and_its_neighbours_are_not(run: RunDir) -> None:
    (run.path.parent / "other").mkdir()
    remove_run(run)
    assert [entry.name for entry in run.path.parent.iterdir()] == ["other"]


def test_a_link_inside_a_run_is_removed_and_not_followed(run: RunDir, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    (run.path / "checkpoint-5" / "out").symlink_to(precious)
    remove_run(run)
    assert (precious / "file").read_text() == "x"


def test_a_link_to_a_run_is_refused(run: RunDir) -> None:
    link = run.path.with_name("link")
    link.symlink_to(run.path)
    with pytest.raises(RunError, match="is a link"):
        remove_run(RunDir(link))
    assert (run.path / "events.jsonl").is_file()


def test_a_folder_that_also_holds_other_things_is_refused_with_their_names(run: RunDir) -> None:
    (run.path / "thesis.tex").write_text("x")
    (run.path / ".events.jsonl.12.part").write_text("x")
    assert foreign_entries(run) == ["thesis.tex"]
    with pytest.raises(RunError, match=r"thesis\.tex"):
        remove_run(run)
    assert (run.path / "thesis.tex").is_file()


def test_corrections_stay_when_their_run_is_removed(run: RunDir) -> None:
    run.file("corrections.jsonl").write_text('{"messages": []}\n\n{"messages": []}')
    assert count_corrections(run) == 2
    remove_run(run)
    assert [entry.name for entry in run.path.iterdir()] == ["corrections.jsonl"]
    assert run.file("corrections.jsonl").read_text() == '{"messages": []}\n\n{"messages": []}\n'
    assert [entry.name for entry in run.path.parent.iterdir()] == ["demo"]
    assert not run.is_run()


def test_corrections_go_with_their_run_where_that_is_asked_for(run: RunDir) -> None:
    run.file("corrections.jsonl").write_text('{"messages": []}\n')
    remove_run(run, with_corrections=True)
    assert list(run.path.parent.iterdir()) == []


def test_what_a_chat_adds_while_its_run_is_removed_is_there_afterwards(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.file("corrections.jsonl").write_text("one\n")
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        moved = real(self, target)
        self.mkdir()
        (self / "corrections.jsonl").write_text("two\n")
        return moved

    monkeypatch.setattr(Path, "rename", rename)
    remove_run(run)
    assert sorted(run.file("corrections.jsonl").read_text().split()) == ["one", "two"]
