"""The launchers as files: their names, the words in them, and writing and removing them. Never imports mlx.

A launcher that was made on this Mac opens without a dialog, while a downloaded one is quarantined and may have lost its
executable bit (MACOS.md 3.1). Each stands alone, with absolute paths, and bears a marker in its second line: what does
not bear it is never written over and never removed.
"""

import os
import re
import shlex
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlx_finetune import durable
from mlx_finetune.errors import RunError, UsageError

#: Verb of ``mlxft launch`` -> the launcher's name in Finder.
NAMES = {
    "setup": "Setup",
    "train": "Train",
    "overnight": "Train overnight",
    "monitor": "Monitor",
    "test": "Test",
    "chat": "Chat",
    "evaluate": "Evaluate",
    "stop": "Stop safely",
}
ENDING = ".command"
MARKER = re.compile(rb'#!/bin/bash\n# mlxft launcher v(\d+) - generated; rebuild with "mlxft launchers install"\n')
_VERSION = 1

#: What every launcher begins with; ``launchers/window`` of the repository is the same text (tests compare them).
WINDOW = r"""unset PYTHONHOME PYTHONPATH PYTHONSTARTUP VIRTUAL_ENV CONDA_PREFIX
export PYTHONNOUSERSITE=1 PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 PYTHONUTF8=1 MLXFT_LAUNCHER=1
PATH=${MLXFT_TEST_PATH:-}${MLXFT_TEST_PATH:+:}/usr/bin:/bin:/usr/sbin:/sbin
export PATH
trap : INT
keep_open() { # keep_open CODE SENTENCE: say it, wait for Return in a window, and leave with CODE
  printf '\n%s\n' "$2"
  if [ -t 0 ] && [ -z "${MLXFT_NO_PAUSE:-}" ]; then
    printf 'Press Return to close this window. '
    read -r _
  fi
  exit "$1"
}
ended() { # ended CODE: what the exit code means, in a sentence
  case $1 in
    0) keep_open 0 'Done.' ;;
    64) keep_open 64 'This Mac has an Intel processor. MLX needs an Apple silicon Mac (M1 or newer).' ;;
    129 | 130 | 143) keep_open "$1" 'It was interrupted. What was saved is kept; double-click again to go on.' ;;
    134) keep_open 134 'It was aborted (code 134), perhaps by the GPU watchdog. Nothing is lost: double-click again.' ;;
    137) keep_open 137 'It was killed (code 137), often as memory ran out. Close programs, double-click again.' ;;
    3) keep_open 3 'Something does not fit or has to be mended first (code 3); it stands above.' ;;
    4) keep_open 4 'A gate of the evaluation was missed (code 4); the figures stand above.' ;;
  esac
  if [ -d logs ]; then log=" There is a log in $PWD/logs."; else log=''; fi
  keep_open "$1" "It stopped with code $1; the reason stands above.$log"
}
"""
_BODY = r"""if [ "$(uname)" = Darwin ] || [ -n "${MLXFT_TEST_PATH:-}" ]; then
  [ "$(sysctl -n hw.optional.arm64 2>/dev/null)" = 1 ] || ended 64
  if [ "$(sysctl -n sysctl.proc_translated 2>/dev/null)" = 1 ] && [ -z "${MLXFT_NATIVE:-}" ]; then
    export MLXFT_NATIVE=1
    exec arch -arm64 /bin/bash "$0" "$@"
  fi
fi
[ -x "$app" ] || keep_open 66 "The app was moved or is not set up. Expected: $app
Where it is now, double-click Setup in its folder launchers, or type: ./launchers/mlxft launchers install"
cd "$root" || keep_open 66 "The folder of your recipes and runs was moved or cannot be opened. Expected: $root"
"""


@dataclass(frozen=True, slots=True)
class Target:
    """What launchers call. ``folder`` is where recipes/ and adapters/ are; ``app`` an executable, absolute.

    ``arguments`` stand between ``app`` and the subcommand.
    """

    folder: Path
    app: Path
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """What became of one launcher."""

    path: Path
    what: Literal["written", "unchanged", "foreign", "removed"]


def find_target(here: Path, *, package: Path, prefix: Path, python: Path) -> Target:
    """What launchers made now should call: the checkout's own script where its environment runs, else this Python.

    The folder is ``here`` where recipes or runs are in it, else the checkout, else ``~/mlxft``.
    """
    checkout = package.parent
    script = checkout / "launchers" / "mlxft"
    is_checkout = script.is_file()
    has_work = (here / "adapters").is_dir() or (here / "recipes").is_dir()
    folder = here if has_work else checkout if is_checkout else Path.home() / "mlxft"
    own = checkout / ".venv"
    if is_checkout and prefix == own and not own.is_symlink():  # setup would replace a link to another checkout's
        return Target(folder.absolute(), script)
    return Target(folder.absolute(), python, ("-m", "mlx_finetune"))


def launcher_text(verb: str, target: Target) -> bytes:
    """The whole launcher. Raises ``UsageError`` for a path with a NUL, which no shell can hold."""
    app, folder = os.fsencode(target.app), os.fsencode(target.folder)
    if b"\0" in app + folder:
        raise UsageError("a path with a NUL character cannot stand in a launcher", "move the app")
    command = ['"$app"', *(shlex.quote(one) for one in target.arguments), "launch", verb, '"$@"']
    head = f'#!/bin/bash\n# mlxft launcher v{_VERSION} - generated; rebuild with "mlxft launchers install"\nset -u\n'
    end = f"printf '\\033]0;mlxft: {NAMES[verb]}\\007'\n{' '.join(command)}\nended $?\n"
    paths = b"root=" + _quote(folder) + b"\napp=" + _quote(app) + b"\n"
    return head.encode() + paths + (WINDOW + _BODY + end).encode()


def _quote(octets: bytes) -> bytes:
    """``shlex.quote`` for a file name that may not be text; always in quotes."""
    return b"'" + octets.replace(b"'", b"'\"'\"'") + b"'"


def launcher_path(folder: Path, verb: str) -> Path:
    """Where the launcher of ``verb`` is."""
    return folder / (NAMES[verb] + ENDING)


def is_ours(path: Path) -> bool:
    """Does the regular file ``path`` bear our marker? A link never does."""
    if path.is_symlink() or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return MARKER.match(file.read(200)) is not None
    except OSError:
        return False


def install(folder: Path, target: Target) -> Sequence[Done]:
    """Write every launcher into ``folder``, which is made where it is missing, and the folder they work in.

    Each is whole or not there, with mode 0755 before it gets its name. A file of the same name that is not ours stays.
    Raises ``RunError`` with the way out where the folder cannot be written to.
    """
    done: list[Done] = []
    with _explaining(folder):
        durable.make_folder(folder)
        durable.make_folder(target.folder)
        for verb in NAMES:
            path, text = launcher_path(folder, verb), launcher_text(verb, target)
            if os.path.lexists(path) and not is_ours(path):
                done.append(Done(path, "foreign"))
            elif path.is_file() and path.read_bytes() == text and os.access(path, os.X_OK):
                done.append(Done(path, "unchanged"))
            else:
                _write(path, text)
                done.append(Done(path, "written"))
    return done


def _write(path: Path, text: bytes) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    try:
        durable.write_new(part, [text])
        part.chmod(0o755)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    durable.sync_folder(path.parent)


def remove(folder: Path) -> Sequence[Done]:
    """Remove the launchers in ``folder`` that bear our marker; foreign files of those names stay. Raises as above."""
    done: list[Done] = []
    with _explaining(folder):
        for verb in NAMES:
            path = launcher_path(folder, verb)
            if is_ours(path):
                path.unlink()
                done.append(Done(path, "removed"))
            elif os.path.lexists(path):
                done.append(Done(path, "foreign"))
    return done


@contextmanager
def _explaining(folder: Path) -> Generator[None]:
    """Turns what the system refuses into a sentence; macOS protects the Desktop from programs nobody has allowed."""
    try:
        yield
    except OSError as error:
        hint = f"name another folder: mlxft launchers install {shlex.quote(str(Path.home() / 'Applications'))}"
        if isinstance(error, PermissionError):
            hint = f"allow it in System Settings > Privacy & Security > Files and Folders > Terminal, or {hint}"
        raise RunError(f"{error.filename or folder}: {error.strerror}", hint) from error
