"""``mlxft data``: check, preview, stats and split. Nothing here imports mlx; tokens are counted only for a recipe."""

import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlx_finetune.errors import DataError, UsageError

if TYPE_CHECKING:
    from mlx_finetune.app.data.data_report import TokenReport
    from mlx_finetune.dataset.check import DataReport
    from mlx_finetune.events import Phase

_TARGET = click.argument("target", metavar="PATH_OR_RECIPE")
_OVERRIDES = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key of the recipe for this call."
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")


@click.group()
def command() -> None:
    """Check, preview, count or split training data.

    PATH_OR_RECIPE is a data file, a folder with train, valid and test files, a load_from_disk folder, a hub id, or a
    recipe (.toml), which adds what its model and settings make of the rows.
    """


@command.command(short_help="Every problem in the data at once.")
@_TARGET
@_OVERRIDES
@_JSON
def check(target: str, overrides: tuple[str, ...], as_json: bool) -> int:
    """Every problem in the data at once; exit code 1 where there are errors."""
    report, tokens, note = _examine(target, overrides)
    from mlx_finetune.app.data.data_report import num_errors, problem_lines, report_json, summary_lines

    if as_json:
        click.echo(json.dumps(report_json(report, tokens), ensure_ascii=False, indent=1))
    else:
        _print(problem_lines(report, tokens), err=True)
        _print(summary_lines(report, tokens))
        if note:
            click.echo(note)
        click.echo(_verdict(report, tokens, target, overrides), err=True)
    return 1 if num_errors(report, tokens) else 0


@command.command()
@_TARGET
@_OVERRIDES
@_JSON
def stats(target: str, overrides: tuple[str, ...], as_json: bool) -> int:
    """Rows, lengths, roles and repeats."""
    report, tokens, _ = _examine(target, overrides)
    from mlx_finetune.app.data.data_report import num_errors, report_json, stats_lines
    from mlx_finetune.units import counted

    if as_json:
        click.echo(json.dumps(report_json(report, tokens), ensure_ascii=False, indent=1))
    else:
        _print(stats_lines(report, tokens))
        if errors := num_errors(report, tokens):
            click.echo(f"{counted(errors, 'error')}; see: {_typed('data check', target, overrides)}", err=True)
    return 1 if num_errors(report, tokens) else 0


@command.command(short_help="Rows as the model sees them, token by token.")
@_TARGET
@_OVERRIDES
@_JSON
@click.option("--rows", type=click.IntRange(min=1), default=3, show_default=True, help="Rows that are shown.")
@click.option("--model", help="For bare data: whose tokens; default is the quickstart's model, where it was fetched.")
def preview(target: str, overrides: tuple[str, ...], as_json: bool, rows: int, model: str | None) -> None:
    """Rows as the model sees them: each token learned, not learned or cut."""
    from mlx_finetune.app.data.preview import show_preview

    show_preview(target, rows=rows, overrides=overrides, model=model, as_json=as_json)


@command.command(short_help="Write train, valid and test from one file.")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for the files; default is PATH without its ending."
)
@click.option(
    "--val", type=click.FloatRange(0, 1, max_open=True), default=0.1, show_default=True, help="Share of valid."
)
@click.option(
    "--test", type=click.FloatRange(0, 1, max_open=True), default=0.1, show_default=True, help="Share of test."
)
@click.option("--seed", type=int, help="Draw other rows; left out, the sides are those a training would choose.")
def split(path: Path, out: Path | None, val: float, test: float, seed: int | None) -> int:
    """Write train.jsonl, valid.jsonl and test.jsonl from one file, by content; equal rows stay together."""
    from mlx_finetune.dataset.divide import divide_file
    from mlx_finetune.dataset.sources.locate import locate

    if val + test >= 1:
        raise UsageError(f"--val {val} and --test {test} leave nothing to train on")
    located = locate(str(path), base=Path())
    if list(located) != ["train"] or len(located["train"]) != 1:
        raise DataError(f"{path} is split already: {', '.join(located)}")
    folder = out or _without_ending(path)
    counts = divide_file(located["train"][0], folder, val_split=val, test_split=test, seed=seed)
    for name, count in counts.items():
        click.echo(f"{folder / name}: {count} rows")
    click.echo(f'use it in a recipe: [data] path = "{folder}"', err=True)
    return 0


def _without_ending(path: Path) -> Path:
    from mlx_finetune.dataset.row import file_kind

    stem = path.with_suffix("") if path.suffix == ".gz" else path
    return stem.with_suffix("") if file_kind(stem) else stem.with_name(f"{path.name}-split")


def _examine(target: str, overrides: tuple[str, ...]) -> "tuple[DataReport, TokenReport | None, str]":
    """The report on data, its tokens where a recipe names a model, and how a training divides few rows."""
    from mlx_finetune.dataset.check import check_files
    from mlx_finetune.dataset.sources.locate import locate

    if not target.endswith(".toml"):
        if overrides:
            raise UsageError(f"--set changes a recipe, and {target!r} is none", "a recipe ends in .toml")
        report = check_files([locate(target, base=Path())])
        return report, None, _note_on(target, report)
    return _examine_recipe(Path(target), overrides)


def _note_on(target: str, report: "DataReport") -> str:
    """How a recipe that says nothing else divides the rows of bare data, where they are few."""
    from mlx_finetune.dataset.corpus import FEW_ROWS, load_splits
    from mlx_finetune.dataset.kinds import task_for
    from mlx_finetune.recipe.data import DataRecipe

    if report.num_errors or report.num_rows >= FEW_ROWS:
        return ""
    data = DataRecipe.model_validate({"path": target})
    return load_splits(data, base=Path(), task=task_for(report.files[0].format)).note


def _examine_recipe(path: Path, overrides: tuple[str, ...]) -> "tuple[DataReport, TokenReport | None, str]":
    """The report on a recipe's data; tokens only where every row can be used."""
    from mlx_finetune.dataset.check import check_files
    from mlx_finetune.dataset.corpus import load_splits, locate_sources
    from mlx_finetune.dataset.corrections import find_corrections
    from mlx_finetune.recipe.load import load_recipe, naming_recipe
    from mlx_finetune.recipe.paths import check_paths

    loaded = load_recipe(path, overrides)
    check_paths(loaded, Path())
    recipe = loaded.recipe
    corrections = find_corrections(recipe, base=Path())
    located = [source.located for source in locate_sources(recipe.data, Path())]
    located += [{"train": corrections}] if corrections else []
    report = check_files(located, columns=recipe.data.columns, format=recipe.data.format, task=recipe.task)
    if report.num_errors:
        return report, None, ""
    from mlx_finetune.app.data.data_tokens import count_tokens

    with naming_recipe(path, overrides):
        splits = load_splits(recipe.data, base=Path(), task=recipe.task, corrections=corrections)
        return report, count_tokens(recipe, splits, Path(), _phase), splits.note


def _phase(phase: "Phase") -> None:
    """One line for each beginning of a download; the parts in between are not shown."""
    if not phase.done:
        click.echo(f"{phase.name} {phase.detail}".rstrip(), err=True)


def _print(lines: Iterable[str], *, err: bool = False) -> None:
    for line in lines:
        click.echo(line, err=err)


def _verdict(report: "DataReport", tokens: "TokenReport | None", target: str, overrides: tuple[str, ...]) -> str:
    from mlx_finetune.app.data.data_report import num_errors, num_warnings
    from mlx_finetune.units import counted

    warnings = counted(num_warnings(report, tokens), "warning")
    if errors := num_errors(report, tokens):
        return f"{counted(errors, 'error')}, {warnings}: a training would refuse this data"
    if not target.endswith(".toml"):
        return f"no errors, {warnings}; next: {_typed('data stats', target, overrides)}"
    from mlx_finetune.recipe.load import load_recipe
    from mlx_finetune.recipe.overrides import train_command

    run = load_recipe(Path(target), overrides).recipe.run_folder
    return f"no errors, {warnings}; next: {train_command(Path(target), overrides, run)}"


def _typed(command: str, target: str, overrides: tuple[str, ...]) -> str:
    options = [part for one in overrides for part in ("--set", one)]
    return shlex.join(["mlxft", *command.split(), target, *options])
