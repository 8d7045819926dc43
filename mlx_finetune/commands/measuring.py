"""What evaluations say while they work and at their end: a bar, names of files, the page of the run renewed."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:  # imported inside the functions: help must stay cheap (benchmarks/help_cost.py)
    from mlx_finetune.app.eval.measure import Progress
    from mlx_finetune.errors import Problem

_ROWS_TOLD = 5


class Bar:
    """How far it is, on one line of a terminal that is overwritten; elsewhere one line when a kind of work begins."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._work = ""
        self._started, self._first = 0.0, 0

    def __call__(self, progress: "Progress") -> None:
        from mlx_finetune.app.eval.view import progress_line

        if progress.work != self._work:
            self._work, self._started, self._first = progress.work, time.monotonic(), progress.done
            if not self._is_terminal:
                click.echo(progress_line(progress.work, progress.done, progress.total, 0.0), err=True)
        if self._is_terminal:
            done, total = progress.done - self._first, progress.total - self._first
            line = progress_line(progress.work, done, total, time.monotonic() - self._started)
            click.echo(f"\r\x1b[K{line}", err=True, nl=False)

    def clear(self) -> None:
        """Take the line away."""
        if self._is_terminal:
            click.echo("\r\x1b[K", err=True, nl=False)


def row_reporter(clear: Callable[[], None]) -> "Callable[[Problem, str], None]":
    """Tells of the first rows that could not be measured, each once; the report counts them all."""
    from mlx_finetune.app.text import shorten

    seen: set[str] = set()

    def report(problem: "Problem", prompt: str) -> None:
        if problem.where in seen or len(seen) > _ROWS_TOLD:
            return
        seen.add(problem.where)
        clear()
        if len(seen) > _ROWS_TOLD:
            click.echo("more rows could not be measured; the report counts them", err=True)
            return
        click.echo(f"error: {problem.where}: {problem.message}\n  asked: {shorten(prompt)}", err=True)

    return report


def say(text: str) -> None:
    """What a person should know, on stderr."""
    click.echo(text, err=True)


def shown(path: Path) -> str:
    """``path`` as it is named from here."""
    here = Path.cwd().resolve()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def renew_report(folder: Path) -> None:
    """The page of the run with what was measured, where it has one that nobody has edited."""
    from mlx_finetune.commands.report import try_report
    from mlx_finetune.rundir import RunDir

    path, warnings = try_report(RunDir(folder), only_renew=True)
    for line in [f"report renewed: {shown(path)}"] if path else warnings:
        click.echo(line, err=True)
