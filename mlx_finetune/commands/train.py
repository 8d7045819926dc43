"""``mlxft train``: the light parent. Checks the recipe, supervises the training, draws, passes signals on."""

import os
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:  # imported inside the functions: help must stay cheap (benchmarks/help_cost.py)
    from mlx_finetune.app.running.hosts import Hosts
    from mlx_finetune.app.running.launch import TrainRequest, View
    from mlx_finetune.monitor.summary import Summary
    from mlx_finetune.recipe.schema import Recipe
    from mlx_finetune.rundir import RunDir


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key, e.g. training.max_steps=50."
)
@click.option("--resume", is_flag=True, help="Continue the run in output_dir from its last checkpoint.")
@click.option("--fork", is_flag=True, help="Continue although the recipe, the data or the model has changed.")
@click.option(
    "--extend",
    type=click.IntRange(min=1),
    metavar="N",
    help="Train N steps beyond the planned end; first what was left undone.",
)
@click.option("--dry-run", is_flag=True, help="Print what plan --no-measure does, load no weights, change nothing.")
@click.option("--detach", is_flag=True, help="Leave the training to the background once it has started.")
@click.option(
    "--hostfile",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Train on the machines of this hostfile of mlx.launch together; the first is this one.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the events as JSON Lines on stdout (or the plan as JSON).")
@click.option("--in-background", is_flag=True, hidden=True)  # what --detach starts
def command(
    recipe: Path,
    overrides: tuple[str, ...],
    resume: bool,
    fork: bool,
    extend: int | None,
    dry_run: bool,
    detach: bool,
    hostfile: Path | None,
    as_json: bool,
    in_background: bool,
) -> int:
    """Train from RECIPE, a TOML file, into its output_dir.

    Ctrl-C finishes the step, saves and leaves; --resume goes on from there exactly. A training process that is
    aborted or killed is started again from its last checkpoint, unless it trains together with others.
    """
    from mlx_finetune.hardware.place import read_place

    place = read_place(os.environ)
    if place.rank:
        return 0 if dry_run else _follow(recipe, overrides)
    from mlx_finetune.app.running.launch import TrainRequest

    shown_by = os.getppid() if in_background else None
    request = TrainRequest(recipe, overrides, resume, fork, extend, num_ranks=place.size, shown_by=shown_by)
    if dry_run:
        return _dry_run(replace(request, hostfile=hostfile), as_json=as_json)
    lines, code = _start(request, hostfile, detach=detach, as_json=as_json, in_background=in_background)
    for line in lines:
        click.echo(line, err=True)
    return code


def _dry_run(request: "TrainRequest", *, as_json: bool) -> int:
    from mlx_finetune.commands.plan import print_plan

    num_processes = request.num_ranks if request.hostfile is None else _read_hosts(request.hostfile).num_ranks
    more = replace(request, overrides=()).options()
    return print_plan(request.recipe, request.overrides, as_json=as_json, more=more, num_processes=num_processes)


def _start(
    request: "TrainRequest", hostfile: Path | None, *, detach: bool, as_json: bool, in_background: bool
) -> tuple[Sequence[str], int]:
    """Train, or leave that to the background; the last words and the exit code."""
    from mlx_finetune.commands.checked import check_recipe
    from mlx_finetune.commands.named import check_trackers
    from mlx_finetune.journal import read_events
    from mlx_finetune.monitor.summary import Summary
    from mlx_finetune.recipe.load import load_recipe
    from mlx_finetune.recipe.paths import check_paths
    from mlx_finetune.rundir import EVENTS, RunDir

    loaded = load_recipe(request.recipe, request.overrides)
    if request.continues:
        check_paths(loaded, Path.cwd())
        check_trackers(loaded)
    else:
        check_recipe(loaded, Path.cwd())
    request = _with_hosts(request, hostfile)
    run = RunDir(loaded.recipe.run_folder)
    summary = Summary()
    if request.continues:
        for record in read_events(run.file(EVENTS)):
            summary.add(record)
    view = _log_view(run, summary) if in_background else choose_view(summary, as_json=as_json)
    with closing(view):
        if not detach:
            return _train(request, run, loaded.recipe, view, summary)
        from mlx_finetune.app.running.detach import train_detached

        return train_detached(request, run, view)


def _train(
    request: "TrainRequest", run: "RunDir", recipe: "Recipe", view: "View", summary: "Summary"
) -> tuple[Sequence[str], int]:
    """Train to the end; the last words and the exit code."""
    from mlx_finetune.app.running import supervise
    from mlx_finetune.app.trackers.watching import look_lines, tracked
    from mlx_finetune.commands.closing import ended_lines, go_on_lines
    from mlx_finetune.commands.report import try_report

    names = recipe.training.report_to
    with tracked(names, run, view, is_fork=request.fork) as watched:
        supervised = supervise.supervise(request, run, recipe, watched)
    hostfile = [] if request.hostfile is None else ["--hostfile", str(request.hostfile)]
    options = [part for one in request.overrides for part in ("--set", one)]
    go_on = go_on_lines(str(request.recipe), [*options, *hostfile])
    report, warnings = (None, []) if supervised.ending.kind == "refused" else try_report(run)
    lines = [*warnings, *look_lines(names, run), *ended_lines(supervised, summary, run, go_on, report)]
    if request.num_ranks > 1 and supervised.ending.kind == "failed" and run.checkpoints():
        lines = [*lines, *go_on]
    return lines, supervised.exit_code


def _with_hosts(request: "TrainRequest", hostfile: Path | None) -> "TrainRequest":
    """The request with the machines of ``hostfile``. Raises ``UsageError``."""
    from mlx_finetune.app.running.hosts import fill_stdin
    from mlx_finetune.errors import UsageError

    if hostfile is None:
        if request.num_ranks > 1:
            fill_stdin()
        return request
    if request.num_ranks > 1:
        raise UsageError(
            "--hostfile starts the other ranks itself, and mlx.launch has started this one",
            "leave out --hostfile, or mlx.launch",
        )
    hosts = _read_hosts(hostfile)
    return replace(request, hostfile=hostfile, hosts=hosts, num_ranks=hosts.num_ranks)


def _read_hosts(hostfile: Path) -> "Hosts":
    """The machines of ``hostfile``, as far as they can be used from here. Raises ``UsageError``."""
    from mlx_finetune.app.running.hosts import check_rdma, read_hostfile

    hosts = read_hostfile(hostfile)
    check_rdma(hostfile, hosts)
    if hosts.num_ranks == 1:
        click.echo(f"warning: {hostfile} lists one host: this machine trains alone", err=True)
    return hosts


def _follow(recipe: Path, overrides: Sequence[str]) -> int:
    """A rank of ``mlx.launch`` that writes nothing: this process becomes the training process."""
    from mlx_finetune.app.running.hosts import fill_stdin
    from mlx_finetune.app.running.launch import CHILD_MODULE, TrainRequest, child_environment
    from mlx_finetune.recipe.load import load_recipe

    fill_stdin()
    arguments = TrainRequest(recipe, tuple(overrides)).companion_arguments()
    hardware = load_recipe(recipe, overrides).recipe.hardware
    environment = child_environment(os.environ, sys.platform, hardware)
    os.execve(sys.executable, [sys.executable, "-m", CHILD_MODULE, *arguments], environment)


def choose_view(summary: "Summary", *, as_json: bool) -> "View":
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


def _log_view(run: "RunDir", summary: "Summary") -> "View":
    """The view of a supervisor in the background."""
    from mlx_finetune.app.running.detach import LogView
    from mlx_finetune.rundir import LOG
    from mlx_finetune.train.child import log_to

    return LogView(summary.add, lambda: log_to(run.file(LOG)))
