"""The folders we keep things in: room, rights, and whether macOS or a cloud looks after them.

macOS asks a person before a program may look into Desktop, Documents, Downloads or another disk, and in the night
nobody answers (MACOS.md 3.1). Folders are looked into, never written to.
"""

import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlx_finetune.app.doctor.finding import Finding, Typed
from mlx_finetune.rundir import folder_bytes
from mlx_finetune.units import format_bytes

GB = 10**9
MIN_FREE_BYTES = 2 * GB
LOW_FREE_BYTES = 10 * GB
_SAME_BYTES = 10**8

Guard = Literal["", "private", "icloud", "cloud", "volume"]

_PRIVATE = ("Desktop", "Documents", "Downloads")
#: Below the home folder -> who takes files away from there when the disk is full.
_CLOUDS: tuple[tuple[str, Guard], ...] = (("Library/Mobile Documents", "icloud"), ("Library/CloudStorage", "cloud"))


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder we keep things in. ``num_bytes`` is 0 where it does not exist yet; it can be made then if writable.

    ``refused`` is what the system says when it is looked into, "" where it lets us. ``guard``: who watches over it.
    ``nearest`` is itself or the folder above it that exists, which is the user's own where ``is_own``.
    """

    name: str
    path: str
    exists: bool
    num_bytes: int
    free_bytes: int
    is_writable: bool
    refused: str = ""
    guard: Guard = ""
    nearest: str = ""
    is_own: bool = True


def look_at(name: str, path: Path, *, home: Path | None = None, is_counted: bool = True) -> Folder:
    """Size of ``path`` and the room around it; for a folder that does not exist, of the nearest parent that does.

    ``home`` is given on a Mac, where some folders are guarded; ``is_counted`` False leaves the size out.
    """
    standing, refused = _nearest(path)
    exists = standing == path and not refused
    with_size = exists and is_counted
    try:
        free, owner = shutil.disk_usage(standing).free, os.stat(standing).st_uid
    except OSError:
        free, owner = 0, -1
    return Folder(
        name,
        str(path),
        exists,
        folder_bytes(path) if with_size else 0,
        free,
        os.access(standing, os.W_OK | os.X_OK),
        refused,
        guard_of(path, home) if home is not None else "",
        str(standing),
        owner in (os.getuid(), -1),
    )


def _nearest(path: Path) -> tuple[Path, str]:
    """``path`` or the nearest folder above it that can be seen, and what the system says when it is looked into."""
    refused = ""
    for standing in (path, *path.parents):
        try:
            with os.scandir(standing) as entries:
                next(entries, None)
            return standing, refused
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            refused = refused or (error.strerror or type(error).__name__)
            return standing, refused
    return Path(path.anchor or "."), refused


def guard_of(path: Path, home: Path, *, real: Callable[[str], str] = os.path.realpath) -> Guard:
    """Who watches over ``path`` on a Mac; names are compared as its disks do, whatever their case."""
    place, own = Path(real(str(path)).casefold()), Path(real(str(home)).casefold())
    for inner, guard in _CLOUDS:
        if place.is_relative_to(own / inner.casefold()):
            return guard
    if any(place.is_relative_to(own / name.casefold()) for name in _PRIVATE):
        return "private"
    return "volume" if place.is_relative_to("/volumes") else ""


# --- what is wrong ---


def place_problems(folders: Sequence[Folder], typed: Typed) -> Iterator[Finding]:
    """Folders that cannot be used, have little room, or are watched over."""
    short: dict[int, list[Folder]] = {}  # of one volume, as far as the room tells
    for folder in folders:
        if folder.refused:
            yield Finding("blocker", *_refused(folder, typed))
        elif not folder.is_writable:
            what = "written to" if folder.exists else f"made, {folder.nearest} is not writable"
            yield Finding("blocker", f"{folder.path} cannot be {what}", _made_writable(folder, typed))
        elif folder.name != "project" and folder.free_bytes < LOW_FREE_BYTES:
            short.setdefault(folder.free_bytes // _SAME_BYTES, []).append(folder)
    for together in short.values():
        yield _short_of_room(together, typed)
    guarded = sorted((one for one in folders if one.guard), key=lambda one: one.name != "project")
    guarded = [folder for folder in guarded if folder.name in ("project", "runs")]
    if guarded:
        yield _guarded(guarded[0], typed)


def _short_of_room(folders: Sequence[Folder], typed: Typed) -> Finding:
    free = min(folder.free_bytes for folder in folders)
    where = ", ".join(f"{folder.name} in {folder.path}" for folder in folders)
    what = "runs" if all(folder.name == "runs" for folder in folders) else "models"
    return Finding(
        "blocker" if free < MIN_FREE_BYTES else "warning",
        f"only {format_bytes(free)} free for {where}; {typed.mlxft} {what} rm NAME makes room",
        f"{typed.mlxft} {what} list",
    )


def _made_writable(folder: Folder, typed: Typed) -> str:
    if folder.name == "models":
        return f"MLXFT_CACHE=FOLDER {typed.mlxft} doctor"
    if folder.name == "hub cache":
        return f"HF_HUB_CACHE=FOLDER {typed.mlxft} doctor"
    if not folder.is_own:
        return _elsewhere(typed)
    return f"chmod u+rwx {typed.path(folder.nearest or folder.path)}"


def _elsewhere(typed: Typed) -> str:
    """The command that begins in a folder of the user's own."""
    return "mkdir -p ~/mlxft-runs && " + typed.command("cd ~/mlxft-runs && mlxft doctor")


def _refused(folder: Folder, typed: Typed) -> tuple[str, str]:
    """macOS says "Operation not permitted" where it has not let Terminal in; elsewhere it is a matter of rights."""
    message = f"{folder.path} cannot be looked into: {folder.refused}"
    if folder.refused == os.strerror(1):
        pane = "Privacy_AllFiles" if folder.guard in ("icloud", "cloud") else "Privacy_FilesAndFolders"
        way = f"open 'x-apple.systempreferences:com.apple.preference.security?{pane}'"
        return f"{message}; let Terminal into it", way
    return message, _made_writable(folder, typed)


def _guarded(folder: Folder, typed: Typed) -> Finding:
    what = "the project" if folder.name == "project" else "the folder for runs"
    why = {
        "private": "macOS asks before programs may use it, and in the night nobody answers",
        "icloud": "iCloud may take files away from there that a run still needs",
        "cloud": "a cloud's program may take files away from there that a run still needs",
        "volume": "a disk that sleeps, is full or is pulled out ends a run",
        "": "",
    }[folder.guard]
    message = f"{what} lies in {folder.path}: {why}"
    if folder.name != "project":
        return Finding("warning", message, _elsewhere(typed))
    name = shlex.quote(Path(folder.path).name)
    return Finding("warning", message, f"mv {shlex.quote(folder.path)} ~/ && cd ~/{name} && ./launchers/mlxft doctor")
