"""Save, verify and find checkpoints: folders that are committed by one rename, so each is whole or not there.

Order of a commit: temporary folder -> files written and flushed -> read back and hashed -> manifest -> folder flushed
-> renamed -> parent flushed; older ones are removed only after that, by rename and then deletion. The newest folder
whose manifest fits its files wins; modification times are never looked at.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_finetune import rundir
from mlx_finetune.errors import RunError
from mlx_finetune.rundir import RunDir

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A committed checkpoint whose files have the sizes and hashes of its manifest."""

    path: Path
    step: int
    num_bytes: int


def save_checkpoint(
    run: RunDir, step: int, write_files: Callable[[Path], None], *, parent_step: int | None
) -> Checkpoint:
    """Commit ``checkpoint-STEP``; ``write_files`` fills the folder it is given. One of that step is left as it is."""
    target = run.checkpoint(step)
    if (target / rundir.MANIFEST).is_file():
        existing = read_checkpoint(target)
        if existing is not None:
            return existing
        discard(target)
    part = run.path / f".checkpoint-{step}.{os.getpid()}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        write_files(part)
        files = {name: _sync_and_hash(part / name) for name in _file_names(part)}
        manifest = {"format_version": rundir.FORMAT_VERSION, "step": step, "parent_step": parent_step, "files": files}
        rundir.write_json(part / rundir.MANIFEST, manifest)
        for folder in sorted({(part / name).parent for name in files}):
            rundir.sync_folder(folder)
        os.rename(part, target)
        rundir.sync_folder(run.path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return Checkpoint(target, step, sum(int(entry["bytes"]) for entry in files.values()))


def read_checkpoint(path: Path) -> Checkpoint | None:
    """The checkpoint at ``path`` if every file has the size and SHA-256 of the manifest, else None."""
    try:
        manifest = json.loads((path / rundir.MANIFEST).read_bytes())
        files, step = manifest["files"], int(manifest["step"])
        for name, entry in files.items():
            if (path / name).stat().st_size != entry["bytes"] or hash_file(path / name) != entry["sha256"]:
                return None
        return Checkpoint(path, step, sum(int(entry["bytes"]) for entry in files.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def newest_checkpoint(run: RunDir, *, on_damage: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that verifies; each damaged one on the way is named to ``on_damage``."""
    for path in reversed(run.checkpoints()):
        checkpoint = read_checkpoint(path)
        if checkpoint is not None:
            return checkpoint
        on_damage(f"{path.name} is damaged (its files do not match its manifest); trying the one before it")
    return None


def rotate(run: RunDir, *, keep_newest: int, keep_steps: Collection[int]) -> None:
    """Remove all but the ``keep_newest`` newest checkpoints and those of ``keep_steps``."""
    paths = run.checkpoints()
    kept = {run.checkpoint(step) for step in keep_steps} | set(paths[max(len(paths) - keep_newest, 0) :])
    for path in paths:
        if path not in kept:
            discard(path)


def discard_after(run: RunDir, step: int) -> None:
    """Remove the checkpoints later than ``step``: a run that goes on from there passed them over as damaged.

    Left in place they would count as the newest ones when older, good ones are rotated out.
    """
    for path in run.checkpoints():
        if checkpoint_step(path) > step:
            discard(path)


def checkpoint_step(path: Path) -> int:
    """The step in the name of a checkpoint folder."""
    return int(path.name.rpartition("-")[2])


def discard(path: Path) -> None:
    """Remove a folder of a run: renamed first, so that a half-removed checkpoint is never seen as one."""
    trash = path.with_name(f".trash-{path.name}.{os.getpid()}")
    shutil.rmtree(trash, ignore_errors=True)
    os.rename(path, trash)
    shutil.rmtree(trash, ignore_errors=True)


def sweep(run: RunDir) -> None:
    """Remove what a killed process left behind: temporary and trash folders. Called with the run's lock held."""
    for entry in run.path.iterdir():
        if entry.name.startswith((".trash-", ".checkpoint-")):
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name.startswith(".") and entry.name.endswith(".part"):
            entry.unlink(missing_ok=True)


def read_trainer_state(checkpoint: Path) -> dict[str, object]:
    """The contents of trainer_state.json. Raises ``RunError`` where it is not one JSON object."""
    try:
        value = json.loads((checkpoint / rundir.TRAINER_STATE).read_bytes())
    except (OSError, ValueError) as error:
        raise RunError(f"{checkpoint.name}: trainer_state.json cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise RunError(f"{checkpoint.name}: trainer_state.json is not an object")
    return value


def _file_names(folder: Path) -> Sequence[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _sync_and_hash(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        rundir.sync_file(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": hash_file(path)}


def hash_file(path: Path) -> str:
    """SHA-256 of a file in hex, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
