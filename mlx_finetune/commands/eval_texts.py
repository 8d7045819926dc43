"""``mlxft eval --checkpoints`` and ``--sinks``: what a language model makes of texts, over a training and past its
context."""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:  # imported inside the functions: help must stay cheap (benchmarks/help_cost.py)
    from mlx_finetune.app.eval.checkpoints.run import Finished

_INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked, without what only other evaluations know."""

    name: str
    data: str | None
    max_rows: int | None
    prompts: tuple[str, ...]
    context: int | None
    named: str | None
    out: Path | None
    as_json: bool
    as_csv: bool


def check_texts_options(given: Mapping[str, Any], others: Sequence[str]) -> None:
    """``others`` are options that go with neither. Raises ``UsageError`` where something does not fit."""
    from mlx_finetune.errors import UsageError

    checkpoints, sinks = given["checkpoints"], given["sinks"]
    which = "--checkpoints" if checkpoints else "--sinks"
    if checkpoints and sinks:
        raise UsageError("--checkpoints and --sinks are two evaluations", "give one of them")
    if not checkpoints and not sinks:
        raise UsageError("--prompt goes with --checkpoints and --context with --sinks", "add one of them")
    if others:
        raise UsageError(f"{which} and {others[0]} do not go together", f"leave out {others[0]}, or {which}")
    if checkpoints and (given["context"] or given["out"]):
        what = "--context goes with --sinks" if given["context"] else "--checkpoints keeps its result in the run folder"
        raise UsageError(what, "leave it out")
    if sinks and given["prompts"]:
        raise UsageError("--prompt goes with --checkpoints", "leave it out")


def run(request: Request, *, checkpoints: bool) -> int:
    """Do one of the two."""
    return _checkpoints(request) if checkpoints else _sinks(request)


def _prepare_machine() -> None:
    from mlx_finetune.hardware import blas

    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # two threads of ours instead: see train/both_cores.py
    blas.prepare()  # before mlx is imported


def _checkpoints(request: Request) -> int:
    from mlx_finetune.rundir import find_run

    folder = find_run(request.name, base=Path.cwd())
    _prepare_machine()
    from mlx_finetune.app.eval.checkpoints.run import measure_course
    from mlx_finetune.app.eval.checkpoints.setup import prepare_course
    from mlx_finetune.commands.measuring import Bar, renew_report, row_reporter, say
    from mlx_finetune.commands.opening import LoadingTalk

    talk, bar = LoadingTalk(), Bar()
    try:
        course = prepare_course(
            folder,
            given=request.data,
            max_rows=request.max_rows,
            prompts=request.prompts,
            base=Path.cwd(),
            report=talk,
        )
        talk.clear()
        for problem in course.chosen.notices:
            click.echo(f"warning: {problem.where}: {problem.message}", err=True)
        finished = measure_course(course, named=request.named, show=bar, say=say, report=row_reporter(bar.clear))
    finally:
        talk.clear()
        bar.clear()
    _print_course(request, finished)
    renew_report(folder.path)
    click.echo(f"next: mlxft report {shlex.quote(request.name)}", err=True)
    return 0 if finished.report.is_whole else _INTERRUPTED


def _print_course(request: Request, finished: "Finished") -> None:
    from mlx_finetune.app.eval.checkpoints.results import csv_text, report_json, report_lines
    from mlx_finetune.commands.measuring import shown

    report, place = finished.report, finished.place
    if request.as_json:
        click.echo(json.dumps(report_json(report), ensure_ascii=False))
    elif request.as_csv:
        click.echo(csv_text(report), nl=False)
    else:
        for line in report_lines(report):
            click.echo(line)
    path = shown(place.file(""))
    if report.is_whole:
        click.echo(f"\nkept in {path}.json and .csv", err=True)
    else:
        click.echo(f"\ninterrupted; the same command goes on from there ({path}.rows.jsonl)", err=True)


def _sinks(request: Request) -> int:
    _prepare_machine()
    from mlx_finetune.app.eval.sinks.results import csv_text, report_json, report_lines
    from mlx_finetune.app.eval.sinks.run import run_experiment
    from mlx_finetune.app.eval.sinks.setup import prepare_experiment
    from mlx_finetune.app.eval.subject import open_subject
    from mlx_finetune.commands.measuring import Bar, renew_report, say, shown
    from mlx_finetune.commands.opening import LoadingTalk

    talk, bar = LoadingTalk(), Bar()
    try:
        subject = open_subject(request.name, base=Path.cwd(), report=talk)
        experiment = prepare_experiment(
            subject, given=request.data, context=request.context, num_texts=request.max_rows, base=Path.cwd()
        )
        talk.clear()
        for problem in experiment.chosen.notices:
            click.echo(f"warning: {problem.where}: {problem.message}", err=True)
        finished = run_experiment(experiment, named=request.named, out=request.out, show=bar, say=say)
    finally:
        talk.clear()
        bar.clear()
    report, place = finished.report, finished.place
    if request.as_json:
        click.echo(json.dumps(report_json(report), ensure_ascii=False))
    elif request.as_csv:
        click.echo(csv_text(report), nl=False)
    else:
        for line in report_lines(report):
            click.echo(line)
    path = shown(place.file("")) if place is not None else ""
    if not report.is_whole:
        goes_on = f"; the same command goes on from there ({path}.rows.jsonl)" if path else ""
        click.echo(f"\ninterrupted{goes_on}", err=True)
        return _INTERRUPTED
    click.echo(f"\nkept in {path}.json and .csv" if path else "\nnothing was kept: --out FOLDER keeps it", err=True)
    if subject.run is not None and request.out is None:
        renew_report(subject.run.path)
        click.echo(f"next: mlxft report {shlex.quote(request.name)}", err=True)
    return 0
