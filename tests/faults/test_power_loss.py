"""Power loss at any point of a save, a rotation and their like: every state the disk may be left in still has a run."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults.model_fs import Names, Recording, Sync, Tree, record

from mlx_finetune import durable, rundir
from mlx_finetune.rundir import RunDir
from mlx_finetune.train.checkpoints.commit import discard_after, newest_checkpoint, rotate, save_checkpoint, sweep

LIMIT = 200  # states for each operation, where there are more


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


PHASES = {
    "save, two kept": Phase(_prepare(2, 4), _save_and_rotate(2), 4, 6),
    "save, one kept": Phase(_prepare(2, 4), _save_and_rotate(1), 4, 6),
    "first save": Phase(_prepare(), _save_and_rotate(2), None, 6),
    "save over a damaged one": Phase(_prepare(2, 4, 6, damaged=6), _save_and_rotate(2), 4, 6, is_damaged=True),
    "discard of a damaged one": Phase(_prepare(2, 4, 6, damaged=6), _discard_damaged, 4, 4, is_damaged=True),
    "killed, then again": Phase(_prepare(2, 4), _killed_before_the_flush, 4, 6),
}


def record_phase(phase: Phase, folder: Path) -> Recording:
    run = RunDir(folder / "run")
    phase.prepare(run)
    with record(folder) as recording:
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
        """The same save once more leaves what an undisturbed one does."""
        save(self._run, 6)
        rotate(self._run, keep_newest=1, keep_steps=())
        names = sorted(entry.name for entry in self._run.path.iterdir())
        shutil.rmtree(self._folder)
        self._folder.mkdir()
        self._shown = {}
        return [] if set(names) <= {"checkpoint-6", rundir.RUN_INFO} else [f"the next save leaves {names}"]


def _parent_flush(recording: Recording, name: str) -> int:
    """The index of the flush of the folder in which ``name`` appeared, right after that."""
    for index, operation in enumerate(recording.operations):
        if isinstance(operation, Names) and operation.changes.get(name) is not None:
            return next(
                i
                for i, later in enumerate(recording.operations)
                if i > index and isinstance(later, Sync) and later.node == operation.folder
            )
    raise AssertionError(f"{name} never appeared")


@pytest.mark.parametrize("name", PHASES)
def test_every_state_a_crash_may_leave_has_the_old_or_the_new_checkpoint(name: str, memory_folder: Path) -> None:
    phase = PHASES[name]
    folder = memory_folder / name.replace(" ", "-")
    (folder / "real").mkdir(parents=True)
    recording = record_phase(phase, folder / "real")
    recovery = Recovery(phase, folder / "state")
    bad: Counter[str] = Counter()
    count = 0
    for count, (marks, tree) in enumerate(recording.states(limit=LIMIT), 1):
        bad.update(recovery.problems(marks, tree, goes_on=count % 10 == 0))
    print(f"{name}: {len(recording.operations)} operations, {count} states")
    assert bad == {}
