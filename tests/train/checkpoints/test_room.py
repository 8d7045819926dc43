"""A full disk costs no checkpoint that must stay, and ends in one sentence."""

import errno
import json
import os
from pathlib import Path

import pytest

from mlx_finetune.errors import DoesNotFitError, NoSpaceError, StorageError
from mlx_finetune.hardware.planning.disk import SPARE_BYTES, DiskPlan, check_room
from mlx_finetune.rundir import RunDir
from mlx_finetune.train.checkpoints import room
from mlx_finetune.train.checkpoints.commit import save_checkpoint
from mlx_finetune.train.checkpoints.room import make_room, refused_writes

SIZE = 1000


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Checkpoints 2, 4, 6 and 8 of about SIZE bytes on a disk with room for four of them and the spare part."""
    run = RunDir(tmp_path)
    for step in (2, 4, 6, 8):
        save_checkpoint(run, step, [("weights", [bytes(SIZE)])], parent_step=None)

    def free(folder: Path) -> int:
        used = sum(path.stat().st_size for path in folder.rglob("weights"))
        return 4 * SIZE + SPARE_BYTES - used

    monkeypatch.setattr(room, "free_bytes", free)
    return run


def names(run):
    return [path.name for path in run.checkpoints()]


def test_only_what_rotation_would_remove_makes_room_and_no_more_than_needed(run):
    make_room(run, SIZE, keep_newest=2, keep_steps=())
    assert names(run) == ["checkpoint-4", "checkpoint-6", "checkpoint-8"]
    make_room(run, SIZE, keep_newest=2, keep_steps=())
    assert names(run) == ["checkpoint-4", "checkpoint-6", "checkpoint-8"]


def test_leftovers_go_first(run):
    leftover = run.path / ".checkpoint-10.77.part"
    leftover.mkdir()
    (leftover / "weights").write_bytes(bytes(SIZE))
    with pytest.raises(NoSpaceError):
        make_room(run, SIZE, keep_newest=9, keep_steps=())
    assert not leftover.exists()
    assert len(names(run)) == 4


def test_the_newest_the_best_and_those_of_save_at_stay_and_the_sentence_says_so(run):
    with pytest.raises(NoSpaceError) as error:
        make_room(run, 4 * SIZE, keep_newest=1, keep_steps={2, 4})
    assert names(run) == ["checkpoint-2", "checkpoint-4", "checkpoint-8"]
    assert error.value.message == (
        f"the disk that holds {run.path} is full (a checkpoint needs 4.0 kB and 10.0 MB to spare, 10.0 MB are free); "
        "everything up to checkpoint-8 is safe"
    )
    assert error.value.hint == "make room, then go on with --resume"
    with pytest.raises(NoSpaceError) as first:
        make_room(RunDir(run.path / "another"), 4 * SIZE + SPARE_BYTES + 1, keep_newest=1, keep_steps=())
    assert first.value.hint == "make room, then start it again"


def test_the_best_that_is_saved_stays_while_a_better_one_is_not(run):
    state = {"best_step": 4}
    save_checkpoint(
        run, 10, [("weights", [bytes(SIZE)]), ("trainer_state.json", [json.dumps(state).encode()])], parent_step=8
    )
    with pytest.raises(NoSpaceError):
        make_room(run, 4 * SIZE, keep_newest=1, keep_steps={12})
    assert names(run) == ["checkpoint-4", "checkpoint-10"]


def test_enough_room_removes_nothing(run, monkeypatch):
    monkeypatch.setattr(room, "free_bytes", lambda folder: SIZE + SPARE_BYTES)
    make_room(run, SIZE, keep_newest=1, keep_steps=())
    assert len(names(run)) == 4


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.ENOSPC, NoSpaceError, "is full"),
        (errno.EDQUOT, NoSpaceError, "is full"),
        (errno.EFBIG, NoSpaceError, "is full"),
        (errno.EIO, StorageError, "cannot be written to (Input/output error)"),
        (errno.EROFS, StorageError, "cannot be written to (Read-only file system)"),
        (errno.EACCES, StorageError, "cannot be written to (Permission denied)"),
    ],
)
def test_what_the_disk_refuses_is_one_sentence(run, number, kind, words):
    for place in (run.path, run.path / "checkpoint-10" / "weights"):
        with pytest.raises(kind) as error, refused_writes(run):
            raise OSError(number, os.strerror(number), str(place))
        assert words in error.value.message
        assert error.value.message.endswith("everything up to checkpoint-8 is safe")
        assert "--resume" in error.value.hint


def test_errors_elsewhere_are_not_blamed_on_the_run_folder(run):
    for place in (None, "/data/rows.jsonl", str(run.path.parent)):
        with pytest.raises(OSError, match="space") as error, refused_writes(run):
            raise OSError(errno.ENOSPC, "no space", place)
        assert not isinstance(error.value, StorageError)


def test_a_run_that_cannot_be_kept_is_refused_with_what_it_needs(tmp_path):
    plan = DiskPlan(adapter=10, checkpoint=100, needed=600, free=SPARE_BYTES + 599)
    with pytest.raises(DoesNotFitError, match=r"needs 600 B of disk for its checkpoints and 10\.0 MB to spare"):
        check_room(plan, tmp_path, num_existing=0)
    check_room(plan, tmp_path, num_existing=1)
    tight = DiskPlan(adapter=10, checkpoint=100, needed=600, free=SPARE_BYTES + 199)
    with pytest.raises(DoesNotFitError, match="200 B"):
        check_room(tight, tmp_path, num_existing=6)
