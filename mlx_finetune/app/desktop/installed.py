"""Are the launchers in a folder still good: there, executable, up to date, not quarantined, and their app where it was?

Reads the files and asks ``xattr`` about each; changes nothing. ``mlxft launchers check`` and ``mlxft doctor`` show it.
"""

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_finetune.app.desktop.launcher import NAMES, Target, is_ours, launcher_path, launcher_text
from mlx_finetune.hardware.device import Runner, run_program

QUARANTINE = "com.apple.quarantine"
_XATTR = "/usr/bin/xattr"


@dataclass(frozen=True, slots=True)
class LauncherFinding:
    """One thing wrong with one launcher. ``kind`` is missing, foreign, moved, stale, not-executable or quarantined."""

    name: str
    path: Path
    kind: str
    message: str
    command: str


def check(
    folder: Path, target: Target | None = None, *, read_quarantine: Callable[[Path], str | None] | None = None
) -> Sequence[LauncherFinding]:
    """What is wrong with the launchers in ``folder``, each with the command that mends it; empty where none is ours.

    ``target`` is what new ones would call; without it one that calls another copy of the app is as good as any.
    ``read_quarantine`` gives the value of the attribute of a file, None where it has none.
    """
    paths = {verb: launcher_path(folder, verb) for verb in NAMES}
    if not any(is_ours(path) for path in paths.values()):
        return []
    read = read_quarantine or quarantine
    found: list[LauncherFinding] = []
    for verb, path in paths.items():
        found += _check_one(verb, path, target, read)
    return found


def _check_one(
    verb: str, path: Path, target: Target | None, read_quarantine: Callable[[Path], str | None]
) -> Sequence[LauncherFinding]:
    rebuild = f"mlxft launchers install {shlex.quote(str(path.parent))}"
    name, file = NAMES[verb], shlex.quote(str(path))

    def finding(kind: str, message: str, command: str = rebuild) -> LauncherFinding:
        return LauncherFinding(name, path, kind, message, command)

    if not os.path.lexists(path):
        return [finding("missing", f"the launcher {path} is missing")]
    if not is_ours(path):
        away = f"mv {file} {shlex.quote(str(path.with_name(name + ' (mine).command')))} && {rebuild}"
        return [finding("foreign", f"{path} is not one of our launchers, and is never written over", away)]
    found: list[LauncherFinding] = []
    text = path.read_bytes()
    called = _called(text)
    gone = [one for one in (called.folder, called.app) if not one.exists()] if called is not None else []
    if gone:
        found.append(finding("moved", f"the launcher {path} calls {gone[0]}, which is not there any more"))
    elif called is None or text != launcher_text(verb, called):
        found.append(finding("stale", f"the launcher {path} was made by another version, or edited"))
    elif target is not None and called.app != target.app:
        found.append(finding("stale", f"the launcher {path} calls another copy of the app: {called.app}"))
    if not os.access(path, os.X_OK):
        message = f"the launcher {path} may not be executed, so a double-click is refused"
        found.append(finding("not-executable", message, f"chmod 755 {file}"))
    if read_quarantine(path) is not None:
        message = f"the launcher {path} is quarantined, so macOS asks or refuses before it opens"
        found.append(finding("quarantined", message, f"xattr -d {QUARANTINE} {file}"))
    return found


def _called(text: bytes) -> Target | None:
    """What a launcher calls, as it says itself; None where it does not."""
    lines = os.fsdecode(text)
    head, command = lines.partition("\nunset ")[0], lines.rpartition("\nended ")[0].rpartition("\n")[2]
    try:
        words = shlex.split(head, comments=True)
        arguments = shlex.split(command)
    except ValueError:
        return None
    values = {key: value for key, _, value in (word.partition("=") for word in words)}
    if not values.get("root") or not values.get("app") or "launch" not in arguments:
        return None
    return Target(Path(values["root"]), Path(values["app"]), tuple(arguments[1 : arguments.index("launch")]))


def quarantine(path: Path, run: Runner = run_program) -> str | None:
    """The quarantine attribute of a file, from ``xattr``; None where it has none, and where there is no xattr."""
    return run([_XATTR, "-p", QUARANTINE, str(path)])
