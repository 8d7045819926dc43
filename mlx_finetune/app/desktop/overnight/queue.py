"""The process that works through a night, one training after another. It belongs to no window; one that fails does not
stop the next."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_finetune import durable
from mlx_finetune.app.desktop.asking import one_line
from mlx_finetune.app.desktop.overnight.night import LOCK, LOG, SUMMARY, Night, read_night, summary_lines, write_night
from mlx_finetune.errors import RunError
from mlx_finetune.rundir import take_lock

_TAIL_BYTES = 20_000


@dataclass(frozen=True, slots=True)
class Worker:
    """What the work needs from outside. ``train`` runs ``mlxft`` with these arguments to its end, its words in the log.

    ``is_stopped``: the whole night was asked to end; the training at work has been asked already. ``notify`` shows a
    title and a text to whoever is there, if it can. ``keep_awake`` holds off sleep until this process ends.
    """

    train: Callable[[Sequence[str]], int]
    is_stopped: Callable[[], bool]
    notify: Callable[[str, str], None]
    keep_awake: Callable[[], None]
    now: Callable[[], float]


def work(folder: Path, worker: Worker) -> int:
    """Train everything in ``folder`` that waits; 1 where one of them failed. Raises ``RunError``."""
    lock = take_lock(folder / LOCK)
    if lock is None:
        raise RunError(f"another process works through {folder}", "see it with: mlxft launch monitor")
    try:
        night = read_night(folder)
        if night is None:
            raise RunError(f"{folder} holds no night that can be read")
        worker.keep_awake()
        night = _train_all(folder, night, worker)
        lines = summary_lines(night)
        durable.write_text(folder / SUMMARY, "\n".join(lines) + "\n")
    finally:
        os.close(lock)
    finished = sum(item.code == 0 for item in night.items)
    worker.notify("mlxft: the night is over", f"{finished} of {len(night.items)} trainings finished")
    return int(night.has_failed)


def _train_all(folder: Path, night: Night, worker: Worker) -> Night:
    for index, item in enumerate(night.items):
        if worker.is_stopped():
            night = night.changed(index, state="left")
            continue
        night = night.changed(index, state="running", began=worker.now())
        write_night(folder, night)
        size = _size(folder / LOG)
        code = worker.train(["train", *item.start.arguments])
        state = "left" if worker.is_stopped() and code else "done"
        error = _last_error(folder / LOG, size)
        night = night.changed(index, state=state, code=code, ended=worker.now(), error=error)
        write_night(folder, night)
    night = Night(night.items, night.began, worker.now())
    write_night(folder, night)
    return night


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _last_error(log: Path, start: int) -> str:
    """The last ``error:`` that was written into the log from byte ``start`` on, without the word."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(start, _size(log) - _TAIL_BYTES))
        lines = file.read().decode("utf-8", "replace").splitlines()
    found = next((line for line in reversed(lines) if line.startswith("error: ")), "")
    return one_line(found.removeprefix("error: "), 200)
