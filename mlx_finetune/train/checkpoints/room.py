"""Room for one more checkpoint, looked for before each save, so that a full disk is met before anything is written.

Where there is too little, leftovers and the checkpoints that rotation is about to remove go first; the newest one, the
best one and those of save_at never do.
"""

import errno
from collections.abc import Collection, Generator
from contextlib import contextmanager
from pathlib import Path

from mlx_finetune import durable
from mlx_finetune.errors import NoSpaceError, StorageError
from mlx_finetune.hardware.planning.disk import SPARE_BYTES, free_bytes
from mlx_finetune.rundir import RUN_INFO, TRAINER_STATE, RunDir
from mlx_finetune.train.checkpoints.commit import discard, removable, sweep
from mlx_finetune.units import format_bytes

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
#: What a disk says that is broken, was taken away, or does not let us write (any more).
_REFUSED = frozenset({errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENXIO, errno.ENODEV, errno.ESTALE})


@contextmanager
def refused_writes(run: RunDir) -> Generator[None]:
    """Inside, what the disk refuses in the run folder is raised as ``StorageError``: one sentence and the way out."""
    try:
        yield
    except OSError as error:
        place = Path(str(error.filename))
        if run.path != place and run.path not in place.parents:
            raise  # elsewhere: the model, the data, a cache
        if error.errno in _FULL:
            raise no_space(run, f"{format_bytes(free_bytes(run.path))} are free") from error
        if error.errno in _REFUSED:
            what = f"{run.path} cannot be written to ({error.strerror})"
            raise StorageError(f"{what}; {_what_is_safe(run)}", "mend that, then go on with --resume") from error
        raise


def make_room(run: RunDir, num_bytes: int, *, keep_newest: int, keep_steps: Collection[int]) -> None:
    """Make sure that ``num_bytes`` and a little more are free. Raises ``NoSpaceError`` where that cannot be had.

    ``keep_newest`` counts the checkpoint that is about to be written.
    """
    needed = num_bytes + SPARE_BYTES
    if free_bytes(run.path) >= needed:
        return
    sweep(run)
    keep_steps = {*keep_steps, *_saved_best(run)}
    for path in removable(run, keep_newest=max(1, keep_newest - 1), keep_steps=keep_steps):
        if free_bytes(run.path) >= needed:
            return
        discard(path)
    free = free_bytes(run.path)
    if free < needed:
        what = f"a checkpoint needs {format_bytes(num_bytes)} and {format_bytes(SPARE_BYTES)} to spare"
        raise no_space(run, f"{what}, {format_bytes(free)} are free")


def _saved_best(run: RunDir) -> list[int]:
    """The best step of those saved: that of ``keep_steps`` may be the one which is not saved yet."""
    newest = run.checkpoints()[-1:]
    best = [durable.read_object_if_any(path / TRAINER_STATE).get("best_step") for path in newest]
    return [step for step in best if isinstance(step, int)]


def no_space(run: RunDir, what: str) -> NoSpaceError:
    """The one sentence for a full disk: where it is, what is safe, what to do."""
    has_begun = run.file(RUN_INFO).is_file() or run.checkpoints()
    hint = "make room, then go on with --resume" if has_begun else "make room, then start it again"
    return NoSpaceError(f"the disk that holds {run.path} is full ({what}); {_what_is_safe(run)}", hint)


def _what_is_safe(run: RunDir) -> str:
    checkpoints = run.checkpoints()
    return f"everything up to {checkpoints[-1].name} is safe" if checkpoints else "no checkpoint had been saved"
