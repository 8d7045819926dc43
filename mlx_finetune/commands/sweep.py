"""``mlxft sweep``: short runs with other learning rates and ranks; which was best on validation, and its test."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:  # imported inside the functions: help must stay cheap (benchmarks/help_cost.py)
    from mlx_finetune.app.planning.plan import Plan
    from mlx_finetune.app.running.launch import View
    from mlx_finetune.app.sweep.design import Base
    from mlx_finetune.app.sweep.journal import Sweep
    from mlx_finetune.recipe.load import LoadedRecipe


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key, e.g. data.path=rows.jsonl."
)
@click.option(
    "--steps", type=click.IntRange(min=3), metavar="N", help="Steps of a whole run; else those of the recipe."
)
@click.option("--dry-run", is_flag=True, help="Print what would be tried; train nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the trials as JSON.")
def command(recipe: Path, overrides: tuple[str, ...], steps: int | None, dry_run: bool, as_json: bool) -> int:
    """Find a better learning rate, then a better rank, for RECIPE: at most 8 trainings.

    Each trial is a run folder under OUTPUT_DIR-sweep. Ctrl-C saves; the same command goes on. Selected by validation
    loss, and the winner is tested once on the test rows.
    """
    from mlx_finetune.recipe.load import naming_recipe

    with naming_recipe(recipe, overrides):
        loaded, plan = _planned(recipe, overrides)
        base = _base_of(plan, steps)
        if dry_run:
            return _print_plan(base, plan, as_json=as_json)
        sweep = _swept(loaded, plan, base)
    if as_json:
        click.echo(json.dumps(sweep.to_json(), ensure_ascii=False))
    else:
        from mlx_finetune.app.sweep.show import next_commands, sweep_lines

        for line in sweep_lines(sweep):
            click.echo(line)
        for line in ["", *next_commands(sweep, loaded)]:
            click.echo(line, err=True)
    return 0 if any(one.loss is not None for one in sweep.done) else 1


def _planned(path: Path, overrides: tuple[str, ...]) -> "tuple[LoadedRecipe, Plan]":
    """The recipe and its plan by arithmetic. Raises where it would be refused, does not fit or cannot be selected."""
    from mlx_finetune.app.planning.plan import make_plan
    from mlx_finetune.commands.checked import check_recipe
    from mlx_finetune.commands.plan import this_machine
    from mlx_finetune.errors import DataError, DoesNotFitError
    from mlx_finetune.recipe.load import load_recipe

    loaded = load_recipe(path, overrides)
    check_recipe(loaded, Path.cwd())
    plan = make_plan(loaded.recipe, base=Path.cwd(), machine=this_machine())
    if not plan.rows["valid"]:
        few = "add rows: too few cannot be divided" if loaded.recipe.data.val_split else "set data.val_split"
        raise DataError(
            "there are no validation rows to select by",
            f"{few}; or name two files: data.train and data.valid in the place of data.path",
        )
    if not plan.fits:
        raise DoesNotFitError("this training does not fit", "see ways to make it fit: mlxft plan RECIPE")
    return loaded, plan


def _base_of(plan: "Plan", steps: int | None) -> "Base":
    from mlx_finetune.app.sweep.design import Base

    recipe = plan.resolved.recipe
    rank = recipe.lora.rank if recipe.lora is not None else None
    return Base(float(recipe.training.learning_rate), rank, steps or plan.resolved.total_steps)


def _print_plan(base: "Base", plan: "Plan", *, as_json: bool) -> int:
    from dataclasses import asdict

    from mlx_finetune.app.sweep.show import plan_lines

    step = plan.forecast.step_seconds
    if as_json:
        click.echo(json.dumps({"base": asdict(base), "short_steps": base.short_steps}))
        return 0
    for line in plan_lines(base, step_seconds=step.expected if step else None):
        click.echo(line)
    return 0


def _swept(loaded: "LoadedRecipe", plan: "Plan", base: "Base") -> "Sweep":
    """The finished sweep, its winner tested."""
    from mlx_finetune.app.sweep.design import best_of
    from mlx_finetune.app.sweep.journal import begin_sweep, identify, write_sweep
    from mlx_finetune.app.sweep.run import run_sweep
    from mlx_finetune.commands.train import choose_view
    from mlx_finetune.dataset.corpus import load_splits
    from mlx_finetune.monitor.summary import Summary

    folder = loaded.recipe.run_folder.with_name(f"{loaded.recipe.run_folder.name}-sweep")
    data = load_splits(loaded.recipe.data, base=Path.cwd(), task=loaded.recipe.task).content_hash

    def make_view() -> "View":
        return choose_view(Summary(), as_json=False)

    sweep = begin_sweep(folder, base, identify(loaded, data))
    sweep = run_sweep(sweep, loaded, make_view=make_view, say=lambda text: click.echo(text, err=True))
    best = best_of(sweep.done)
    if best is not None and sweep.test is None:
        test = _tested(sweep.trial_folder(best.trial), loaded.recipe.task, plan.rows["test"])
        if "low" in test:  # what could not be measured may be another time
            write_sweep(replace(sweep, test=test))
        return replace(sweep, test=test)
    return sweep


def _tested(folder: Path, task: str, num_rows: int) -> Mapping[str, object]:
    """What the winner shows on the test rows: its loss, or what ``mlxft eval`` has first for a task that learns from
    other rows."""
    from mlx_finetune.recipe.heads import SCORED_TASKS
    from mlx_finetune.recipe.preference import PREFERENCE_TASKS

    if not num_rows:
        return {"sentence": "there are no test rows: not tested"}
    has_own_measures = task in SCORED_TASKS or task in PREFERENCE_TASKS
    return _test(folder, () if has_own_measures else ("--tasks", "loss"))


def _test(folder: Path, options: Sequence[str]) -> Mapping[str, object]:
    """The measure that leads, of the winner on the test rows, by ``mlxft eval`` in a process of its own."""
    import subprocess

    click.echo(f"testing the winner, {folder} ...", err=True)
    arguments = [sys.executable, "-m", "mlx_finetune", "eval", str(folder), *options, "--json"]
    child = subprocess.run(arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    try:
        report = json.loads(child.stdout)
        lead = report["measures"][0]
        tuned = lead["sides"]["tuned"]
        if report["data"]["split"] != "test":
            raise ValueError("not the test rows")
    except (ValueError, KeyError, IndexError):
        said = [line.removeprefix("error: ") for line in child.stderr.splitlines() if line.startswith("error: ")]
        why = said[0] if said else f"mlxft eval ended with {child.returncode}"
        return {"sentence": f"the winner was not tested: {why}"}
    interval = f" ({tuned['low']:.4f} to {tuned['high']:.4f})" if tuned["low"] is not None else ""
    wanted, measured = report["data"]["num_rows"], tuned["num_rows"]
    rows = f"{measured} test rows"
    if measured < wanted:
        rows = f"{measured} of {wanted} test rows, the others could not be measured"
    sentence = f"on {rows}, seen once: {lead['title']} {tuned['value']:.4f}{interval}"
    if baseline := report.get("baseline"):
        sentence = f"{sentence}. {baseline['sentence']}"
    return {lead["name"]: tuned["value"], "low": tuned["low"], "high": tuned["high"], "sentence": sentence}
