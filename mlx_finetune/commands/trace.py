"""``mlxft trace``: what changed inside a model, checkpoint by checkpoint; the answers on stdout."""

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:  # imported inside the functions: help must stay cheap (benchmarks/help_cost.py)
    from mlx_finetune.app.trace.tables import Traced

INTERRUPTED = 130


@click.command()
@click.argument("name", metavar="RUN")
@click.option("--probes", metavar="FILE", help="Questions with answers in the place of the run's held-out rows.")
@click.option(
    "--category", metavar="COLUMN", help="A result for each value of this column; the recipe's, else `category`."
)
@click.option(
    "--per-category", type=click.IntRange(1, 10_000), default=24, show_default=True, metavar="N", help="Most probes."
)
@click.option(
    "--answer-tokens", type=click.IntRange(1, 4096), default=16, show_default=True, metavar="N", help="Longest sample."
)
@click.option("--svd", is_flag=True, help="Dense SVDs too (minutes): matrices without factors, intruder directions.")
@click.option("--export", type=click.Path(path_type=Path), metavar="FOLDER", help="Only write the updates there.")
@click.option("--dense", is_flag=True, help="With --export: whole updates (out, in) instead of factors.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def command(
    name: str,
    probes: str | None,
    category: str | None,
    per_category: int,
    answer_tokens: int,
    svd: bool,
    export: Path | None,
    dense: bool,
    as_json: bool,
) -> int:
    """Reload every checkpoint of RUN, ask it held-out questions, and say when each kind was learned.

    Then hidden states, logit lens and the updates of the weights, layer by layer. Everything is kept in RUN/trace/ as
    CSV and shown in the report. Ctrl-C keeps what was measured, and the same command goes on.

    A row of --probes: {"prompt": "Is it red?", "completion": "yes", "wrong": ["no"], "category": "colour"}
    """
    check_options(click.get_current_context().params)
    if export is not None:
        _export(name, export, dense=dense, as_json=as_json)
        return 0
    from mlx_finetune.commands.opening import LoadingTalk
    from mlx_finetune.hardware import blas

    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # see commands/opening.py
    blas.prepare()  # before mlx is imported
    from mlx_finetune.app.trace.run import Asked, trace_run

    talk = LoadingTalk()
    asked = Asked(probes, category, per_category, answer_tokens, svd)
    try:
        traced = trace_run(name, asked, base=Path.cwd(), report=talk)
    except KeyboardInterrupt:
        talk.clear()
        click.echo("interrupted; what was measured is kept, and the same command goes on", err=True)
        return INTERRUPTED
    finally:
        talk.clear()
    _print(name, traced, as_json=as_json)
    return 0


def check_options(given: Mapping[str, Any]) -> None:
    """Refuse what can be seen before a model is loaded. Raises ``UsageError`` or ``RunError``."""
    from mlx_finetune.errors import UsageError
    from mlx_finetune.rundir import check_folder

    if given["dense"] and given["export"] is None:
        raise UsageError("--dense belongs to --export FOLDER", "add --export FOLDER, or leave --dense out")
    if given["export"] is not None:
        check_folder(given["export"], "--export")


def _print(name: str, traced: "Traced", *, as_json: bool) -> None:
    from mlx_finetune.app.trace.view import summary_lines
    from mlx_finetune.commands.measuring import renew_report, shown

    if as_json:
        click.echo(json.dumps(traced.summary, ensure_ascii=False))
    else:
        for line in summary_lines(traced):
            click.echo(line)
    folder = traced.series.run.file("trace")
    click.echo(f"\nkept in {shown(folder.resolve())}/ (CSV files and trace.json)", err=True)
    renew_report(folder.parent)
    click.echo(f"next: mlxft report {shlex.quote(name)}", err=True)


def _export(name: str, folder: Path, *, dense: bool, as_json: bool) -> None:
    from mlx_finetune.app.updates.export import export_series
    from mlx_finetune.app.updates.series import open_series
    from mlx_finetune.rundir import find_run

    series = open_series(find_run(name, base=Path.cwd()))
    files = export_series(series, folder, dense=dense)
    if as_json:
        click.echo(json.dumps({"files": [str(file) for file in files]}))
    else:
        for file in files:
            click.echo(str(file))
    click.echo(f"\n{files[-1].name} says what the tensors are; docs/trace.md has an example in numpy", err=True)
