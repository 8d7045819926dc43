"""A text in the editor of whoever sits at the terminal: $VISUAL, else $EDITOR, else one that is there.

The text lies in a file of its own that nobody else may read. It is removed afterwards, unless the editor failed after
something was written: then its place is said.
"""

import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from mlx_finetune.commands.interrupts import interrupts_ignored
from mlx_finetune.errors import UsageError

_USUAL = ("nano", "vim", "vi")
_HINT = "for instance: export EDITOR=nano"


def edit_text(text: str) -> str:
    """What a person leaves of ``text``. Raises ``UsageError`` where there is no editor, or it fails."""
    command = _editor()
    try:
        folder = Path(tempfile.mkdtemp(prefix="mlxft-"))
    except OSError as error:
        raise UsageError(f"there is no place for a file to edit: {error.strerror}") from None
    path, is_kept = folder / "text.md", False
    try:
        content = f"{text}\n".encode() if text else b""
        path.write_bytes(content)
        code = _run([*command, str(path)])
        written = path.read_bytes() if path.is_file() else b""
        is_kept = written != content and (code != 0 or not _is_utf8(written))
        kept = f"what you wrote is in {path}" if is_kept else ""
        if code:
            raise UsageError(f"the editor {command[0]} ended with code {code}: nothing was changed", kept)
        if is_kept:
            raise UsageError("what the editor wrote is not UTF-8: nothing was changed", kept)
        return written.decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise UsageError(f"the editor {command[0]} cannot be used: {error.strerror}", _HINT) from None
    finally:
        if not is_kept:
            shutil.rmtree(folder, ignore_errors=True)


def _editor() -> list[str]:
    """The editor as words of a command line, the first a program that is there. Raises ``UsageError``."""
    for variable in ("VISUAL", "EDITOR"):
        wanted = os.environ.get(variable, "").strip()
        if not wanted:
            continue
        try:
            words = shlex.split(wanted)
        except ValueError:
            words = []
        if not words or shutil.which(words[0]) is None:
            raise UsageError(f"${variable} is {wanted!r}, and there is no such program", _HINT)
        return words
    usual = next((name for name in _USUAL if shutil.which(name)), None)
    if usual is None:
        raise UsageError("no editor is named: $VISUAL and $EDITOR are not set", _HINT)
    return [usual]


def _run(command: list[str]) -> int:
    """Run ``command`` in this terminal; its exit code, below 0 for a signal. Ctrl-C is the editor's meanwhile."""
    with interrupts_ignored():
        return subprocess.run(command, check=False).returncode


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
