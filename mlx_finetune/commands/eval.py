"""``mlxft eval``: what a run learned and what it forgot, measured on rows it has not seen; the report on stdout."""

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_finetune.commands.eval_samples import check_samples_options, eval_samples
from mlx_finetune.commands.evaluating import open_for_eval
from mlx_finetune.recipe.measured import TASK_LIST

if TYPE_CHECKING:
    from mlx_finetune.app.eval.run import Finished
    from mlx_finetune.app.eval.setup import Evaluation
    from mlx_finetune.recipe.evaluation import EvalRecipe

GATE_MISSED = 4
INTERRUPTED = 130
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@click.command()
@click.argument("name", metavar="RUN_OR_MODEL")
@click.option(
    "--tasks",
    multiple=True,
    metavar="TASK,...",
    help=f"What to measure, the one that matters most first: {TASK_LIST}. All behind a colon is of that check; give it "
    "again for more.",
)
@click.option("--data", metavar="FILE", help="Rows in the place of the run's held-out ones; a model needs some.")
@click.option("--max-rows", type=click.IntRange(1), metavar="N", help="Most rows; always the same ones of more.")
@click.option(
    "--shots", type=click.IntRange(0, 64), metavar="K", help="One more baseline: K training rows as examples."
)
@click.option(
    "--reference",
    "references",
    multiple=True,
    metavar="COLUMN",
    help="Column with another right answer; the best counts. Repeatable.",
)
@click.option("--category", metavar="COLUMN", help="Split every figure by this column of the rows.")
@click.option("--schema", metavar="FILE", help="JSON Schema: validity is measured free and constrained by it.")
@click.option(
    "--batch", type=click.IntRange(1, 256), metavar="N", help="Answers at once (16, or 8 on a GPU); 1 times each alone."
)
@click.option("--max-tokens", type=click.IntRange(1), metavar="N", help="Longest answer in tokens.")
@click.option(
    "--gate",
    "gates",
    multiple=True,
    metavar="GATE",
    help='Such as "json_valid >= 0.95"; missed: exit code 4. docs/recipe.md has the measures of each task.',
)
@click.option("--checkpoints", is_flag=True, help="Every checkpoint of a run: loss, perplexity, bits per byte.")
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="With --checkpoints: answered by each.")
@click.option("--sinks", is_flag=True, help="Texts of 3 times the context, with what is kept of them in four ways.")
@click.option("--context", type=click.IntRange(8), metavar="N", help="With --sinks: the context in tokens.")
@click.option("--name", "named", metavar="NAME", help="Name of the result in the run's eval/ folder.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FOLDER", help="Keep the result there instead.")
@click.option("--samples", metavar="FOLDER", help="Of a verifier: its pick among the answers that mlxft sample drew.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--csv", "as_csv", is_flag=True, help="Print the figures as CSV.")
def command(
    name: str,
    tasks: tuple[str, ...],
    data: str | None,
    max_rows: int | None,
    shots: int | None,
    references: tuple[str, ...],
    category: str | None,
    schema: str | None,
    batch: int | None,
    max_tokens: int | None,
    gates: tuple[str, ...],
    checkpoints: bool,
    prompts: tuple[str, ...],
    sinks: bool,
    context: int | None,
    named: str | None,
    out: Path | None,
    samples: str | None,
    as_json: bool,
    as_csv: bool,
) -> int:
    """Compare a run with its base on rows it was not trained on: a verdict in words, and the figures it is made from.

    Without --tasks the recipe's [eval] decides, else the rows. Results are kept in the run folder under eval/; Ctrl-C
    keeps what was measured, and the same command goes on. Exits with 4 where a gate is missed.
    """
    given = click.get_current_context().params
    check_options(given)
    changes = changes_of(given)
    if samples is not None:
        return eval_samples(name, samples, out=out, as_json=as_json, as_csv=as_csv)
    if checkpoints or sinks:
        from mlx_finetune.commands import eval_texts

        request = eval_texts.Request(name, data, max_rows, prompts, context, named, out, as_json=as_json, as_csv=as_csv)
        return eval_texts.run(request, checkpoints=checkpoints)
    evaluation = _prepared(name, changes, named, data, batch)
    finished = _measured(evaluation, named, out)
    return _report(evaluation, finished, as_json=as_json, as_csv=as_csv)


def changes_of(given: Mapping[str, Any]) -> Mapping[str, object]:
    """What the options change in [eval]."""
    keys = {"max_tokens": "answer_tokens"}
    names = ("tasks", "gates", "max_rows", "shots", "references", "category", "schema", "max_tokens")
    values = {keys.get(name, name): given[name] for name in names if given[name] not in (None, ())}
    return values | ({"tasks": split_tasks(given["tasks"])} if "tasks" in values else {})


#: Keys of [eval] whose options are not called after them.
_OPTIONS = {
    "gates": "--gate",
    "references": "--reference",
    "answer_tokens": "--max-tokens",
    "max_rows": "--max-rows",
}


def check_options(given: Mapping[str, Any]) -> None:
    """Refuse what can be seen before a model is loaded. Raises ``UsageError`` or ``RunError``."""
    from mlx_finetune.recipe.evaluation import EvalRecipe

    _check_form(given["named"], given["out"], as_json=given["as_json"], as_csv=given["as_csv"])
    changes = changes_of(given)
    options = {key: _OPTIONS.get(key, f"--{key}") for key in changes}
    if given["samples"] is not None:
        check_samples_options([*options.values()])
    elif given["checkpoints"] or given["sinks"] or given["prompts"] or given["context"]:
        from mlx_finetune.commands.eval_texts import check_texts_options

        others = [option for key, option in options.items() if key != "max_rows"]
        others += ["--batch"] if given["batch"] else []
        check_texts_options(given, others)
    else:
        _with_changes(EvalRecipe.model_validate({}), changes)


def _report(evaluation: "Evaluation", finished: "Finished", *, as_json: bool, as_csv: bool) -> int:
    """Print what was found; the exit code."""
    _print(evaluation, finished, as_json=as_json, as_csv=as_csv)
    if not finished.report.is_whole:
        return INTERRUPTED
    return 0 if all(one.is_met for one in finished.report.gates) else GATE_MISSED


def split_tasks(tasks: tuple[str, ...]) -> tuple[str, ...]:
    """``("loss,json,regex:a,b",)`` -> loss, json and one check: all behind a colon is of the check before it."""
    parts = [part for task in tasks for part in task.split(",", task.partition(":")[0].count(","))]
    return tuple(part.strip() for part in parts if part.strip())


def _check_form(named: str | None, out: Path | None, *, as_json: bool, as_csv: bool) -> None:
    from mlx_finetune.errors import UsageError
    from mlx_finetune.rundir import check_folder

    if out is not None:
        check_folder(out, "--out")
    if as_json and as_csv:
        raise UsageError("--json and --csv are two forms of the same report", "give one of them")
    if named is not None and not _NAME.fullmatch(named):
        raise UsageError(f"{named[:60]!r} cannot be the name of a result", "use letters, digits, dots and dashes")


def _prepared(
    name: str, changes: Mapping[str, object], named: str | None, data: str | None, batch: int | None
) -> "Evaluation":
    from mlx_finetune.recipe.evaluation import EvalRecipe

    subject = open_for_eval(name)
    from mlx_finetune.app.eval.run import rows_at_once
    from mlx_finetune.app.eval.seen import has_other_data
    from mlx_finetune.app.eval.setup import prepare
    from mlx_finetune.commands.measuring import say

    recipe = subject.recipe.eval if subject.recipe else EvalRecipe.model_validate({})
    at_once = rows_at_once(subject, batch, say)
    evaluation = prepare(
        subject,
        _with_changes(recipe, changes),
        given=data,
        at_once=at_once,
        base=Path.cwd(),
        asked=changes.keys(),
    )
    for problem in evaluation.chosen.notices:
        click.echo(f"warning: {problem.where}: {problem.message}", err=True)
    if data is None and subject.trained_data_sha256 not in ("", evaluation.chosen.sha256) and has_other_data(subject):
        click.echo("warning: the data files have changed since the training: a row may have been trained on", err=True)
    return evaluation


def _with_changes(recipe: "EvalRecipe", changes: Mapping[str, object]) -> "EvalRecipe":
    from mlx_finetune.recipe.evaluation import change_recipe

    return change_recipe(recipe, changes)


def _measured(evaluation: "Evaluation", named: str | None, out: Path | None) -> "Finished":
    from mlx_finetune.app.eval.run import evaluate
    from mlx_finetune.commands.measuring import Bar, row_reporter, say

    bar = Bar()
    try:
        return evaluate(evaluation, named=named, out=out, show=bar, say=say, report=row_reporter(bar.clear))
    finally:
        bar.clear()


def _print(evaluation: "Evaluation", finished: "Finished", *, as_json: bool, as_csv: bool) -> None:
    from mlx_finetune.app.eval.results import csv_text, report_json
    from mlx_finetune.app.eval.view import report_lines
    from mlx_finetune.commands.measuring import renew_report, shown
    from mlx_finetune.rundir import EVALUATIONS

    report, place = finished.report, finished.place
    if as_json:
        click.echo(json.dumps(report_json(evaluation, report), ensure_ascii=False))
    elif as_csv:
        click.echo(csv_text(report), nl=False)
    else:
        for line in report_lines(evaluation, report):
            click.echo(line)
    name = shlex.quote(evaluation.subject.opened.name)
    path = shown(place.file("")) if place is not None else ""
    if not report.is_whole:
        kept = f"; the same command goes on from there ({path}.rows.jsonl)" if place else ""
        click.echo(f"\ninterrupted{kept}", err=True)
    elif place is not None:
        click.echo(f"\nkept in {path}.json and .csv", err=True)
        renew_report(place.folder.parent)
        run, located = evaluation.subject.run, evaluation.subject.opened.located
        is_checkpoint = run is not None and located.adapter not in (None, run.path)
        if run is not None and place.folder == run.file(EVALUATIONS) and not is_checkpoint:
            is_text = "perplexity" in evaluation.tasks
            following = f"mlxft eval {name} --checkpoints" if is_text else f"mlxft runs compare {name} OTHER_RUN"
            click.echo(f"next: {following}", err=True)
    else:
        click.echo("\nnothing was kept: --out FOLDER keeps the result of a model", err=True)
