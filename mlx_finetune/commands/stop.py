"""``mlxft stop``: ends a training that was started anywhere, as Ctrl-C would where it was started."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:  # imported inside the functions: help must stay cheap (benchmarks/help_cost.py)
    from mlx_finetune.rundir import RunDir

STILL_SECONDS = 15.0  # between two lines that say that it still waits


@click.command()
@click.argument("run", required=False)
@click.option("--now", is_flag=True, help="Do not finish the step; what came after the last checkpoint is lost.")
def command(run: str | None, now: bool) -> int:
    """Let RUN finish its step, save and leave, and wait for that.

    RUN is a run folder, or a name under adapters/; it may be left out where one run is at work.
    """
    from mlx_finetune.app.running.control import stop_and_wait
    from mlx_finetune.app.running.follow import only_running
    from mlx_finetune.events import RunFailed, RunFinished, RunStopped
    from mlx_finetune.journal import EventFollower
    from mlx_finetune.rundir import EVENTS, find_run

    folder = find_run(run, base=Path()) if run else only_running(Path("adapters"))
    follower = EventFollower(folder.file(EVENTS), from_end=True)
    try:
        stop_and_wait(folder, now=now, waiting=_Waiting(folder, now=now))
    except KeyboardInterrupt:
        click.echo(f"waits no longer; {folder.name} was asked to stop and will", err=True)
        return 130
    outcome = None
    for record in follower.poll():
        if isinstance(record.event, RunFinished | RunStopped | RunFailed):
            outcome = record.event
    for line in _told(folder, outcome):
        click.echo(line, err=True)
    return 0


class _Waiting:
    """Says once whom it waits for, and now and then that it still does."""

    def __init__(self, run: "RunDir", *, now: bool) -> None:
        self._run = run
        self._now = now
        self._next = 0.0

    def __call__(self, pid: int, seconds: float) -> None:
        if seconds < self._next:
            return
        if self._next:
            hint = "" if self._now else f"; to leave at once: mlxft stop {self._run.name} --now"
            click.echo(f"still waiting, {seconds:.0f} s{hint}", err=True)
        else:
            does = "leaves at once" if self._now else "finishes its step and saves"
            click.echo(f"asked process {pid} to stop {self._run.name}; it {does} ...", err=True)
        self._next += STILL_SECONDS


def _told(run: "RunDir", outcome: object) -> list[str]:
    """After which step the run stopped, and the command that goes on."""
    from mlx_finetune.commands.closing import recorded_go_on_lines
    from mlx_finetune.events import RunFailed, RunFinished, RunStopped
    from mlx_finetune.recipe.asking import talk_command
    from mlx_finetune.rundir import task_of

    match outcome:
        case RunFinished(step=step):
            had = f"{run.name} had finished at step {step} before it could stop"
            return [had, f"next: {talk_command(task_of(run), run.name)}"]
        case RunStopped(step=step) if step:
            return [f"stopped after step {step}; everything up to there is saved", *recorded_go_on_lines(run)]
        case RunFailed(message=message):
            return [message, *recorded_go_on_lines(run)]
        case _:
            checkpoints = run.checkpoints()
            saved = f"the last checkpoint is {checkpoints[-1]}" if checkpoints else "no checkpoint was saved"
            return [f"stopped; {saved}", *(recorded_go_on_lines(run) if checkpoints else [])]
