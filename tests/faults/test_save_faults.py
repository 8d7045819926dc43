"""Every operation of a save and its rotation fails once, in every way it can; the list of operations is complete."""

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.saving import SaveTrials, changed_names
from faults.trials import ACTIONS, STRACE, Operation, Server, read_strace

from mlx_finetune import rundir


@pytest.fixture(scope="module")
def trials(shim: Path, memory_folder: Path) -> Iterator[SaveTrials]:
    with Server("save", shim, memory_folder) as server:
        yield SaveTrials(server, memory_folder)


def test_every_operation_of_a_save_may_fail_in_every_way_and_no_checkpoint_is_lost(trials: SaveTrials) -> None:
    verdicts = {(index, action): trials.run(index, action) for index, action in trials.pairs()}
    bad = {(trials.operations[index - 1], action): v.problems for (index, action), v in verdicts.items() if v.problems}
    assert not bad
    counted = Counter(verdict.action for verdict in verdicts.values())
    assert set(counted) == set(ACTIONS)
    assert min(counted.values()) >= 8
    assert all(verdict.is_intact and verdict.goes_on for verdict in verdicts.values())


def test_the_log_of_a_save_accounts_for_every_byte_and_every_name(trials: SaveTrials) -> None:
    operations = trials.operations
    made, gone = changed_names(operations)
    before, after = _names(trials.before), _names(trials.after)
    # What was renamed took its files along: names inside moved folders are counted under the folder's last name.
    moved = {op.second: op.path for op in operations if op.name == "rename"}
    part = moved["checkpoint-6"]
    assert {name.replace(part, "checkpoint-6") for name in made} == after - before
    trash = next(name for name in moved if name.startswith(".trash-"))
    assert {name.replace(trash, moved[trash]) for name in gone} - {part} >= before - after
    for name in (name for name in trials.after if name.startswith("checkpoint-6/")):
        written = sum(op.result for op in operations if op.path == f"{part}/{Path(name).name}" and op.name == "write")
        assert written == len(trials.after[name]), name


def test_a_save_flushes_each_file_then_the_folder_then_the_name_and_rotates_last(trials: SaveTrials) -> None:
    operations = [operation for operation in trials.operations if operation.result >= 0]
    renamed = _where(operations, "rename", second="checkpoint-6")
    part = operations[renamed].path
    assert part.startswith(".checkpoint-6.")
    folder_synced = _where(operations, "fsync", path=part)
    last_written = 0
    for name in (name for name in trials.after if name.startswith("checkpoint-6/")):
        file = f"{part}/{Path(name).name}"
        ours = [(i, op.name) for i, op in enumerate(operations) if op.path == file]
        assert ours[0][1] == "open"
        assert ours[-1][1] == "fsync"
        assert ours[-1][0] < folder_synced < renamed
        if Path(name).name != rundir.MANIFEST:
            last_written = max(last_written, ours[-1][0])
    assert _where(operations, "open", path=f"{part}/{rundir.MANIFEST}") > last_written
    trashed = next(i for i, op in enumerate(operations) if op.second.startswith(".trash-"))
    removed = next(i for i, op in enumerate(operations) if op.name == "unlink" and op.path.startswith(".trash-"))
    names_synced = [i for i, op in enumerate(operations) if (op.name, op.path) == ("fsync", ".")]
    assert renamed < names_synced[0] < trashed < names_synced[1] < removed


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace to check the shim's list of calls")
def test_strace_sees_the_same_operations_in_the_same_order_as_the_shim(
    trials: SaveTrials, shim: Path, tmp_path: Path
) -> None:
    root, trace = trials.new_root(), tmp_path / "trace"
    with Server("save", shim, tmp_path, prefix=(*STRACE, str(trace))) as server:
        ended = server.run(root)
    assert ended.code == 0, ended
    seen = read_strace(trace, root)
    assert seen == [operation.name for operation in ended.operations]
    assert len(seen) == len(trials.operations)


def _where(operations: list[Operation], name: str, **fields: str) -> int:
    """The index of the only operation of that name and those fields."""
    found = [
        index
        for index, operation in enumerate(operations)
        if operation.name == name and all(getattr(operation, key) == value for key, value in fields.items())
    ]
    assert len(found) == 1, (name, fields, found)
    return found[0]


def _names(tree: dict[str, bytes]) -> set[str]:
    """Every file and folder of a tree."""
    return set(tree) | {str(Path(name).parent) for name in tree}
