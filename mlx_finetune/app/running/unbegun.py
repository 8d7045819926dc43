"""Removes the folder of a training that was refused, or stopped, before it had decided anything.

Such a folder holds what the terminal has shown already, and ``mlxft runs`` would list a run that never was. Only a
folder that was not there before is removed, and only while it holds nothing but the log and the locks of the start and
a journal without one: whatever else is in it, it stays as it is. After a crash or a bug it stays too: then its log is
needed.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mlx_finetune.app.running.endings import Ending
from mlx_finetune.errors import RunError
from mlx_finetune.events import RunStarted
from mlx_finetune.journal import read_events
from mlx_finetune.rundir import EVENTS, LOCK, LOG, SUPERVISOR, RunDir, take_lock

#: What a start writes before it decides anything (``train.child``, ``supervise``).
_OF_A_START = frozenset({EVENTS, LOG, LOCK, SUPERVISOR})


@dataclass(frozen=True, slots=True)
class Before:
    """What was there before the start: ``missing`` are the folders that the training has to make, its own first."""

    run: RunDir
    missing: tuple[Path, ...]

    @classmethod
    def look(cls, run: RunDir) -> "Before":
        """At the disk as it is now."""
        missing: list[Path] = []
        for folder in (run.path, *run.path.parents):
            if os.path.lexists(folder):
                break
            missing.append(folder)
        return cls(run, tuple(missing))

    def restore(self, ending: Ending) -> None:
        """Remove the run folder, and those it is in, if this training made them and came to nothing."""
        is_said = ending.kind in ("refused", "stopped") or ending.cause == "failed"
        if not self.missing or not is_said:
            return
        with suppress(OSError, RunError):
            if _remove(self.run):
                for folder in self.missing[1:]:
                    folder.rmdir()  # an error, and the end of it, where something else is in it


def _remove(run: RunDir) -> bool:
    """Remove the folder; False where it holds more, or another process has it. Raises ``OSError``."""
    if not set(os.listdir(run.path)) <= _OF_A_START:
        return False
    lock = take_lock(run.file(LOCK))
    if lock is None:
        return False
    try:
        names = set(os.listdir(run.path))
        has_begun = any(isinstance(record.event, RunStarted) for record in read_events(run.file(EVENTS)))
        if has_begun or not names <= _OF_A_START:
            return False
        for name in names:
            run.file(name).unlink()
        run.path.rmdir()
    finally:
        os.close(lock)
    return True
