"""The window a launcher has opened, as the dialogues use it: asking, running commands in it, leaving work to others."""

import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from mlx_finetune.app.desktop.desk import Cancelled, Desk, Ran
from mlx_finetune.commands.interrupts import interrupts_ignored
from mlx_finetune.errors import RunError

MLXFT = (sys.executable, "-m", "mlx_finetune")


def make_desk(environment: Mapping[str, str]) -> Desk:
    """What a dialogue in this window touches. Dialogs need ``osascript`` and a login at the screen."""
    is_remote = "SSH_CONNECTION" in environment or "SSH_TTY" in environment
    can_ask = sys.stdin.isatty() and sys.stderr.isatty()
    return Desk(
        folder=Path.cwd(),
        mlxft=run_here,
        read_mlxft=lambda arguments: _read([*MLXFT, *arguments]),
        start=start_alone,
        program=run_program,
        say=say,
        ask=ask_line,
        has_dialogs=can_ask and not is_remote and shutil.which("osascript") is not None,
        can_ask=can_ask,
        now=time.time,
        sleep=time.sleep,
    )


def say(text: str) -> None:
    """Lines on stderr; in a terminal they end between words, and what follows an indented line is indented too."""
    for line in text.split("\n"):
        columns = shutil.get_terminal_size((80, 24)).columns
        if not sys.stderr.isatty() or len(line) <= columns:
            click.echo(line, err=True)
            continue
        indent = " " * (len(line) - len(line.lstrip()))
        whole = textwrap.TextWrapper(columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        for part in whole.wrap(line):
            click.echo(part, err=True)


def run_here(arguments: Sequence[str]) -> int:
    """Run ``mlxft ARGUMENTS`` in this window; Ctrl-C is for it alone. The exit code, 128 + N for a signal."""
    with interrupts_ignored():
        code = subprocess.Popen([*MLXFT, *arguments]).wait()
    return code if code >= 0 else 128 - code


def _read(command: Sequence[str]) -> Ran:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    return Ran(done.returncode, done.stdout, done.stderr)


def run_program(command: Sequence[str]) -> Ran | None:
    """One of the Mac's own programs, by its name on PATH; None where it is missing. Dialogs may stay open for hours."""
    try:
        return _read(command)
    except (OSError, ValueError):  # ValueError: a NUL in an argument
        return None


def start_alone(arguments: Sequence[str], log: Path) -> int:
    """Start ``mlxft ARGUMENTS`` in a session of its own, what it says added to ``log``; its process id."""
    try:
        with log.open("ab") as file:
            started = subprocess.Popen(
                [*MLXFT, *arguments], stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )
    except OSError as error:
        raise RunError(f"{error.filename or log}: {error.strerror}", "mlxft doctor") from error
    started.returncode = 0  # nobody here waits for it
    return started.pid


def ask_line(prompt: str) -> str:
    """Show ``prompt`` and read a line, without its end. Raises ``Cancelled`` at Ctrl-C and Ctrl-D."""
    click.echo(prompt, err=True, nl=False)
    try:
        line = sys.stdin.readline()
    except KeyboardInterrupt:
        line = ""
    except UnicodeDecodeError:
        return "\ufffd"
    if not line:
        click.echo(err=True)
        raise Cancelled
    return line.removesuffix("\n")
