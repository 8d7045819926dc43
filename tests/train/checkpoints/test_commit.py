import json
import os

import pytest

from mlx_finetune import durable, rundir
from mlx_finetune.rundir import RunDir
from mlx_finetune.train.checkpoints.commit import newest_checkpoint, read_checkpoint, rotate, save_checkpoint, sweep


@pytest.fixture
def run(tmp_path):
    return RunDir(tmp_path)


def save(run, step, content=b"weights"):
    return save_checkpoint(run, step, [("weights", [content])], parent_step=None)


def test_a_checkpoint_has_a_manifest_with_size_and_hash_of_every_file(run):
    checkpoint = save(run, 5)
    manifest = json.loads((checkpoint.path / rundir.MANIFEST).read_text())
    assert manifest["step"] == 5
    assert manifest["files"]["weights"]["bytes"] == checkpoint.num_bytes == 7
    assert len(manifest["files"]["weights"]["sha256"]) == 64
    assert [path.name for path in run.checkpoints()] == ["checkpoint-5"]


def test_checkpoints_sort_by_step_and_not_by_name_or_time(run):
    for step in (10, 9, 100):
        save(run, step)
        os.utime(run.checkpoint(step), (step, step))
    assert [path.name for path in run.checkpoints()] == ["checkpoint-9", "checkpoint-10", "checkpoint-100"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "missing", "no manifest", "bad manifest"])
def test_damage_is_seen_and_the_one_before_is_taken(run, damage):
    save(run, 1)
    path = save(run, 2).path
    weights, manifest = path / "weights", path / rundir.MANIFEST
    if damage == "flip":
        weights.write_bytes(b"weighty")
    elif damage == "truncate":
        weights.write_bytes(b"weight")
    elif damage == "missing":
        weights.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text("[")
    said = []
    newest = newest_checkpoint(run, on_damage=said.append)
    assert newest is not None
    assert newest.step == 1
    assert ("no manifest" if damage == "no manifest" else "do not match") in said[0]
    assert read_checkpoint(path) is None


def test_a_failure_while_writing_leaves_nothing_and_touches_no_other(run):
    save(run, 1)

    def fail():
        yield b"half"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space") as error:
        save_checkpoint(run, 2, [("weights", fail())], parent_step=1)
    assert error.value.filename.endswith("/weights")
    assert sorted(entry.name for entry in run.path.iterdir()) == ["checkpoint-1"]
    assert read_checkpoint(run.checkpoint(1)) is not None


def test_a_checkpoint_of_that_step_is_kept_unless_it_is_damaged(run):
    save(run, 3, b"first")
    save(run, 3, b"other")
    assert (run.checkpoint(3) / "weights").read_bytes() == b"first"
    (run.checkpoint(3) / "weights").write_bytes(b"broke")
    save(run, 3, b"other")
    assert (run.checkpoint(3) / "weights").read_bytes() == b"other"


def test_rotation_keeps_the_newest_and_the_named(run):
    for step in range(1, 7):
        save(run, step)
    rotate(run, keep_newest=2, keep_steps={2})
    assert [path.name for path in run.checkpoints()] == ["checkpoint-2", "checkpoint-5", "checkpoint-6"]
    assert sorted(entry.name for entry in run.path.iterdir()) == ["checkpoint-2", "checkpoint-5", "checkpoint-6"]


@pytest.mark.parametrize("num_checkpoints", [1, 2, 3])
def test_rotation_removes_nothing_while_there_are_few(run, num_checkpoints):
    for step in range(num_checkpoints):
        save(run, step)
    rotate(run, keep_newest=3, keep_steps=())
    assert len(run.checkpoints()) == num_checkpoints


def test_leftovers_of_a_killed_process_are_swept(run):
    save(run, 1)
    (run.path / ".checkpoint-2.99.part").mkdir()
    (run.path / ".trash-checkpoint-0.99").mkdir()
    (run.path / ".run.json.99.part").write_text("{")
    (run.path / ".lock").write_text("")
    sweep(run)
    assert sorted(entry.name for entry in run.path.iterdir()) == [".lock", "checkpoint-1"]


def test_a_link_in_the_place_of_a_file_is_replaced_and_not_followed(run):
    outside = run.path / "outside"
    outside.write_text("mine")
    (run.path / rundir.RUN_INFO).symlink_to(outside)
    durable.write_json(run.path / rundir.RUN_INFO, {"a": 1})
    assert outside.read_text() == "mine"
    assert not (run.path / rundir.RUN_INFO).is_symlink()
