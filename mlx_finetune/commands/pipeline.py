"""``mlxft pipeline``: stages of trainings and commands, each from the results of earlier ones, with one report."""

import json
import shlex
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:  # imported inside the functions: help must stay cheap (benchmarks/help_cost.py)
    from mlx_finetune.app.pipeline.carry_out import Ended, Outcome
    from mlx_finetune.app.pipeline.decide import Deciding, Selection
    from mlx_finetune.recipe.pipeline.load import LoadedPipeline, Stage
    from mlx_finetune.recipe.pipeline.record import PipelineRecord


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="STAGE.KEY=VALUE",
    help="Change one key of a stage's recipe, e.g. sft.training.max_steps=50; or output_dir=FOLDER.",
)
@click.option("--from", "first", metavar="STAGE", help="Begin with this stage; what comes before is taken as it is.")
@click.option("--only", metavar="STAGE", help="Run this stage alone.")
@click.option(
    "--force",
    is_flag=True,
    help="Replace the results of stages that have changed; with --from or --only those stages in any case.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be done, with time, memory and disk; change nothing.")
@click.option("--no-measure", is_flag=True, help="With --dry-run: take no steps where the time is not known.")
@click.option("--status", is_flag=True, help="Print how far it is; also while it runs.")
@click.option("--json", "as_json", is_flag=True, help="Print the table, the status or the plan as JSON.")
def command(
    file: Path,
    overrides: tuple[str, ...],
    first: str | None,
    only: str | None,
    force: bool,
    dry_run: bool,
    no_measure: bool,
    status: bool,
    as_json: bool,
) -> int:
    """Run the stages of FILE in order; a stage that is done is skipped while nothing that it depends on has changed.

    Ctrl-C saves and leaves; the same command goes on. Nothing that is there is replaced without --force. At the end
    there is one table across the stages, and one report.
    """
    from mlx_finetune.app.pipeline.decide import Selection
    from mlx_finetune.errors import UsageError
    from mlx_finetune.recipe.pipeline.load import load_pipeline

    if dry_run and status:
        raise UsageError("--dry-run and --status do not go together", "give one of them")
    from mlx_finetune.commands.pipeline_check import pipeline_problems

    if status:
        return _status(load_pipeline(_path_of(file), overrides, here=Path.cwd()), as_json=as_json)
    pipeline = load_pipeline(_path_of(file), overrides, here=Path.cwd(), look=pipeline_problems)
    deciding = _deciding(pipeline, Selection(first, only, force))
    if dry_run:
        return _dry_run(deciding, measures=not no_measure, as_json=as_json)
    return _run(deciding, as_json=as_json)


def _path_of(file: Path) -> Path:
    """The file, or the pipeline of that name in the gallery where there is no such file."""
    from mlx_finetune.recipe.gallery import find_named

    if file.exists() or len(file.parts) > 1 or file.suffix:
        return file
    return find_named(str(file), Path.cwd(), Path.cwd()) or file


def _deciding(pipeline: "LoadedPipeline", selection: "Selection") -> "Deciding":
    from mlx_finetune.app.pipeline.decide import deciding
    from mlx_finetune.train.start.identity import recipe_identity

    return deciding(pipeline, selection, recipe_identity, Path.cwd())


def _say(text: str) -> None:
    click.echo(text, err=True)


def _pass_on(line: str) -> None:
    """What a part says, without the commands that it proposes: here the pipeline goes on."""
    if line and not line.startswith(_PROPOSALS):
        _say(line)


_PROPOSALS = ("next: ", "error: ", "hint: ", "what it learned, measured: ", "to go on: ")


# --- running ---


def _run(deciding: "Deciding", *, as_json: bool) -> int:
    from mlx_finetune.app.pipeline.carry_out import Hands, carry_out
    from mlx_finetune.app.pipeline.process import leaving, run_command
    from mlx_finetune.errors import Interrupted

    pipeline = deciding.pipeline
    hands = Hands(
        train=_train,
        command=lambda words, log: run_command(words, log, _pass_on),
        say=lambda text: _say(f"\n{text}"),
    )
    try:
        with leaving():
            outcome = carry_out(deciding, hands)
    except Interrupted as error:
        _say(f"\n{error.message}\nto go on: {_go_on(deciding)}")
        return error.exit_code
    return _ended(deciding, outcome, pipeline, as_json=as_json)


def _train(stage: "Stage", is_resumed: bool) -> "Ended":
    """One training as ``mlxft train`` does it."""
    from mlx_finetune.app.pipeline.carry_out import Ended
    from mlx_finetune.app.running import supervise
    from mlx_finetune.app.running.launch import TrainRequest
    from mlx_finetune.app.trackers.watching import tracked
    from mlx_finetune.commands.closing import ended_lines
    from mlx_finetune.commands.report import try_report
    from mlx_finetune.commands.train import choose_view
    from mlx_finetune.journal import read_events
    from mlx_finetune.monitor.summary import Summary
    from mlx_finetune.rundir import EVENTS, RunDir

    loaded = stage.loaded
    assert loaded is not None
    request = TrainRequest(loaded.path, loaded.overrides, is_resumed)
    run, summary = RunDir(loaded.recipe.run_folder), Summary()
    for record in read_events(run.file(EVENTS)) if is_resumed else ():
        summary.add(record)
    view = choose_view(summary, as_json=False)
    with closing(view), tracked(loaded.recipe.training.report_to, run, view, is_fork=False) as watched:
        supervised = supervise.supervise(request, run, loaded.recipe, watched)
    report, warnings = (None, []) if supervised.ending.kind == "refused" else try_report(run)
    lines = [*warnings, *ended_lines(supervised, summary, run, [], report)]
    for line in lines:
        _pass_on(line)
    ending = supervised.ending
    message = ending.message if supervised.exit_code else ""
    return Ended(supervised.exit_code, message, ending.hint, supervised.stop_signal)


def _ended(deciding: "Deciding", outcome: "Outcome", pipeline: "LoadedPipeline", *, as_json: bool) -> int:
    """The table, the report, and what to type next."""
    from mlx_finetune.monitor.pipeline.facts import read_pipeline
    from mlx_finetune.monitor.pipeline.page import write_reports
    from mlx_finetune.monitor.pipeline.table import table_json, table_lines

    facts = read_pipeline(pipeline.folder)
    page: Path | None = None
    try:
        page, _ = write_reports(facts)
    except OSError as error:
        _say(f"warning: the report could not be made ({error.strerror or error})")
    if as_json:
        more = {"exit_code": outcome.exit_code, "report": str(page) if page else None}
        click.echo(json.dumps(table_json(facts) | more, ensure_ascii=False))
    elif not outcome.where:
        _say("")
        for line in table_lines(facts):
            click.echo(line)
    if page is not None:
        _say(f"\nreport for your browser: {page}")
    if outcome.where:
        for line in _end_lines(deciding, outcome):
            _say(line)
        return outcome.exit_code
    if deciding.selection.names_stages:
        for line in _changed_lines(pipeline, outcome.record):
            _say(line)
    _say(f"next: {_next(pipeline, outcome.record)}")
    return 0


def _end_lines(deciding: "Deciding", outcome: "Outcome") -> Sequence[str]:
    """What stands behind a pipeline that did not come to its end."""
    is_stopped = outcome.exit_code in (130, 143, 129)
    first = f"stopped in {outcome.where}; everything up to there is saved"
    if not is_stopped:
        first = f"error: {outcome.where}{' has failed' if outcome.goes_on else ''}: {outcome.message}"
    hint = [f"hint: {outcome.hint}"] if outcome.hint and not is_stopped else []
    return [first, *hint, *([f"to go on: {_go_on(deciding)}"] if outcome.goes_on else [])]


def _go_on(deciding: "Deciding") -> str:
    """The same command; what it has made already is not made twice."""
    return deciding.pipeline.command(*deciding.selection.options)


def _next(pipeline: "LoadedPipeline", record: "PipelineRecord") -> str:
    """What to type after everything: talk with the last model that talks and is of what is there now."""
    from mlx_finetune.recipe.asking import has_conversation, talk_command

    finished = {one.name for one in record.stages if one.status == "finished"} - record.outdated().keys()
    talking = [
        stage
        for stage in pipeline.stages
        if stage.loaded is not None and has_conversation(stage.loaded.recipe.task) and stage.name in finished
    ]
    if not talking:
        return pipeline.command("--status")
    return talk_command("", shlex.quote(str(talking[-1].folder)))


# --- looking ---


def _status(pipeline: "LoadedPipeline", *, as_json: bool) -> int:
    """The table; what is at work, or what a start would find changed and the command that goes on."""
    from functools import partial

    from mlx_finetune.errors import RunError
    from mlx_finetune.monitor.pipeline.facts import read_pipeline
    from mlx_finetune.monitor.pipeline.table import table_json, table_lines

    try:
        facts = read_pipeline(pipeline.folder, partial(_with_stages_of, pipeline))
    except RunError as error:
        raise RunError(error.message, f"start it: {pipeline.command()}") from error
    if as_json:
        click.echo(json.dumps(table_json(facts), ensure_ascii=False))
        return 0
    for line in table_lines(facts):
        click.echo(line)
    for stage in facts.stages:
        if stage.record.message and stage.status == "failed":
            _say(f"{stage.record.name} has failed: {stage.record.message}")
    running = next((stage for stage in facts.stages if stage.status == "running"), None)
    if running is not None:
        begun = f", for {_since(running.record.started)}" if running.record.started else ""
        _say(f"\n{running.record.name} is at work{begun}; watch it: mlxft monitor {shlex.quote(str(running.folder))}")
        return 0
    for line in _changed_lines(pipeline, facts.record):
        _say(line)
    is_whole = all(stage.status == "finished" for stage in facts.stages)
    if not is_whole or facts.record.options:
        _say(f"\nto go on: {_as_started(pipeline, facts.record).command(*facts.record.options)}")
    return 0


def _with_stages_of(pipeline: "LoadedPipeline", record: "PipelineRecord") -> "PipelineRecord":
    """The record with the stages of this file, where its folder was last started from another."""
    from mlx_finetune.app.pipeline.carry_out import begun_record
    from mlx_finetune.app.pipeline.decide import Selection

    if [one.name for one in record.stages] == [one.name for one in pipeline.stages]:
        return record
    found = begun_record(_deciding(pipeline, Selection()), record)
    return replace(found, overrides=record.overrides, options=record.options, redone=record.redone)


def _as_started(pipeline: "LoadedPipeline", record: "PipelineRecord") -> "LoadedPipeline":
    """The pipeline with the overrides of its last start, which a question about it need not repeat."""
    from mlx_finetune.errors import RecipeError
    from mlx_finetune.recipe.pipeline.load import load_pipeline

    try:
        return load_pipeline(pipeline.path, record.overrides, here=Path.cwd())
    except RecipeError:  # the file has been changed under them
        return pipeline


def _changed_lines(pipeline: "LoadedPipeline", record: "PipelineRecord") -> Sequence[str]:
    """What is not as it was when the stages were made: recipes, data, commands. What follows from that is marked."""
    from mlx_finetune.app.pipeline.decide import Selection
    from mlx_finetune.errors import MlxftError, RecipeError

    try:
        steps = _deciding(_as_started(pipeline, record), Selection()).all_steps(record)
    except RecipeError as error:
        return [f"{problem.where}: {problem.message}" for problem in error.problems]
    except MlxftError as error:
        return [error.message]
    earlier = record.outdated()
    changed = [step for step in steps if step.action == "replace" and step.stage.name not in earlier]
    lines = [f"{step.stage.name} is not as the file has it now: {'; '.join(step.reasons[:3])}" for step in changed]
    anew = _as_started(pipeline, record).command("--force")
    return [*lines, f"to make that and what follows anew: {anew}"] if changed else []


def _since(started: float) -> str:
    from mlx_finetune.units import format_seconds

    return format_seconds(max(0.0, time.time() - started))


def _dry_run(deciding: "Deciding", *, measures: bool, as_json: bool) -> int:
    from functools import partial

    from mlx_finetune.app.pipeline.decide import ReplacingError, refuse_replacing
    from mlx_finetune.app.pipeline.planning import plan_json, plan_lines, plan_stages
    from mlx_finetune.commands.plan import plan_recipe
    from mlx_finetune.recipe.pipeline.record import read_record

    make = partial(plan_recipe, measures=measures)
    record = read_record(deciding.pipeline.folder)
    planned = plan_stages(deciding, record, make)
    if as_json:
        click.echo(json.dumps(plan_json(planned, deciding.pipeline), ensure_ascii=False))
    else:
        for line in plan_lines(planned, deciding.pipeline):
            click.echo(line)
        try:
            refuse_replacing([one.step for one in planned], deciding, record)
        except ReplacingError as error:
            _say(f"\n{error.hint}")
    return 0
