"""``mlxft monitor``: looks on at a training from any terminal. Reads the journal and nothing else of the run.

A terminal that can show it gets the full screen of ``monitor.tui``; everything else the lines of the live view.
"""

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlx_finetune.errors import UsageError

if TYPE_CHECKING:  # imported inside the functions: help must stay cheap (benchmarks/help_cost.py)
    from mlx_finetune.monitor.summary import Summary
    from mlx_finetune.monitor.tui.hands import Hands
    from mlx_finetune.rundir import RunDir

PBCOPY = "/usr/bin/pbcopy"
COPY_SECONDS = 2.0


@click.command()
@click.argument("run", required=False)
@click.option("--plain", is_flag=True, help="A few lines at the bottom of the terminal instead of all of it.")
@click.option("--until-end", is_flag=True, help="Leave the full screen when the run ends, as lines do.")
@click.option("--json", "as_json", is_flag=True, help="Print the events from now on as JSON Lines on stdout.")
@click.option("--web", is_flag=True, help="Show this and every other run as a page in the browser.")
@click.option("--port", type=click.IntRange(0, 65535), help="Of the page; 0 takes a free one.")
@click.option("--no-open", is_flag=True, help="Print the address of the page, open no browser.")
def command(
    run: str | None, plain: bool, until_end: bool, as_json: bool, web: bool, port: int | None, no_open: bool
) -> int:
    """Watch RUN, come and go at any time: q or Ctrl-C leaves, and the training goes on.

    RUN is a run folder, or a name under adapters/; without it the run that is at work, else the latest. In a terminal
    the monitor fills the screen and shows runs of the past as well; ? lists its keys: stop safely, checkpoint now, copy
    the command that resumes the run. Without a terminal, or with --plain, a run at work is followed until it ends.
    """
    if web:
        from mlx_finetune.commands.monitor_web import watch_in_browser

        if as_json or plain:
            raise UsageError(f"--web and --{'json' if as_json else 'plain'} do not go together", "leave one out")
        return watch_in_browser(run, port=port, opens=not no_open)
    if port is not None or no_open:
        raise UsageError("--port and --no-open are for the page", "add --web")
    from mlx_finetune.app.running.follow import latest_run
    from mlx_finetune.rundir import find_run

    folder = find_run(run, base=Path()) if run else latest_run(Path("adapters"))
    if plain or as_json or not can_fill_screen():
        return _show_lines(folder, as_json=as_json)
    return _fill_screen(folder, until_end=until_end)


def can_fill_screen() -> bool:
    """True where input, output and talk are one terminal that moves its cursor."""
    from mlx_finetune.monitor.region import can_draw

    if os.environ.get("TERM", "") in ("", "dumb", "unknown"):
        return False
    return sys.stdin.isatty() and sys.stdout.isatty() and can_draw(sys.stderr)


def _fill_screen(run: "RunDir", *, until_end: bool) -> int:
    """The full screen until the person leaves; then what they should know, as ``_show_lines`` says it."""
    from mlx_finetune.monitor.tui.app import MonitorApp

    app = MonitorApp(run, monitor_hands(run), until_end=until_end)
    app.run(mouse=False)
    if app.return_code:  # a bug of ours: textual has shown its traceback
        return app.return_code
    watched = app.watched
    if watched.is_gone:
        click.echo(f"{watched.run.path} is gone", err=True)
    elif watched.is_at_work:
        click.echo(f"left; the training goes on, mlxft stop {watched.run.name} ends it", err=True)
    elif app.has_seen_end:
        return app.return_value or _tell_end(watched.run, watched.summary)
    else:
        _tell_state(watched.run, watched.summary)
    return app.return_value or 0


def monitor_hands(run: "RunDir") -> "Hands":
    """What the full screen can do for a person who came to see ``run``."""
    from mlx_finetune.app.running.control import save_now, stop
    from mlx_finetune.commands.closing import copied_go_on
    from mlx_finetune.monitor.tui.hands import Hands
    from mlx_finetune.rundir import list_runs

    def runs() -> "Sequence[RunDir]":
        """Those beside the run, and those under adapters/ here."""
        found = {one.path.resolve(): one for folder in (run.path.parent, Path("adapters")) for one in list_runs(folder)}
        found.setdefault(run.path.resolve(), run)
        return [one if path != run.path.resolve() else run for path, one in found.items()]

    return Hands(runs, stop, save_now, copied_go_on, _copy)


def _copy(text: str) -> bool:
    """Put ``text`` on the clipboard of a Mac that the person sits at; False elsewhere."""
    if sys.platform != "darwin" or "SSH_CONNECTION" in os.environ:
        return False
    import subprocess

    try:
        done = subprocess.run([PBCOPY], input=text.encode(), timeout=COPY_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _show_lines(folder: "RunDir", *, as_json: bool) -> int:
    """Follow the run until it ends, in lines; a sentence about one that is not at work."""
    from mlx_finetune.app.running.follow import follow
    from mlx_finetune.app.running.launch import forwarding
    from mlx_finetune.commands.train import choose_view
    from mlx_finetune.journal import EventFollower
    from mlx_finetune.monitor.jsonl import JsonView
    from mlx_finetune.monitor.plain import state_lines
    from mlx_finetune.monitor.summary import Summary
    from mlx_finetune.rundir import EVENTS, running_process

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
    from mlx_finetune.recipe.asking import talk_command

    total = f" of {summary.total_steps}" if summary.total_steps else ""
    match summary.outcome:
        case RunFinished(step=step):
            task = summary.started.task if summary.started else ""
            state, then = f"finished at step {step}", [f"next: {talk_command(task, run.name)}"]
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
