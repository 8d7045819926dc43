"""``mlxft plan``: what a recipe will cost, before anything is loaded."""

import json
from collections.abc import Sequence
from pathlib import Path

import click

DOES_NOT_FIT = 3


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key, e.g. lora.rank=8.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def command(recipe: Path, overrides: tuple[str, ...], as_json: bool) -> int:
    """Rows, tokens, steps, memory and disk of RECIPE, and the reason for every automatic choice.

    Exits with 3 where it does not fit.
    """
    return print_plan(recipe, overrides, as_json=as_json)


def print_plan(path: Path, overrides: Sequence[str], *, as_json: bool) -> int:
    """Plan, print, and return the exit code; ``train --dry-run`` prints the same."""
    from mlx_finetune.app.plan import make_plan
    from mlx_finetune.app.plan_report import plan_json, plan_lines, warning_lines
    from mlx_finetune.hardware.limits import read_machine
    from mlx_finetune.recipe.load import load_recipe

    plan = make_plan(load_recipe(path, overrides).recipe, base=Path.cwd(), machine=read_machine())
    if as_json:
        click.echo(json.dumps(plan_json(plan), ensure_ascii=False))
    else:
        for line in plan_lines(plan, name=str(path)):
            click.echo(line)
    for line in warning_lines(plan):
        click.echo(line, err=True)
    if not plan.fits:
        return DOES_NOT_FIT
    if not as_json:
        options = "".join(f" --set {override}" for override in overrides)
        click.echo(f"\nnext: mlxft train {path}{options}", err=True)
    return 0
