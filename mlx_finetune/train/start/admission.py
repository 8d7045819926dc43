"""May this run start here? One run per folder, nothing overwritten, nothing resumed by accident.

The folder's lock is held by the training process until it ends (the kernel frees it, whatever happens). A folder that
holds a run is only touched by ``--resume``, ``--fork`` or ``--extend``.
"""

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mlx_finetune import durable
from mlx_finetune.errors import MlxftError, RunError
from mlx_finetune.hardware.safer import Safer
from mlx_finetune.recipe.asking import talk_command
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.rundir import (
    CORRECTIONS,
    EVENTS,
    LOCK,
    RUN_INFO,
    SUPERVISOR,
    RunDir,
    busy,
    is_run_file,
    lock_holder,
    take_lock,
    task_of,
)
from mlx_finetune.train.checkpoints.commit import Checkpoint, newest_checkpoint, sweep
from mlx_finetune.train.results import read_run_info
from mlx_finetune.train.start.identity import other_run, recipe_differences, recipe_identity


class RefusedError(RunError):
    """A continuation that was refused, or stopped, before it touched anything: the run is as it was."""

    def __init__(self, cause: MlxftError) -> None:
        super().__init__(cause.message, cause.hint)
        self.exit_code = cause.exit_code


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for on the command line. ``extend`` adds that many steps to a run.

    ``restarts`` are those that the supervisor has made so far; ``safer`` stands in the place of what run.json says.
    """

    recipe: Path
    overrides: tuple[str, ...] = ()
    resume: bool = False
    fork: bool = False
    extend: int | None = None
    restarts: tuple[Mapping[str, object], ...] = ()
    safer: Safer | None = None

    @property
    def continues(self) -> bool:
        """True where an existing run is to go on."""
        return self.resume or self.fork or self.extend is not None


#: What run.json says of a run whose process was killed before it could say more.
_ENDED = {"running": "interrupted"}


@dataclass(frozen=True, slots=True)
class Admission:
    """A locked run folder. ``checkpoint`` is where to continue, None for step 0; ``run_info`` that of the old run.

    ``lock`` is the open descriptor that holds the lock; ``release`` or the end of the process frees it.
    """

    run: RunDir
    lock: int
    checkpoint: Checkpoint | None
    run_info: dict[str, object] | None
    damaged: tuple[str, ...]

    def release(self) -> None:
        """Let the next process into this folder."""
        os.close(self.lock)


def admit(run: RunDir, request: Request) -> Admission:
    """Make and lock the folder and decide where to start. Raises ``RunError`` with the way out."""
    if request.continues and not run.path.exists() and not run.path.is_symlink():
        raise _nothing_to_continue(run)
    _make_folder(run.path)
    _refuse_foreign(run)
    lock = _lock(run)
    try:
        return _decide(run, lock, request)
    except BaseException:
        os.close(lock)
        raise


def _decide(run: RunDir, lock: int, request: Request) -> Admission:
    sweep(run)
    if not run.file(RUN_INFO).is_file() and not run.checkpoint_folders():
        if request.continues:
            raise _nothing_to_continue(run)
        cut_journal(run.file(EVENTS), 0)  # of a start that was refused or killed before it decided anything
        return Admission(run, lock, None, None, ())
    damaged: list[str] = []
    info = dict(_read_info(run, damaged))
    if not request.continues:
        status = str(info.get("status"))
        further = "train it further with --extend 100" if status == "finished" else "continue it with --resume"
        raise RunError(  # nobody is at work here: the lock is ours
            f"{run.path} already holds a run ({_ENDED.get(status, status)}, step {info.get('step')})",
            f"{further}, choose another output_dir, or remove it with: mlxft runs rm {run.name}",
        )
    if info.get("status") == "finished" and request.extend is None and not request.fork:
        raise RunError(
            f"the run in {run.path} has finished; there is nothing to resume",
            f"train it further with --extend 100, or try it: {talk_command(task_of(run), run.name)}",
        )
    checkpoint = newest_checkpoint(run, on_damage=damaged.append)
    folders = run.checkpoint_folders()
    if checkpoint is None and folders:
        raise RunError(
            f"none of the {len(folders)} checkpoints in {run.path} is whole, {folders[0].name} to {folders[-1].name}",
            "start again with another output_dir; nothing was removed here",
        )
    return Admission(run, lock, checkpoint, info, tuple(damaged))


def _nothing_to_continue(run: RunDir) -> RunError:
    hint = "start it: the same command without --resume, --fork or --extend"
    return RunError(f"{run.path} holds no run to continue", hint)


def _read_info(run: RunDir, damaged: list[str]) -> Mapping[str, object]:
    """run.json, or the copy in the newest checkpoint that has one where it was damaged, which is noted in words."""
    try:
        return read_run_info(run)
    except RunError as error:
        for path in reversed(run.checkpoints()):
            with suppress(RunError):
                info = read_run_info(RunDir(path))
                damaged.append(f"{error.message}; taken from {path.name}")
                return info
        raise


def check_output(recipe: Recipe, base: Path) -> None:
    """Refuse to write where the training reads from, before the folder is made. Raises ``RunError``.

    A run below a model's folder is fine: none of its files has a name of the model's.
    """
    run = (base / recipe.run_folder).resolve()
    for key, name in (("model", recipe.model), ("adapter", recipe.adapter)):
        read = (base / Path(name).expanduser()).resolve()
        if name and read.exists() and (run == read or (key == "model" and run in read.parents)):
            raise RunError(
                f"output_dir = {recipe.output_dir!r} is where the {key} {name!r} is read from",
                "choose another output_dir; what is trained from is never written over",
            )


def check_recipe(admission: Admission, recipe: Recipe, request: Request) -> None:
    """Refuse to continue with another recipe, before the run's journal is touched. Raises ``RunError``.

    Data, model and tokenizer are compared once they are loaded (``run.py``).
    """
    saved = (admission.run_info or {}).get("identity")
    if request.fork or not isinstance(saved, dict):
        return
    changed = recipe_differences(saved, recipe_identity(recipe))
    if changed:
        raise other_run(changed)


def _make_folder(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise RunError(f"{path} is a link to a folder that is not there")
    try:
        durable.make_folder(path)
    except FileExistsError as error:
        raise RunError(f"{path} is a file; output_dir must name a folder") from error
    except OSError as error:
        raise RunError(f"{path} cannot be made: {error.strerror}", "choose another output_dir") from error
    if not os.access(path, os.W_OK):
        raise RunError(f"{path} cannot be written to", "choose another output_dir")


def _refuse_foreign(run: RunDir) -> None:
    """Refuse a folder that holds no run, but files that one would write over. Raises ``RunError``."""
    if run.file(RUN_INFO).is_file() or run.checkpoints() or _is_journal(run.file(EVENTS)):
        return
    found = [entry.name for entry in run.path.iterdir() if is_run_file(entry.name) and entry.name[0] != "."]
    names = sorted(name for name in found if name != CORRECTIONS)  # no run writes over those
    if names:
        raise RunError(
            f"{run.path} holds no run, but {', '.join(names[:5])}, which a run would write over",
            "choose another output_dir: a folder that is not there yet, or an empty one",
        )


def _is_journal(path: Path) -> bool:
    """True for a journal of ours, also an empty one; and for a link, which is refused where it is opened."""
    if path.is_symlink() or not path.is_file():
        return path.is_symlink()
    with path.open("rb") as file:
        lines = file.read(1 << 16).splitlines()
    return not lines or any(line.startswith(b'{"kind": ') for line in lines)


def _lock(run: RunDir) -> int:
    """Take the exclusive lock; the descriptor that holds it. Raises ``RunError`` naming the process that is at work.

    A supervisor between two training processes has the folder too, unless it is the one that started us.
    """
    descriptor = take_lock(run.file(LOCK))
    if descriptor is None:
        raise busy(run)
    if lock_holder(run.file(SUPERVISOR)) not in (None, os.getppid()):
        refusal = busy(run)
        os.close(descriptor)
        raise refusal
    return descriptor


@dataclass(frozen=True, slots=True)
class CutFile:
    """An append-only file that was shortened to ``num_bytes``, and what was behind that.

    ``sha256`` is of what is left, "" where there is no such file.
    """

    path: Path
    num_bytes: int
    rest: bytes
    sha256: str

    def restore(self) -> None:
        """Put back what was cut off; what was appended since is dropped."""
        if self.path.is_file():
            descriptor = durable.open_append(self.path)
            try:
                durable.cut(self.path, descriptor, self.num_bytes)
                durable.append(self.path, descriptor, self.rest)
            finally:
                os.close(descriptor)


def cut_journal(path: Path, num_bytes: int) -> CutFile:
    """Shorten an append-only file to what it was at the checkpoint; one that is shorter keeps its length.

    Raises ``RunError`` where it is a link.
    """
    if not os.path.lexists(path):
        return CutFile(path, 0, b"", "")
    with os.fdopen(durable.open_update(path), "r+b") as file:
        kept = file.read(num_bytes)
        rest = file.read()
        durable.cut(path, file.fileno(), len(kept))
    return CutFile(path, len(kept), rest, hashlib.sha256(kept).hexdigest())
