"""``mlxft monitor``: looks on at a training from any terminal. Reads the journal and nothing else of the run."""

import signal
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlx_finetune.errors import UsageError

if TYPE_CHECKING:  # imported inside the functions: help must stay cheap (benchmarks/help_cost.py)
    from mlx_finetune.monitor.summary import Summary
    from mlx_finetune.rundir import RunDir


@click.command()
@click.argument("run", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the events from now on as JSON Lines on stdout.")
@click.option("--web", is_flag=True, help="Show this and every other run as a page in the browser.")
@click.option("--port", type=click.IntRange(0, 65535), help="Of the page; 0 takes a free one.")
@click.option("--no-open", is_flag=True, help="Print the address of the page, open no browser.")
def command(run: str | None, as_json: bool, web: bool, port: int | None, no_open: bool) -> int:
    """Watch RUN until it ends; Ctrl-C leaves, and the training goes on.

    RUN is a run folder, or a name under adapters/; without it the run that is at work, else the latest.
    """
    if web:
        from mlx_finetune.commands.monitor_web import watch_in_browser

        if as_json:
            raise UsageError("--web and --json do not go together", "leave one of the two out")
        return watch_in_browser(run, port=port, opens=not no_open)
    if port is not None or no_open:
        raise UsageError("--port and --no-open are for the page", "add --web")
    from mlx_finetune.app.follow import follow, latest_run
    from mlx_finetune.app.launch import forwarding
    from mlx_finetune.commands.train import choose_view
    from mlx_finetune.journal import EventFollower
    from mlx_finetune.monitor.jsonl import JsonView
    from mlx_finetune.monitor.plain import state_lines
    from mlx_finetune.monitor.summary import Summary
    from mlx_finetune.rundir import EVENTS, find_run, running_process

    folder = find_run(run, base=Path()) if run else latest_run(Path("adapters"))
    pid = running_process(folder)
    follower, summary = EventFollower(folder.file(EVENTS)), Summary()
    for record in follower.poll():
        summary.add(record)
    if pid is None:
        return _tell_state(folder, summary)
    view = choose_view(summary, as_json=as_json)
    is_alone = (lambda: view.is_broken) if isinstance(view, JsonView) else (lambda: False)
    with forwarding(lambda sentence: None) as signals, closing(view):  # there is no child here: they only arrive
        view.say(f"watching {folder.name} (process {pid}); Ctrl-C leaves, and the training goes on")
        for line in state_lines(summary):
            view.say(line)
        follow(folder, follower, view, lambda: bool(signals.received) or is_alone())
    if signals.received:
        click.echo(f"left; the training goes on, mlxft stop {folder.name} ends it", err=True)
        return 0 if signals.received[0] == signal.SIGINT else 128 + signals.received[0]
    return 0 if is_alone() else _tell_end(folder, summary)


def _tell_end(run: "RunDir", summary: "Summary") -> int:
    """The last words of ``mlxft train``, for who looked on; 1 for a run that failed or went away without a word."""
    from mlx_finetune.commands.closing import outcome_lines, recorded_go_on_lines
    from mlx_finetune.events import RunFailed
    from mlx_finetune.rundir import LOG

    outcome, go_on = summary.outcome, recorded_go_on_lines(run)
    if outcome is None:
        checkpoints = run.checkpoints()
        saved = f"the last checkpoint is {checkpoints[-1]}" if checkpoints else "no checkpoint was saved"
        lines = ["", f"error: the training is gone without a word (see {run.file(LOG)}); {saved}", *go_on]
    else:
        lines = outcome_lines(outcome, summary, run, go_on)
    for line in lines:
        click.echo(line, err=True)
    return int(outcome is None or isinstance(outcome, RunFailed))


def _tell_state(run: "RunDir", summary: "Summary") -> int:
    """One sentence about a run that is not at work, and what to do with it."""
    from mlx_finetune.commands.closing import recorded_go_on_lines
    from mlx_finetune.events import RunFailed, RunFinished, RunStopped

    total = f" of {summary.total_steps}" if summary.total_steps else ""
    match summary.outcome:
        case RunFinished(step=step):
            state, then = f"finished at step {step}", [f"next: mlxft chat {run.name}"]
        case RunStopped(step=step):
            state, then = f"stopped after step {step}{total}", recorded_go_on_lines(run)
        case RunFailed(message=message):
            state, then = f"failed: {message}", recorded_go_on_lines(run)
        case None:
            state, then = f"went away after step {summary.steps_done}{total}", recorded_go_on_lines(run)
    click.echo(f"{run.name} is not at work; it {state}", err=True)
    for line in then:
        click.echo(line, err=True)
    return 0
