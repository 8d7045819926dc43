"""``mlxft plan``: what a recipe will cost, measured on this machine, or predicted for another Mac."""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:  # imported inside the functions: help must stay cheap (benchmarks/help_cost.py)
    from mlx_finetune.app.planning.plan import Plan
    from mlx_finetune.hardware.limits import Machine
    from mlx_finetune.hardware.profile import Profile
    from mlx_finetune.recipe.load import LoadedRecipe

DOES_NOT_FIT = 3


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key, e.g. lora.rank=8.")
@click.option("--no-measure", is_flag=True, help="Arithmetic only: under a second, no time where no run was here yet.")
@click.option("--predict", metavar="MAC", help='Plan for another Mac, e.g. "M4 Max 64GB" or "M4 Max 32-core 36GB".')
@click.option("--fix", type=click.IntRange(min=1), metavar="N", help="Plan with the N-th way to make it fit.")
@click.option("--lr-range", is_flag=True, help="Try rising learning rates in 100 real steps, and suggest one.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def command(
    recipe: Path,
    overrides: tuple[str, ...],
    no_measure: bool,
    predict: str | None,
    fix: int | None,
    lr_range: bool,
    as_json: bool,
) -> int:
    """Rows, tokens, steps, memory, time and disk of RECIPE, and the reason for every automatic choice.

    Takes a few real steps on the longest and on typical rows and changes nothing: under half a minute, on a machine
    that is busy with other programs more. Exits with 3 where it does not fit, with ways to make it fit; --fix N plans
    with one of them and prints the command.
    """
    if lr_range:
        from mlx_finetune.commands.plan_lr_range import print_range

        _refuse_beside_lr_range(no_measure=no_measure, predict=predict, fix=fix)
        return print_range(recipe, overrides, as_json=as_json)
    return print_plan(recipe, overrides, as_json=as_json, measures=not no_measure, predict=predict, fix=fix)


def _refuse_beside_lr_range(*, no_measure: bool, predict: str | None, fix: int | None) -> None:
    """Raise ``UsageError`` for options that say something else than to take steps here."""
    from mlx_finetune.errors import UsageError

    given = {"--no-measure": no_measure, "--predict": predict is not None, "--fix": fix is not None}
    for name, is_given in given.items():
        if is_given:
            raise UsageError(f"--lr-range trains for some steps here, which {name} is not about", f"leave out {name}")


def print_plan(
    path: Path,
    overrides: Sequence[str],
    *,
    as_json: bool,
    measures: bool = False,
    predict: str | None = None,
    fix: int | None = None,
    more: Sequence[str] = (),
    num_processes: int = 1,
) -> int:
    """Plan, print, and return the exit code; ``train --dry-run`` prints the same without measuring.

    ``num_processes`` train together. ``more`` are options of the training, for the command that is proposed.
    """
    from mlx_finetune.app.planning.plan_report import plan_json, plan_lines, warning_lines
    from mlx_finetune.recipe.load import naming_recipe
    from mlx_finetune.recipe.overrides import train_command

    with naming_recipe(path, overrides):
        plan, overrides, profile_warning = _plan(
            path, overrides, measures=measures, predict=predict, fix=fix, num_processes=num_processes
        )
    options = [part for one in overrides for part in ("--set", one)]
    if as_json:
        click.echo(json.dumps(plan_json(plan, path=path, overrides=overrides, more=more), ensure_ascii=False))
    else:
        for line in plan_lines(plan, name=str(path)):
            click.echo(line)
    if profile_warning:
        click.echo(f"warning: {profile_warning}", err=True)
    for line in warning_lines(plan, command=shlex.join(["mlxft", "plan", str(path), *options])):
        click.echo(line, err=True)
    if not plan.fits:
        return DOES_NOT_FIT
    if not as_json:
        run = None if predict else plan.recipe.run_folder
        click.echo(f"\n{'there: ' if predict else 'next: '}{train_command(path, overrides, run, more)}", err=True)
    return 0


def _plan(
    path: Path,
    overrides: Sequence[str],
    *,
    measures: bool,
    predict: str | None,
    fix: int | None,
    num_processes: int,
) -> "tuple[Plan, Sequence[str], str]":
    """The plan, the overrides that are in it, and a warning about the profile of this machine."""
    from mlx_finetune.app.planning.plan import make_plan
    from mlx_finetune.commands.checked import check_recipe
    from mlx_finetune.errors import UsageError
    from mlx_finetune.hardware.planning.chips import parse_mac
    from mlx_finetune.hardware.profile import Corrections, Profile, machine_key, tuned_settings
    from mlx_finetune.recipe.load import load_recipe

    mac = parse_mac(predict) if predict is not None else None
    loaded = load_recipe(path, overrides)
    check_recipe(loaded, Path.cwd())
    machine = mac.machine if mac is not None else this_machine()
    profile = Profile() if mac is not None else _profile()
    known = profile.of(machine_key(machine)) if mac is None else Corrections()

    def plan_of(loaded: "LoadedRecipe") -> "Plan":
        plan = make_plan(
            loaded.recipe,
            base=Path.cwd(),
            machine=machine,
            corrections=known,
            tuned=None if mac is not None else tuned_settings(profile, machine, loaded.recipe),
            mac=mac,
            num_processes=num_processes,
        )
        return _measured(plan, loaded) if measures and mac is None and plan.fits and plan.source else plan

    plan = plan_of(loaded)
    if fix is None:
        return plan, overrides, profile.warning
    if plan.fixes:
        if fix > len(plan.fixes):
            ways = "is only one way" if len(plan.fixes) == 1 else f"are {len(plan.fixes)} ways"
            raise UsageError(f"there {ways} to make it fit, so there is no --fix {fix}", "see them: leave out --fix")
        overrides = plan.fixes[fix - 1].merged(overrides)
        plan = plan_of(load_recipe(path, overrides))
    elif plan.fits:
        click.echo("it fits as it is: nothing was changed", err=True)
    return plan, overrides, profile.warning


def plan_recipe(loaded: "LoadedRecipe", *, measures: bool) -> "Plan":
    """The plan of a recipe for this machine, measured where earlier runs do not tell the time. Raises ``MlxftError``.

    Without ``measures`` by arithmetic and earlier runs alone.
    """
    from mlx_finetune.app.planning.plan import make_plan
    from mlx_finetune.hardware.profile import machine_key, tuned_settings

    machine, profile = this_machine(), _profile()
    plan = make_plan(
        loaded.recipe,
        base=Path.cwd(),
        machine=machine,
        corrections=profile.of(machine_key(machine)),
        tuned=tuned_settings(profile, machine, loaded.recipe),
    )
    is_known = plan.forecast.step_seconds is not None
    return _measured(plan, loaded) if measures and not is_known and plan.fits and plan.source else plan


def _measured(plan: "Plan", loaded: "LoadedRecipe") -> "Plan":
    """The plan with measured figures, which are kept for the comparison after the run."""
    from mlx_finetune.app.planning.measuring import measure
    from mlx_finetune.app.planning.plan import with_measured
    from mlx_finetune.app.tune.buffers import tuned_buffers
    from mlx_finetune.commands.opening import LoadingTalk
    from mlx_finetune.hardware.sensors import system_sensors

    talk = LoadingTalk()
    if sys.stderr.isatty():
        click.echo(
            "measuring real steps on the longest and on typical rows, under half a minute on an idle machine ...",
            err=True,
        )
    hardware = loaded.recipe.hardware.model_copy(update=tuned_buffers(loaded.recipe))
    try:
        found = measure(loaded.path, loaded.overrides, talk, hardware=hardware)
        measured = with_measured(plan, found)
    finally:
        talk.clear()
    if measured.measured is not None:
        _remember(measured)
    if system_sensors().read_power().on_battery:
        warning = "measured on battery, where a laptop may be slower than on mains power"
        return replace(measured, warnings=(*measured.warnings, warning))
    return measured


def _remember(plan: "Plan") -> None:
    """Keep the figures until the run is over; a folder that cannot be written to costs only the comparison."""
    import contextlib
    import time

    from mlx_finetune.errors import RunError
    from mlx_finetune.hardware.profile import Planned, machine_key, plan_key, remember_plan

    forecast = plan.forecast
    seconds = forecast.step_seconds.expected if forecast.step_seconds else None
    planned = Planned(
        forecast.peak_bytes.expected, seconds, True, time_factor=plan.corrections.time_factor, made=time.time()
    )
    with contextlib.suppress(OSError, RunError):
        remember_plan(profile_path(), plan_key(plan.recipe, machine_key(plan.machine)), planned)


def this_machine() -> "Machine":
    """This machine, with what only MLX knows of a Mac: its recommended working set."""
    from mlx_finetune.hardware.device import read_metal
    from mlx_finetune.hardware.limits import read_machine

    if sys.platform != "darwin":
        return read_machine()
    try:
        metal = read_metal()
    except (ImportError, OSError, RuntimeError):
        return read_machine()
    return read_machine(on_gpu=metal.is_available, working_set_bytes=metal.working_set_bytes)


def _profile() -> "Profile":
    from mlx_finetune.hardware.profile import read_profile

    return read_profile(profile_path())


def profile_path() -> Path:
    """The profile of this user's machines."""
    from mlx_finetune.hardware.profile import FILE_NAME
    from mlx_finetune.model.sources.catalogue import cache_folder

    return cache_folder() / FILE_NAME
