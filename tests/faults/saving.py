"""One save and its rotation, disturbed at one operation: what must hold afterwards."""

import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from faults.trials import Ended, Operation, Server, Verdict, applicable, done_to

from mlx_finetune import rundir
from mlx_finetune.rundir import RunDir
from mlx_finetune.train.checkpoints.commit import newest_checkpoint, read_checkpoint, rotate, save_checkpoint, sweep

Tree = Mapping[str, bytes]


def contents(step: int) -> Iterator[tuple[str, list[bytes]]]:
    """The files of an adapter's checkpoint, made from ``step``; the optimizer's of step 6 has 1.5 MB."""
    yield rundir.ADAPTER_CONFIG, [b'{"r": 4, "step": %d}\n' % step]
    yield rundir.PEFT_WEIGHTS, [b"peft %d " % step * 900]
    yield rundir.MLX_WEIGHTS, [b"mlx %d " % step * 900]
    yield rundir.OPTIMIZER, [bytes([step, piece]) * (1 << 18 if step == 6 else 256) for piece in range(3)]
    yield "tokenizer.json", [b'{"version": "1.0"}']
    yield rundir.TRAINER_STATE, [b'{"step": %d}\n' % step]


def save_and_rotate(root: Path, step: int) -> None:
    """What a training does at a checkpoint, with two kept."""
    run = RunDir(root)
    save_checkpoint(run, step, contents(step), parent_step=step - 2)
    rotate(run, keep_newest=2, keep_steps=())


def read_tree(folder: Path) -> dict[str, bytes]:
    """Name and bytes of every file under ``folder``."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class SaveTrials:
    """A folder with checkpoints 2 and 4, and what the save of step 6 does to it when nothing disturbs it."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self._folder = server, folder
        self._template = folder / "template"
        self._template.mkdir()
        for step in (2, 4):
            save_and_rotate(self._template, step)
        self.before = read_tree(self._template)
        self.root = self.new_root()
        self.undisturbed = server.run(self.root)
        self.operations = self.undisturbed.operations
        self.after = read_tree(self.root)
        self.rotation = next(i for i, op in enumerate(self.operations, 1) if ".trash-" in op.path + op.second)

    def new_root(self) -> Path:
        """A fresh copy of the folder."""
        return Path(shutil.copytree(self._template, self._folder / f"run-{self.server.count}"))

    def pairs(self) -> Iterator[tuple[int, str]]:
        """Every operation, by its number from 1, with every action that can happen to it."""
        for index, operation in enumerate(self.operations, 1):
            for action in applicable(operation):
                yield index, action

    def run(self, index: int, action: str) -> Verdict:
        """Disturb one operation and look at what is left; then save again as the next process does."""
        root = self.new_root()
        ended = self.server.run(root, index=index, action=action)
        problems = [] if done_to(ended) == [action] else [f"the shim did {done_to(ended)}"]
        problems += _check_end(ended, action, in_rotation=index >= self.rotation)
        may_rotate = ended.code == 0 or index >= self.rotation
        is_intact = not (damage := self._check_checkpoints(root, may_rotate=may_rotate))
        problems += damage + self._check_leftovers(root, ended, index)
        sweep(RunDir(root))
        save_and_rotate(root, 6)
        goes_on = read_tree(root) == self.after
        problems += [] if goes_on else ["the same save does not lead to the same folder"]
        shutil.rmtree(root)
        return Verdict(self.operations[index - 1].name, action, is_intact, goes_on, problems)

    def _check_checkpoints(self, root: Path, *, may_rotate: bool) -> list[str]:
        """4 is as it was, 2 too unless its rotation had begun, and the newest one is 4 or a right 6."""
        tree, run, problems = read_tree(root), RunDir(root), list[str]()
        if _of(tree, 4) != _of(self.before, 4) or read_checkpoint(run.checkpoint(4)) is None:
            problems.append("checkpoint 4 was touched")
        if _of(tree, 2) != _of(self.before, 2) and (run.checkpoint(2).exists() or not may_rotate):
            problems.append("checkpoint 2 was touched")
        newest = newest_checkpoint(run, on_damage=problems.append)
        if newest is None or newest.step not in (4, 6):
            problems.append(f"the newest checkpoint is {newest}")
        elif newest.step == 6 and _of(tree, 6) != _of(self.after, 6):
            problems.append("checkpoint 6 has other bytes")
        if may_rotate and (newest is None or newest.step != 6):
            problems.append("something was rotated out before the new checkpoint was there")
        return problems

    def _check_leftovers(self, root: Path, ended: Ended, index: int) -> list[str]:
        """A save that came back left nothing behind; a rotation at most its trash, which the next start sweeps."""
        if ended.code < 0:
            return []
        allowed = (".trash-",) if index >= self.rotation else ()
        left = [entry.name for entry in root.iterdir() if entry.name.startswith(".")]
        return [f"{name} was left behind" for name in left if not name.startswith(allowed or "/")]


def _of(tree: Tree, step: int) -> dict[str, bytes]:
    return {name: content for name, content in tree.items() if name.startswith(f"checkpoint-{step}/")}


def _check_end(ended: Ended, action: str, *, in_rotation: bool) -> list[str]:
    """Killed where it was; whole where the system only asked to go on; else one of the errors that are explained."""
    if action in ("kill", "torn"):
        return [] if ended.code == -signal.SIGKILL else ["it was not killed"]
    if ended.code == 0 and (in_rotation or action in ("short", "eintr")):
        return []
    if action in ("eio", "enospc") and {"OSError", "MlxftError"} & set(ended.error):
        return []
    return [f"{action}: it ended with {ended.code} {list(ended.error)[:1]} {ended.message}"]


def changed_names(operations: Sequence[Operation]) -> tuple[set[str], set[str]]:
    """Names that the operations made and removed, by their order; a name that came and went is in neither."""
    made, gone = set[str](), set[str]()

    def make(name: str) -> None:
        gone.discard(name) if name in gone else made.add(name)

    def remove(name: str) -> None:
        made.discard(name) if name in made else gone.add(name)

    for operation in operations:
        if operation.result < 0:
            continue
        if operation.name in ("open", "mkdir"):
            make(operation.path)
        elif operation.name in ("unlink", "rmdir"):
            remove(operation.path)
        elif operation.name == "rename":
            remove(operation.path)
            make(operation.second)
    return made, gone
