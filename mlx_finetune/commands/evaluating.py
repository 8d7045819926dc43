"""What the commands that evaluate share: load by name, name files as from here, and renew the run's report."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:  # imported inside the functions: help must stay cheap (benchmarks/help_cost.py)
    from mlx_finetune.app.eval.subject import Subject


def open_for_eval(name: str) -> "Subject":
    """The run or model ``name``, with what it says while it is loaded."""
    import os

    from mlx_finetune.commands.opening import LoadingTalk
    from mlx_finetune.hardware import blas

    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # see commands/opening.py
    blas.prepare()  # before mlx is imported
    from mlx_finetune.app.eval.subject import open_subject

    talk = LoadingTalk()
    try:
        return open_subject(name, base=Path.cwd(), report=talk)
    finally:
        talk.clear()


def shown_path(path: Path) -> str:
    """``path`` as it is named from here."""
    here = Path.cwd().resolve()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def renew_report(folder: Path) -> None:
    """The page of the run with this evaluation, where it has one that nobody has edited."""
    from mlx_finetune.commands.report import try_report
    from mlx_finetune.rundir import RunDir

    path, warnings = try_report(RunDir(folder), only_renew=True)
    for line in [f"report renewed: {shown_path(path)}"] if path else warnings:
        click.echo(line, err=True)
