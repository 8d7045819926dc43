"""``mlxft train``: the light parent. Checks the recipe, starts the training child, draws, passes signals on."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:  # imported inside the functions: help must stay cheap (benchmarks/help_cost.py)
    from mlx_finetune.app.launch import Ended, TrainRequest, View
    from mlx_finetune.monitor.summary import Summary
    from mlx_finetune.rundir import RunDir


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key, e.g. training.max_steps=50."
)
@click.option("--resume", is_flag=True, help="Continue the run in output_dir from its last checkpoint.")
@click.option("--fork", is_flag=True, help="Continue although the recipe, the data or the model has changed.")
@click.option("--extend", type=click.IntRange(min=1), metavar="N", help="Train a finished run for N more steps.")
@click.option("--dry-run", is_flag=True, help="Print the plan, load no weights, change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the events as JSON Lines on stdout (or the plan as JSON).")
def command(
    recipe: Path,
    overrides: tuple[str, ...],
    resume: bool,
    fork: bool,
    extend: int | None,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Train from RECIPE, a TOML file, into its output_dir.

    Ctrl-C finishes the step, saves and leaves; --resume goes on from there exactly.
    """
    if dry_run:
        from mlx_finetune.commands.plan import print_plan

        return print_plan(recipe, overrides, as_json=as_json)
    from mlx_finetune.app.launch import TrainRequest, train
    from mlx_finetune.events import read_events
    from mlx_finetune.monitor.summary import Summary
    from mlx_finetune.recipe.load import load_recipe
    from mlx_finetune.rundir import EVENTS, RunDir

    loaded = load_recipe(recipe, overrides)
    request = TrainRequest(recipe, overrides, resume=resume, fork=fork, extend=extend)
    run = RunDir(loaded.recipe.run_folder)
    summary = Summary()
    if request.continues:
        for record in read_events(run.file(EVENTS)):
            summary.add(record)
    view = _view(summary, as_json=as_json)
    try:
        ended = train(request, run, view)
    finally:
        view.close()
    for line in ending(ended, summary, request, run):
        click.echo(line, err=True)
    return ended.exit_code


def _view(summary: "Summary", *, as_json: bool) -> "View":
    """JSON Lines, plain lines, or the live view where stderr is a terminal that can do it."""
    if as_json:
        from mlx_finetune.monitor.jsonl import JsonView

        return JsonView(sys.stdout, summary, talk=lambda message: click.echo(message, err=True))
    if sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown"):
        from mlx_finetune.monitor.region import can_draw

        if can_draw(sys.stderr):
            from mlx_finetune.monitor.terminal import LiveView

            return LiveView(sys.stderr, summary)
    from mlx_finetune.monitor.plain import PlainView

    return PlainView(sys.stderr, summary)


def ending(ended: "Ended", summary: "Summary", request: "TrainRequest", run: "RunDir") -> Sequence[str]:
    """What is said after the child has gone."""
    import shutil

    from mlx_finetune.events import RunFailed, RunFinished, RunStopped
    from mlx_finetune.monitor.ending import finished_lines

    match ended.outcome:
        case RunFinished() as finished:
            width = shutil.get_terminal_size((100, 24)).columns
            return finished_lines(summary, finished, folder=str(run.path), name=run_name(run), width=width)
        case RunFailed() as failed:
            return [f"error: {failed.message}", *([f"hint: {failed.hint}"] if failed.hint else [])]
        case RunStopped() as stopped:
            done = f"after step {stopped.step}; everything up to there is saved" if stopped.step else "before step 1"
            return ["", f"stopped {done}", *_resume_lines(request)]
        case None:
            return _unexplained(ended, request, run)


def run_name(run: "RunDir") -> str:
    """What a user types for this run: its name where it lies under adapters/, else its path."""
    return run.path.name if run.path.parent == Path("adapters") else str(run.path)


def _unexplained(ended: "Ended", request: "TrainRequest", run: "RunDir") -> Sequence[str]:
    """The child left no last event: refused before it took the folder, left at once, or crashed."""
    from mlx_finetune.rundir import LOG

    said = next((place for place, line in enumerate(ended.log_tail) if line.startswith("error: ")), None)
    if ended.killed_by is None and said is not None:
        return ended.log_tail[said:]
    checkpoints = run.checkpoints()
    saved = [f"the last checkpoint is {checkpoints[-1]}"] if checkpoints else ["no checkpoint was saved"]
    again = _resume_lines(request) if checkpoints else []
    if ended.exit_code >= 128:
        return ["", *saved, *again]
    if not ended.crash():
        return []
    log = [f"  {line}" for line in ended.log_tail[-12:]]
    shown = ["", f"its last lines (see {run.file(LOG)}):", *log] if log else []
    return [*shown, "", f"error: {ended.crash()}; {saved[0]}", *again]


def _resume_lines(request: "TrainRequest") -> Sequence[str]:
    import shlex

    parts = ["mlxft", "train", str(request.recipe)]
    for override in request.overrides:
        parts += ["--set", override]
    return [f"to go on: {shlex.join([*parts, '--resume'])}"]
