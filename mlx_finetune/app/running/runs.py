"""The runs in a folder: which are there, whether one is at work, how large they are, and removing one for good."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from mlx_finetune import durable, rundir
from mlx_finetune.errors import RunError
from mlx_finetune.rundir import RunDir


def is_running(run: RunDir) -> bool:
    """True where a training process is at work in the folder, or its supervisor is about to start it again."""
    return rundir.running_process(run) is not None


def run_bytes(run: RunDir) -> int:
    """Bytes of the files in a run folder; links are not followed."""
    return rundir.folder_bytes(run.path)


def foreign_entries(run: RunDir) -> Sequence[str]:
    """Names in the folder that no run writes, sorted."""
    names = [entry.name for entry in run.path.iterdir()]
    return sorted(name for name in names if not rundir.is_run_file(name))


def check_removable(run: RunDir) -> None:
    """Raise ``RunError`` where the folder is a link, is being written to, or holds what no run wrote."""
    if run.path.is_symlink():
        raise RunError(f"{run.path} is a link to {run.path.resolve()}", f"remove the link itself: rm {run.path}")
    if is_running(run):
        raise RunError(f"a training is at work in {run.path}", f"stop it first: mlxft stop {run.name}")
    foreign = foreign_entries(run)
    if foreign:
        shown = ", ".join(foreign[:5]) + (f" and {len(foreign) - 5} more" if len(foreign) > 5 else "")
        raise RunError(f"{run.path} also holds what no run wrote: {shown}", "move that away, or remove it by hand")


def find_leftover(name: str, *, base: Path) -> RunDir | None:
    """The folder in which nothing but the corrections of a run that was removed is left; None where there is none."""
    for path in (Path(name).expanduser(), base / name, base / "adapters" / name):
        if path.is_dir() and [entry.name for entry in path.iterdir()] == [rundir.CORRECTIONS]:
            return RunDir(path)
    return None


def count_corrections(run: RunDir) -> int:
    """Answers that were put right in chats with this run. Raises ``RunError`` where they cannot be read."""
    try:
        with run.file(rundir.CORRECTIONS).open("rb") as file:
            return sum(1 for line in file if line.strip())
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise RunError(f"{run.file(rundir.CORRECTIONS)} cannot be read: {error.strerror}") from error


def remove_run(run: RunDir, *, with_corrections: bool = False) -> None:
    """Remove the folder and everything in it; links inside are removed, not followed. Raises ``RunError``.

    It is renamed first, so that a removal that is cut short leaves no half run under its name. What a person wrote
    stays: the corrections are put back into an otherwise empty folder, where the next run may begin, unless
    ``with_corrections`` says otherwise.
    """
    check_removable(run)
    path = run.path.absolute()
    trash = path.with_name(f".trash-{path.name}-{os.getpid()}")
    try:
        path.rename(trash)
        kept = trash / rundir.CORRECTIONS
        if kept.is_file() and not with_corrections:
            durable.make_folder(path)
            content = kept.read_bytes()  # added, not moved: a chat may have begun a new file by now
            durable.append_line(path / rundir.CORRECTIONS, content if content.endswith(b"\n") else content + b"\n")
        shutil.rmtree(trash)
    except OSError as error:
        raise RunError(f"{error.filename or path} cannot be removed: {error.strerror}") from error
