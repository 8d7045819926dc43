"""A night of several trainings as a folder under logs/: what is in it, what became of each, the summary.

``night.json`` is replaced whole after every change; who holds ``.lock`` is the process at work.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from mlx_finetune import durable
from mlx_finetune.app.desktop.training.starts import Start
from mlx_finetune.errors import RunError
from mlx_finetune.events import RunFailed, RunFinished, RunStopped
from mlx_finetune.journal import read_events
from mlx_finetune.rundir import EVENTS, RunDir, lock_holder
from mlx_finetune.units import format_seconds

PREFIX = "overnight-"
STATE, LOG, SUMMARY, LOCK, SEEN = "night.json", "log.txt", "summary.txt", ".lock", ".seen"

ItemState = Literal["waiting", "running", "done", "left"]


@dataclass(frozen=True, slots=True)
class Item:
    """One training of a night. Times are seconds since 1970; ``error`` is the last thing it complained about."""

    recipe: str
    run: str
    overrides: tuple[str, ...] = ()
    is_resumed: bool = False
    state: ItemState = "waiting"
    code: int | None = None
    began: float | None = None
    ended: float | None = None
    error: str = ""

    @property
    def start(self) -> Start:
        """How it is started."""
        return Start(Path(self.recipe), RunDir(Path(self.run)), self.overrides, self.is_resumed)


@dataclass(frozen=True, slots=True)
class Night:
    """All of them, in order. ``ended`` is None while the night lasts, or where it broke off."""

    items: tuple[Item, ...]
    began: float
    ended: float | None = None

    def changed(self, index: int, **fields: object) -> "Night":
        """The same night with one item changed."""
        item = replace(self.items[index], **fields)  # pyright: ignore[reportArgumentType]
        return replace(self, items=(*self.items[:index], item, *self.items[index + 1 :]))

    @property
    def current(self) -> Item | None:
        """The one at work."""
        return next((item for item in self.items if item.state == "running"), None)

    @property
    def has_failed(self) -> bool:
        """Did one of them end in another way than finished or stopped by a person?"""
        return any(item.code not in (None, 0, 129, 130, 143) for item in self.items)

    @property
    def remaining(self) -> Sequence[Item]:
        """Those that were not brought to an end."""
        return [item for item in self.items if item.state in ("waiting", "running", "left")]


def new_folder(logs: Path, now: float) -> Path:
    """A folder for a night that begins now; it is made. Raises ``RunError``."""
    name = PREFIX + time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
    path = logs / name
    number = 2
    while path.exists():
        path, number = logs / f"{name}-{number}", number + 1
    try:
        durable.make_folder(path)
    except OSError as error:
        raise RunError(f"{path} cannot be made: {error.strerror}", "mlxft doctor") from error
    return path


def items_of(starts: Sequence[Start]) -> tuple[Item, ...]:
    """The trainings as they wait."""
    return tuple(Item(str(one.recipe), str(one.run.path), one.overrides, one.is_resumed) for one in starts)


def write_night(folder: Path, night: Night) -> None:
    """Keep the state. Raises ``OSError``."""
    durable.write_json(folder / STATE, asdict(night))


def read_night(folder: Path) -> Night | None:
    """The state that was kept; None where there is none, or none that can be read."""
    try:
        fields = json.loads((folder / STATE).read_bytes())
        return Night(tuple(map(_read_item, fields["items"])), fields["began"], fields["ended"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read_item(fields: dict[str, Any]) -> Item:
    return replace(Item(**fields), overrides=tuple(fields["overrides"]))


def latest_night(logs: Path) -> Path | None:
    """The folder of the last night that has begun, by its name."""
    found = sorted(path for path in logs.glob(f"{PREFIX}*") if (path / STATE).is_file()) if logs.is_dir() else []
    return found[-1] if found else None


def holder(folder: Path) -> int | None:
    """The process that is at work in a night's folder, None where nobody is."""
    return lock_holder(folder / LOCK)


def night_at_work(logs: Path) -> Path | None:
    """The folder of the night that lasts, None where none does."""
    folder = latest_night(logs)
    return folder if folder is not None and holder(folder) is not None else None


def summary_lines(night: Night) -> Sequence[str]:
    """What became of each training, in words, with its losses."""
    last = night.ended or max((item.ended or item.began or night.began for item in night.items), default=night.began)
    finished = sum(item.code == 0 for item in night.items)
    span = f"{_clock(night.began)} to {_clock(last)}, {format_seconds(last - night.began)}"
    lines = [f"Overnight, {span}: {finished} of {len(night.items)} finished"]
    for index, item in enumerate(night.items, start=1):
        lines.append(f"  {index}  {item.start.name}: {_became(item)}")
    return lines


def _clock(seconds: float) -> str:
    return time.strftime("%d.%m. %H:%M", time.localtime(seconds))


def _became(item: Item) -> str:
    if item.state == "waiting":
        return "was not started"
    if item.state == "left" and item.began is None:
        return "was not started, as the night was stopped"
    taken = f" in {format_seconds(item.ended - item.began)}" if item.ended and item.began else ""
    match _outcome(item):
        case RunFinished() as finished if item.code == 0:
            return f"finished at step {finished.step}{taken}{_losses(finished)}"
        case RunStopped() as stopped:
            return f'stopped after step {stopped.step}; "Train" goes on with it'
        case RunFailed() as failed:
            return f"failed: {failed.message}"
        case _ if item.state == "running":
            return "was at work when the night broke off"
        case _:
            return f"failed (code {item.code}){f': {item.error}' if item.error else ''}"


def _losses(finished: RunFinished) -> str:
    if finished.first_loss is None or finished.best_loss is None:
        return ""
    return f"; validation loss {finished.first_loss:.3f} -> {finished.best_loss:.3f}"


def _outcome(item: Item) -> object:
    """The last word of the run's journal that is from this night."""
    if item.began is None:
        return None
    outcome: object = None
    for record in read_events(RunDir(Path(item.run)).file(EVENTS)):
        if record.time >= item.began and isinstance(record.event, RunFinished | RunStopped | RunFailed):
            outcome = cast(object, record.event)
    return outcome
