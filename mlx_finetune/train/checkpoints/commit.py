"""Save, verify and find checkpoints: folders that are committed by one rename, so each is whole or not there.

Order of a commit: temporary folder -> each file written, flushed, read back -> manifest with sizes and hashes -> folder
flushed -> renamed -> parent flushed; older ones are removed only after that, by rename and then deletion. The newest
folder whose files fit its manifest wins; modification times are never looked at.
"""

import json
import os
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from mlx_finetune import durable, rundir
from mlx_finetune.durable import Chunk
from mlx_finetune.errors import RunError
from mlx_finetune.rundir import RunDir, checkpoint_step

_LEFTOVER = re.compile(r"\.(trash-)?checkpoint-\d+\..*|\..+\.\d+\.part")

#: The files of a checkpoint: plain names, and each file's bytes in pieces.
Contents = Iterable[tuple[str, Iterable[Chunk]]]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A committed checkpoint whose files have the sizes and hashes of its manifest."""

    path: Path
    step: int
    num_bytes: int


def save_checkpoint(run: RunDir, step: int, contents: Contents, *, parent_step: int | None) -> Checkpoint:
    """Commit ``checkpoint-STEP``. A whole one of that step is left as it is, a damaged one replaced.

    Raises ``OSError`` where the disk refuses something: then nothing is left of it, and no other one was touched.
    """
    target = run.checkpoint(step)
    if os.path.lexists(target):
        existing = read_checkpoint(target)
        if existing is not None:
            durable.sync_folder(run.path)  # its process may have been killed between the rename and the flush
            return existing
        discard(target)
    part = run.path / f".checkpoint-{step}.{os.getpid()}.part"
    durable.remove_tree(part)
    part.mkdir()
    try:
        files = {name: durable.write_new(part / name, chunks) for name, chunks in contents}
        manifest = {
            "format_version": rundir.FORMAT_VERSION,
            "step": step,
            "parent_step": parent_step,
            "files": {name: {"bytes": file.num_bytes, "sha256": file.sha256} for name, file in files.items()},
        }
        durable.write_new(part / rundir.MANIFEST, [durable.encode_json(manifest)])
        durable.sync_folder(part)
        os.rename(part, target)
        durable.sync_folder(run.path)
    except BaseException:
        durable.remove_tree(part)
        raise
    return Checkpoint(target, step, sum(file.num_bytes for file in files.values()))


def read_checkpoint(path: Path) -> Checkpoint | None:
    """The checkpoint at ``path`` if its manifest is of that step and every file has its size and SHA-256, else None."""
    try:
        manifest = json.loads((path / rundir.MANIFEST).read_bytes())
        files, step = manifest["files"], manifest["step"]
        if step != checkpoint_step(path) or not files:
            return None
        for name, entry in files.items():
            file = path / name
            if Path(name).name != name or file.stat().st_size != entry["bytes"]:
                return None
            if durable.hash_file(file) != entry["sha256"]:
                return None
        return Checkpoint(path, step, sum(int(entry["bytes"]) for entry in files.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def newest_checkpoint(run: RunDir, *, on_damage: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that verifies; each damaged one on the way is named to ``on_damage``."""
    for path in reversed(run.checkpoint_folders()):
        checkpoint = read_checkpoint(path)
        if checkpoint is not None:
            return checkpoint
        what = "its files do not match its manifest" if (path / rundir.MANIFEST).is_file() else "it has no manifest"
        on_damage(f"{path.name} is damaged ({what}); trying the one before it")
    return None


def rotate(run: RunDir, *, keep_newest: int, keep_steps: Collection[int]) -> None:
    """Remove all but the ``keep_newest`` newest checkpoints and those of ``keep_steps``."""
    for path in removable(run, keep_newest=keep_newest, keep_steps=keep_steps):
        discard(path)


def removable(run: RunDir, *, keep_newest: int, keep_steps: Collection[int]) -> list[Path]:
    """The checkpoints that ``rotate`` removes, oldest first."""
    paths = run.checkpoints()
    kept = {run.checkpoint(step) for step in keep_steps} | set(paths[max(len(paths) - keep_newest, 0) :])
    return [path for path in paths if path not in kept]


def discard_after(run: RunDir, step: int) -> None:
    """Remove the checkpoints later than ``step``: a run that goes on from there passed them over as damaged.

    Left in place they would count as the newest ones when older, good ones are rotated out.
    """
    for path in run.checkpoint_folders():
        if checkpoint_step(path) > step:
            discard(path)


def discard(path: Path) -> None:
    """Remove a folder of a run: renamed first, so that a half-removed checkpoint is never seen as one.

    The new name is flushed before anything goes, or a power cut could bring back the old one with half of its files.
    """
    trash = path.with_name(f".trash-{path.name}.{os.getpid()}")
    durable.remove_tree(trash)
    os.rename(path, trash)
    durable.sync_folder(path.parent)
    durable.remove_tree(trash)


def sweep(run: RunDir) -> None:
    """Remove what a killed process left behind: temporary and trash folders. Called with the run's lock held."""
    if not run.is_run() and not run.checkpoints():
        return  # somebody's folder that is about to hold a run for the first time
    for folder in (run.path, run.file(rundir.MODEL_FOLDER)):
        if folder.is_dir() and not folder.is_symlink():
            for entry in folder.iterdir():
                if _LEFTOVER.fullmatch(entry.name):
                    durable.remove_tree(entry)


def read_trainer_state(checkpoint: Path) -> dict[str, object]:
    """The contents of trainer_state.json. Raises ``RunError`` where it is not one JSON object."""
    try:
        value = json.loads((checkpoint / rundir.TRAINER_STATE).read_bytes())
    except (OSError, ValueError) as error:
        raise RunError(f"{checkpoint.name}: trainer_state.json cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise RunError(f"{checkpoint.name}: trainer_state.json is not an object")
    return value
