"""``mlxft launchers``: the double-click launchers on the Desktop: written, checked, removed."""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:  # imported inside the functions: help must stay cheap (benchmarks/help_cost.py)
    from mlx_finetune.app.desktop.launcher import Target

_FOLDER = click.argument("folder", type=click.Path(path_type=Path), required=False, metavar="[DIR]")


@click.group()
def command() -> None:
    """Write, check or remove the double-click launchers, in DIR or on the Desktop.

    Those that are made here open without a dialog of macOS; downloaded ones may not.
    """


def desktop_folder() -> Path:
    """The Desktop of this user."""
    return Path.home() / "Desktop"


def launcher_target() -> "Target":
    """What launchers that are made now call."""
    import mlx_finetune
    from mlx_finetune.app.desktop.launcher import find_target

    package = Path(mlx_finetune.__file__).resolve().parent
    return find_target(Path.cwd(), package=package, prefix=Path(sys.prefix), python=Path(sys.executable))


def _folder(given: Path | None) -> Path:
    return (given or desktop_folder()).expanduser().absolute()


@command.command(short_help="Write them, or bring them up to date.")
@_FOLDER
def install(folder: Path | None) -> int:
    """Write a launcher for each thing to do into DIR (default: the Desktop): Train, Monitor, Chat and the others.

    They name this app and this folder with absolute paths: call this again when either has moved. A file of the same
    name that is not ours is never written over; then the exit code is 1.
    """
    from mlx_finetune.app.desktop import launcher

    where, target = _folder(folder), launcher_target()
    done = launcher.install(where, target)
    for one in done:
        click.echo(f"{one.what}: {one.path}" if one.what != "foreign" else f"left alone, not ours: {one.path}")
    there = "" if folder is None else f" {shlex.quote(str(where))}"
    following = f"next: double-click Train, or type: mlxft launchers check{there}"
    click.echo(f"\nthey work in {target.folder}; {following}", err=True)
    return int(any(one.what == "foreign" for one in done))


@command.command(short_help="Are they still good?")
@_FOLDER
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object: folder, installed, problems.")
def check(folder: Path | None, as_json: bool) -> int:
    """Say which launchers in DIR are missing, outdated, point to what has moved, cannot be executed or are quarantined.

    Each with the command that mends it. Exit code 1 where there is something to mend, or none is there.
    """
    from mlx_finetune.app.desktop.installed import check as check_installed
    from mlx_finetune.app.desktop.launcher import NAMES, is_ours, launcher_path

    where = _folder(folder)
    found = check_installed(where, launcher_target())
    num_installed = sum(is_ours(launcher_path(where, verb)) for verb in NAMES)
    if as_json:
        problems = [
            {"name": one.name, "path": str(one.path), "kind": one.kind, "message": one.message, "command": one.command}
            for one in found
        ]
        shown = {"folder": str(where), "installed": num_installed, "problems": problems}
        click.echo(json.dumps(shown, ensure_ascii=False, indent=1))
    elif not num_installed:
        click.echo(f"there are no launchers in {where}")
        click.echo(f"put them there: {shlex.join(['mlxft', 'launchers', 'install', str(where)])}", err=True)
    else:
        for one in found:
            click.echo(f"{one.kind}: {one.message}\n  mend it: {one.command}")
        if not found:
            click.echo(f"all {num_installed} launchers in {where} are good")
    return int(bool(found) or not num_installed)


@command.command(short_help="Remove those that are ours.")
@_FOLDER
def remove(folder: Path | None) -> int:
    """Remove the launchers in DIR (default: the Desktop) that were written by this app, and nothing else."""
    from mlx_finetune.app.desktop import launcher

    where = _folder(folder)
    done = launcher.remove(where)
    for one in done:
        click.echo(f"removed: {one.path}" if one.what == "removed" else f"left alone, not ours: {one.path}")
    if not done:
        click.echo(f"there are no launchers in {where}", err=True)
    return 0
