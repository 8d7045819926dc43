"""Power loss at any point of a save, a rotation and their like: every state the disk may be left in still has a run."""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults.model_fs import Mark, Names, Operation, Recording, Sync, Tree, record

from mlx_finetune import durable, rundir
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.rundir import RunDir
from mlx_finetune.train.checkpoints.commit import discard_after, newest_checkpoint, rotate, save_checkpoint, sweep
from mlx_finetune.train.results import publish
from mlx_finetune.train.start.admission import Request, admit

LIMIT = 200  # states for each operation, where there are more; every run of the tests takes fewer
FEW = 30


def contents(step: int) -> Iterator[tuple[str, list[bytes]]]:
    """As many files as an adapter has, small ones, some in several writes and over a sector's border."""
    yield rundir.PEFT_WEIGHTS, [b"peft %4d " % step * 80]
    yield rundir.MLX_WEIGHTS, [b"weights %4d " % step * size for size in (30, 70, 20)]
    yield rundir.ADAPTER_CONFIG, [b'{"r": 4, "step": %d}\n' % step]
    yield rundir.OPTIMIZER, [b"optimizer %4d " % step * 50, b"moments %4d" % step]
    yield "tokenizer.json", [b"{}"]
    yield rundir.TRAINER_STATE, [b'{"step": %d}\n' % step]


def save(run: RunDir, step: int) -> None:
    save_checkpoint(run, step, contents(step), parent_step=None)


@dataclass(frozen=True, slots=True)
class Phase:
    """What is recorded in ``root/run`` after ``prepare``; the newest step ``before`` and ``after`` it was promised."""

    prepare: Callable[[RunDir], None]
    act: Callable[[RunDir, Recording], None]
    before: int | None
    after: int
    is_damaged: bool = False  # a damaged checkpoint lies there from the start


def _prepare(*steps: int, damaged: int | None = None) -> Callable[[RunDir], None]:
    def prepare(run: RunDir) -> None:
        run.path.mkdir()
        durable.write_json(run.file(rundir.RUN_INFO), {"format_version": 1})
        for step in steps:
            save(run, step)
        if damaged is not None:
            (run.checkpoint(damaged) / rundir.OPTIMIZER).write_bytes(b"moments")

    return prepare


def _prepare_leftovers(run: RunDir) -> None:
    """Those of a dead process that had the number which this one has now."""
    _prepare(2, 4)(run)
    for name in (f".checkpoint-6.{os.getpid()}.part", f".trash-checkpoint-2.{os.getpid()}"):
        shutil.copytree(run.checkpoint(2), run.file(name))


def _save_and_rotate(keep: int) -> Callable[[RunDir, Recording], None]:
    def act(run: RunDir, recording: Recording) -> None:
        save(run, 6)
        recording.mark("saved")
        rotate(run, keep_newest=keep, keep_steps=())

    return act


def _killed_before_the_flush(run: RunDir, recording: Recording) -> None:
    """A process that was killed right after the rename; the next one is asked for the same step."""
    save(run, 6)
    del recording.operations[_parent_flush(recording, "checkpoint-6")]
    _save_and_rotate(1)(run, recording)


def _discard_damaged(run: RunDir, recording: Recording) -> None:
    recording.mark("saved")
    discard_after(run, 4)


def _begin(run: RunDir, recording: Recording) -> None:
    """A folder that is not there yet."""
    admission = admit(run, Request(run.path / "recipe.toml"))
    journal = durable.open_append(run.file(rundir.EVENTS))
    durable.write_json(run.file(rundir.RUN_INFO), {"format_version": 1})
    save(run, 6)
    recording.mark("saved")
    os.close(journal)
    admission.release()


PHASES = {
    "save, two kept": Phase(_prepare(2, 4), _save_and_rotate(2), 4, 6),
    "save, one kept": Phase(_prepare(2, 4), _save_and_rotate(1), 4, 6),
    "save over leftovers": Phase(_prepare_leftovers, _save_and_rotate(2), 4, 6),
    "one for another": Phase(_prepare(4), _save_and_rotate(1), 4, 6),
    "save, three rotated out": Phase(_prepare(1, 2, 4), _save_and_rotate(1), 4, 6),
    "first save": Phase(_prepare(), _save_and_rotate(2), None, 6),
    "save over a damaged one": Phase(_prepare(2, 4, 6, damaged=6), _save_and_rotate(2), 4, 6, is_damaged=True),
    "discard of a damaged one": Phase(_prepare(2, 4, 6, damaged=6), _discard_damaged, 4, 4, is_damaged=True),
    "first save into a new folder": Phase(lambda _: None, _begin, None, 6),
    "killed, then again": Phase(_prepare(2, 4), _killed_before_the_flush, 4, 6),
}


def record_phase(phase: Phase, folder: Path) -> Recording:
    """The files are small; each of their pieces is a write of its own, as the pieces of a large file are."""
    run = RunDir(folder / "run")
    phase.prepare(run)
    with pytest.MonkeyPatch.context() as patch, record(folder) as recording:
        patch.setattr(durable, "_CHUNK_BYTES", 1)
        phase.act(run, recording)
    return recording


class Recovery:
    """The real recovery on one state after another, in one folder of which only the differences are written."""

    def __init__(self, phase: Phase, folder: Path) -> None:
        self._phase, self._folder = phase, folder
        self._run = RunDir(folder / "run")
        self._shown: Tree = {}
        folder.mkdir()

    def problems(self, marks: frozenset[str], tree: Tree, *, goes_on: bool = False) -> list[str]:
        """What is wrong with one state after the start of the next process, in words."""
        self._show(tree)
        found = self._look(marks)
        if goes_on and not found and self._run.path.exists():
            found = self._go_on()
        return found

    def _show(self, tree: Tree) -> None:
        """Make the folder hold ``tree``. What recovery has left of the last one was not written to, only removed."""
        for name in sorted(self._shown, reverse=True):
            path = self._folder / name
            if name in tree and path.exists():
                continue
            content = self._shown.pop(name)
            if path.is_dir():
                path.rmdir()
            elif content is not None:
                path.unlink(missing_ok=True)
        for name, content in sorted(tree.items()):
            if name not in self._shown and content is None:
                (self._folder / name).mkdir()
            elif content is not None and self._shown.get(name) != content:
                (self._folder / name).write_bytes(content)
        self._shown = dict(tree)

    def _look(self, marks: frozenset[str]) -> list[str]:
        problems: list[str] = []
        if self._run.path.exists():
            sweep(self._run)
        newest = newest_checkpoint(self._run, on_damage=problems.append)
        if self._phase.is_damaged:
            problems.clear()
        step = newest.step if newest else None
        allowed = {self._phase.after} if "saved" in marks else {self._phase.before, self._phase.after}
        if step not in allowed:
            return [*problems, f"the newest checkpoint is {step}, not {allowed}"]
        if newest is not None and any(
            (newest.path / name).read_bytes() != b"".join(chunks) for name, chunks in contents(newest.step)
        ):
            problems.append(f"checkpoint {step} has other bytes")
        return problems

    def _go_on(self) -> list[str]:
        """The same save once more, and the start after it, leave what an undisturbed one does."""
        save(self._run, 6)
        rotate(self._run, keep_newest=1, keep_steps=())
        sweep(self._run)
        names = {entry.name for entry in self._run.path.iterdir()} - {rundir.RUN_INFO, rundir.EVENTS, rundir.LOCK}
        shutil.rmtree(self._folder)
        self._folder.mkdir()
        self._shown = {}
        return [] if names == {"checkpoint-6"} else [f"the next save leaves {sorted(names)}"]


def _parent_flush(recording: Recording, start: str) -> int:
    """The index of the first flush of a folder after a name beginning with ``start`` appeared in it."""
    appeared: Names | None = None
    for index, operation in enumerate(recording.operations):
        if isinstance(operation, Names) and any(
            name.startswith(start) for name, node in operation.changes.items() if node
        ):
            appeared = appeared or operation
        if appeared and operation == Sync(appeared.folder):
            return index
    raise AssertionError(f"{start} never appeared, or its folder was never flushed")


def record_and_recover(name: str, folder: Path) -> tuple[Recording, Recovery]:
    """The recorded phase of that name, and the recovery of its states."""
    (folder / "real").mkdir(parents=True)
    return record_phase(PHASES[name], folder / "real"), Recovery(PHASES[name], folder / "state")


@pytest.mark.parametrize(
    ("limit", "at_least"), [(FEW, 1500), pytest.param(LIMIT, 5000, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_every_state_a_crash_may_leave_has_the_old_or_the_new_checkpoint(
    memory_folder: Path, limit: int, at_least: int
) -> None:
    seen = set[int]()
    for number, name in enumerate(PHASES):
        recording, recovery = record_and_recover(name, memory_folder / str(number))
        bad: Counter[str] = Counter()
        count = 0
        for count, (marks, tree) in enumerate(recording.states(limit=limit), 1):
            bad.update(recovery.problems(marks, tree, goes_on=count % 25 == 0))
            seen.add(hash(frozenset(tree.items())))
        print(f"{name}: {len(recording.operations)} operations, {count} states")
        assert (name, bad) == (name, {})
    print(f"all: {len(seen)} different states")
    assert len(seen) >= at_least


def _without(keep: Callable[[Recording, Operation], bool]) -> Callable[[Recording], list[Operation]]:
    return lambda recording: [operation for operation in recording.operations if keep(recording, operation)]


def _made(recording: Recording, start: str) -> int:
    """The node that was first given a name beginning with ``start``."""
    names = (operation.changes for operation in recording.operations if isinstance(operation, Names))
    return next(node for changes in names for name, node in changes.items() if name.startswith(start) and node)


def _in_place(recording: Recording) -> list[Operation]:
    """The checkpoint's folder has its final name from the start."""
    changed: list[Operation] = []
    for operation in recording.operations:
        if isinstance(operation, Names) and "checkpoint-6" in operation.changes:
            continue
        if isinstance(operation, Names) and any(name.startswith(".checkpoint-6") for name in operation.changes):
            operation = Names(operation.folder, {"checkpoint-6": _made(recording, ".checkpoint-6")})
        changed.append(operation)
    return changed


def _without_flush_after(start: str) -> Callable[[Recording], list[Operation]]:
    """Without the flush of the folder in which a name beginning with ``start`` appeared."""

    def change(recording: Recording) -> list[Operation]:
        index = _parent_flush(recording, start)
        return recording.operations[:index] + recording.operations[index + 1 :]

    return change


def _rotated_first(recording: Recording) -> list[Operation]:
    """The folder of checkpoints is flushed, and the save announced, after the rotation."""
    index = _parent_flush(recording, "checkpoint-6")
    assert isinstance(recording.operations[index + 1], Mark)
    return recording.operations[:index] + recording.operations[index + 2 :] + recording.operations[index : index + 2]


BROKEN: dict[str, Callable[[Recording], list[Operation]]] = {
    "no flush of files": _without(lambda r, op: not (isinstance(op, Sync) and op.node in r.before.files)),
    "no flush of the manifest": _without(lambda r, op: op != Sync(_made(r, rundir.MANIFEST))),
    "no flush of the folder": _without(lambda r, op: op != Sync(_made(r, ".checkpoint-6"))),
    "no flush of the folder above": _without_flush_after("checkpoint-6"),
    "no flush of the trash's name": _without_flush_after(".trash-"),
    "no rename": _in_place,
    "rotation before the flush": _rotated_first,
}


@pytest.mark.some(3)
@pytest.mark.parametrize("name", BROKEN)
def test_a_save_that_leaves_something_out_is_found_out(name: str, memory_folder: Path) -> None:
    recording, recovery = record_and_recover("one for another", memory_folder / name.replace(" ", "-"))
    before = list(recording.operations)
    recording.operations[:] = BROKEN[name](recording)
    assert recording.operations != before
    goes_on = "trash" in name  # what is left for ever does no harm before the next save
    assert any(recovery.problems(marks, tree, goes_on=goes_on) for marks, tree in recording.states(limit=LIMIT))


def test_a_result_is_whole_in_every_state_in_which_the_run_says_it_has_finished(memory_folder: Path) -> None:
    folder = memory_folder / "publish"
    folder.mkdir()
    run = RunDir(folder / "run")
    _prepare(6)(run)
    recipe = Recipe.model_validate({"model": "base", "output_dir": "run", "data": {"path": "rows.jsonl"}})
    with record(folder) as recording:
        publish(run, recipe, 6)
        durable.write_json(run.file(rundir.RUN_INFO), {"format_version": 1, "status": "finished"})
    last = recording.latest()
    results = [name for name in last if name.startswith(f"run/{rundir.MODEL_FOLDER}/")]
    assert len(results) == 4
    ends = Counter[bool]()
    for _, tree in recording.states(limit=LIMIT):
        is_finished = b"finished" in (tree["run/run.json"] or b"")
        ends[is_finished] += 1
        assert all(tree.get(name, b"") == last[name] for name in results if is_finished or name in tree)
    assert ends[True] >= 1
    print(f"publish: {ends.total()} states")


def test_a_change_that_does_not_go_through_os_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="does not hold"), record(tmp_path):
        (tmp_path / "file").write_bytes(b"unseen")
