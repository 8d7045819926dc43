"""``mlxft recipe``: list, show, copy, check the recipes, and print their schema. Imports mlx for pipelines only."""

import dataclasses
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

import click

from mlx_finetune.errors import Problem, RecipeError


@click.group()
def command() -> None:
    """List, show, copy or check recipes.

    \b
    mlxft recipe copy quickstart mine.toml
    mlxft recipe check mine.toml
    """


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def list_command(as_json: bool) -> None:
    """Every recipe by name: model, task, purpose."""
    from mlx_finetune.recipe.gallery import list_recipes

    recipes = list_recipes(Path.cwd())
    if as_json:
        rows = [dataclasses.asdict(recipe) | {"path": str(recipe.path)} for recipe in recipes]
        click.echo(json.dumps(rows, ensure_ascii=False, indent=2))
        return
    names = max((len(recipe.name) for recipe in recipes), default=0)
    models = max((len(recipe.model) for recipe in recipes), default=0)
    for recipe in recipes:
        click.echo(f"{recipe.name:<{names}}  {recipe.model:<{models}}  {recipe.task:<8}  {recipe.purpose}".rstrip())
    click.echo("\nnext: mlxft recipe show NAME, or mlxft recipe copy NAME mine.toml", err=True)


@command.command(short_help="Print a recipe as it is written.")
@click.argument("name")
def show(name: str) -> None:
    """Print the recipe NAME as it is written, comments included."""
    from mlx_finetune.recipe.gallery import find_recipe

    click.echo(find_recipe(name, Path.cwd()).path.read_text(encoding="utf-8"), nl=False)


@command.command(short_help="Copy a recipe, to change it.")
@click.argument("name")
@click.argument("destination", type=click.Path(path_type=Path), default=Path())
def copy(name: str, destination: Path) -> None:
    """Copy the recipe NAME to DESTINATION, a file or folder (default: this folder). Never overwrites.

    Its schema is written beside it, so that an editor knows the keys.
    """
    from mlx_finetune.recipe.gallery import PIPELINE_TASK, copy_data, copy_recipe, find_recipe

    recipe = find_recipe(name, Path.cwd())
    written = copy_recipe(recipe, destination)
    data = copy_data(recipe, Path.cwd())
    for path in [*written, *([data] if data else [])]:
        click.echo(str(path))
    if recipe.task == PIPELINE_TASK:
        click.echo(f"\nnext: mlxft pipeline {shlex.quote(str(written[0]))} --dry-run", err=True)
        return
    click.echo(f"\nnext: put your data and another output_dir into {written[0]}, then:", err=True)
    click.echo(f"      mlxft data check {shlex.quote(str(written[0]))}", err=True)


@command.command(short_help="Every problem of a recipe, with its line.")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key, e.g. lora.rank=8.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array: file, ok, problems.")
def check(files: tuple[str, ...], overrides: tuple[str, ...], as_json: bool) -> int:
    """Check each FILE (or recipe name): every problem with its line, or one line that says what it trains.

    Of the data that is there the first 20,000 rows of each file are read; mlxft data check FILE reads all.
    """
    from mlx_finetune.commands.checked import check_first_rows
    from mlx_finetune.commands.named import check_named
    from mlx_finetune.recipe.gallery import is_pipeline
    from mlx_finetune.recipe.load import load_recipe

    rows: list[dict[str, object]] = []
    problems: list[Problem] = []
    for file in files:
        path = _path_of(file)
        try:
            if is_pipeline(path):
                summary = _pipeline_summary(path, overrides, is_here=Path(file).exists())
                rows.append({"file": file, "ok": True, "summary": summary, "problems": []})
                if not as_json:
                    click.echo(f"ok: {path}: {summary}")
                continue
            loaded = load_recipe(path, overrides)
            if Path(file).exists():  # what comes with the package has its files only once it is copied
                check_named(loaded, Path.cwd())
                check_first_rows(loaded, Path.cwd())
        except RecipeError as error:
            problems += error.problems
            found = [dataclasses.asdict(problem) for problem in error.problems]
            rows.append({"file": file, "ok": False, "problems": found})
            continue
        summary = _summary(loaded)
        rows.append({"file": file, "ok": True, "summary": summary, "problems": []})
        if not as_json:
            click.echo(f"ok: {path}: {summary}")
        for notice in loaded.notices:
            click.echo(f"note: {notice}", err=True)
    if as_json:
        click.echo(json.dumps(rows, ensure_ascii=False, indent=2))
        return RecipeError.exit_code if problems else 0
    if problems:
        raise RecipeError(problems)
    return 0


@command.command(short_help="Print the JSON Schema of a recipe.")
@click.option("--markdown", is_flag=True, help="Print the reference for people instead (docs/recipe.md).")
@click.option("--pipeline", is_flag=True, help="Print the schema of a pipeline instead.")
def schema(markdown: bool, pipeline: bool) -> None:
    """Print the JSON Schema of a recipe: every key with its sentence, for editors and other programs."""
    if pipeline:
        from mlx_finetune.recipe.pipeline.check import schema_text as pipeline_schema_text

        click.echo(pipeline_schema_text(), nl=False)
        return
    if markdown:
        from mlx_finetune.recipe.reference import reference_text

        click.echo(reference_text(), nl=False)
        return
    from mlx_finetune.recipe.describe import schema_text

    click.echo(schema_text(), nl=False)


def _path_of(file: str) -> Path:
    """The path as it is written, or the recipe of that name where no such file exists."""
    from mlx_finetune.recipe.gallery import list_recipes

    if Path(file).exists() or "/" in file:
        return Path(file)
    return next((recipe.path for recipe in list_recipes(Path.cwd()) if recipe.name == file), Path(file))


def _pipeline_summary(path: Path, overrides: Sequence[str], *, is_here: bool) -> str:
    from mlx_finetune.commands.pipeline_check import pipeline_problems
    from mlx_finetune.recipe.pipeline.load import load_pipeline

    if not is_here:  # what comes with the package has its files only once it is copied
        found = load_pipeline(path, overrides, here=Path.cwd())
    else:
        found = load_pipeline(path, overrides, here=Path.cwd(), look=pipeline_problems)
    return f"pipeline {' -> '.join(stage.name for stage in found.stages)} -> {found.folder}"


def _summary(loaded: object) -> str:
    from mlx_finetune.recipe.load import LoadedRecipe

    assert isinstance(loaded, LoadedRecipe)
    recipe = loaded.recipe
    lora = recipe.lora
    method = "all weights" if lora is None else f"{'DoRA' if lora.use_dora else 'LoRA'} rank {lora.rank}"
    bits = f", {recipe.quantize}-bit base" if recipe.quantize else ""
    training = recipe.training
    epochs = training.epochs or 1
    length = f"{training.max_steps} steps" if training.max_steps else f"{epochs:g} epoch{'s' if epochs != 1 else ''}"
    data = recipe.data.path or recipe.data.train or f"{len(recipe.data.sources)} sources"
    return f"{recipe.task} of {recipe.model} on {data}, {method}{bits}, {length} -> {recipe.output_dir}"
