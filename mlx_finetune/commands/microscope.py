"""``mlxft microscope``: the loss of every token of a few rows, under the base and under what was trained."""

import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:  # imported inside the functions: help must stay cheap (benchmarks/help_cost.py)
    from mlx_finetune.app.microscope import Found
    from mlx_finetune.dataset.token_losses import Microscope
    from mlx_finetune.rundir import RunDir

AUTO = "auto"
_PIPE_WIDTH = 100


@click.command()
@click.argument("name", metavar="RUN")
@click.option(
    "--rows",
    metavar="LINES",
    help="Validation rows by their line in the file, such as 3,17; auto takes a few that are short or typical.",
)
@click.option("--data", metavar="FILE", help="Rows of this file in the place of the run's validation rows.")
@click.option("--json", "as_json", is_flag=True, help="Print every token with its losses as JSON.")
def command(name: str, rows: str | None, data: str | None, as_json: bool) -> None:
    """Show what RUN learned, what was known before and what is still wrong, token by token.

    Measured at the end of every training for a few validation rows, and here for others. The last rows are kept in the
    run folder (microscope.json) and shown again until the adapter is another.
    """
    microscope, kept = None, None
    wanted = None if rows is None and data is None else (_lines(AUTO if rows is None else rows), data or "")
    run = _run(name)
    before = None if run is None else _kept(run)
    if before is not None and wanted in (None, _asked(before)):
        microscope = before
    else:
        stale = None if run is None or before is not None else _stale(run)
        lines, file = wanted or stale or ((), "")
        found = _measured(name, lines, file)
        microscope, kept = found.microscope, found.kept
    if as_json:
        from mlx_finetune.monitor.microscope import microscope_json

        click.echo(json.dumps(microscope_json(microscope)))
        return
    _print(microscope)
    if kept is not None:
        click.echo(f"kept in {kept}", err=True)
    click.echo(f"next: mlxft eval {shlex.quote(name)}", err=True)


def _lines(text: str) -> tuple[int, ...]:
    """``3,17`` as numbers; none for auto. Raises ``UsageError``."""
    from mlx_finetune.errors import UsageError

    parts = [] if text == AUTO else [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[1-9]\d{0,8}", part) for part in parts):
        raise UsageError(f"--rows {shlex.quote(text[:60])} names no lines", "write line numbers such as 3,17")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _run(name: str) -> "RunDir | None":
    from mlx_finetune.errors import RunError
    from mlx_finetune.rundir import find_run

    try:
        return find_run(name, base=Path.cwd())
    except RunError:
        return None  # a checkpoint, an adapter or a slip: loading says which


def _kept(run: "RunDir") -> "Microscope | None":
    """What was measured before of the weights that are there now. It needs no model, so it is shown at once."""
    from mlx_finetune.dataset.token_losses import hash_result, read_microscope

    kept = read_microscope(run)
    return kept if kept is not None and kept.measured.adapter_sha256 == hash_result(run) else None


def _asked(microscope: "Microscope") -> tuple[tuple[int, ...], str]:
    """The lines and the file that were asked for."""
    return _lines(microscope.measured.chosen or AUTO), microscope.measured.data


def _stale(run: "RunDir") -> tuple[tuple[int, ...], str] | None:
    """The rows of what was measured of other weights, to be measured again; said, because it replaces what is kept."""
    from mlx_finetune.dataset.token_losses import read_microscope

    kept = read_microscope(run)
    if kept is None:
        return None
    click.echo("note: the kept figures are of other weights than the run has now: measured again", err=True)
    return _asked(kept)


def _measured(name: str, lines: tuple[int, ...], data: str) -> "Found":
    from mlx_finetune.commands.opening import LoadingTalk
    from mlx_finetune.hardware import blas

    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # see commands/opening.py
    blas.prepare()  # before mlx is imported
    from mlx_finetune.app.microscope import measure

    talk = LoadingTalk()
    try:
        return measure(name, lines, data, base=Path.cwd(), report=talk)
    finally:
        talk.clear()


def _print(microscope: "Microscope") -> None:
    """The heat view on stdout: colours in a terminal that has them, marks elsewhere."""
    from rich.console import Console

    from mlx_finetune.monitor.microscope import render_text

    console = Console(highlight=False, markup=False, soft_wrap=True)
    in_colour = console.color_system is not None and not console.no_color
    width = shutil.get_terminal_size((_PIPE_WIDTH, 24)).columns if sys.stdout.isatty() else _PIPE_WIDTH
    for line in render_text(microscope, width, in_colour=in_colour):
        console.print(line)
