"""``mlxft models``: what the catalogue offers, what is on this disk, fetching, removing."""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlx_finetune.commands.opening import LoadingTalk
from mlx_finetune.errors import ModelError, UsageError
from mlx_finetune.units import format_bytes, format_count

if TYPE_CHECKING:  # imported inside the functions: help must stay cheap (benchmarks/help_cost.py)
    from mlx_finetune.model.sources.catalogue import CachedModel


@click.group()
def command() -> None:
    """List, fetch or remove models."""


@command.command("list", short_help="Short names, and the models on this disk.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list on stdout.")
def list_models(as_json: bool) -> int:
    """Short names that a recipe may use, and every model on this disk with its size."""
    from mlx_finetune.model.sources.catalogue import cache_folder, cached_models, hub_cache_folder

    rows = model_rows(list(cached_models(cache_folder(), hub_cache_folder())))
    if as_json:
        click.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return 0
    table = [("NAME", "PARAMETERS", "LICENCE", "ON DISK", "WHERE")]
    table += [_cells(row) for row in rows]
    widths = [max(len(line[column]) for line in table) for column in range(4)]
    for *cells, last in table:
        padded = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        click.echo(f"{padded}  {last}".rstrip())
    click.echo("Fetch one: mlxft models get NAME   (a recipe fetches its own)", err=True)
    return 0


def model_rows(cached: "list[CachedModel]") -> list[dict[str, object]]:
    """One row for each catalogue entry, then one for each other model on this disk. Sizes are bytes."""
    from mlx_finetune.model.sources.catalogue import CATALOGUE, find_entry

    rows: list[dict[str, object]] = []
    known: set[Path] = set()
    for entry in CATALOGUE:
        here = [model for model in cached if find_entry(model.name) == entry]
        known |= {model.folder for model in here}
        rows.append(
            {
                "name": entry.name,
                "hub_id": entry.hub_id,
                "num_parameters": entry.num_parameters,
                "license": entry.license,
                "needs_approval": entry.needs_approval,
                "download_bytes": entry.hub_bytes,
                "bytes_on_disk": sum(model.num_bytes for model in here),
                "folders": [str(model.folder) for model in here],
            }
        )
    for model in cached:
        if model.folder not in known:
            rows.append({"name": model.name, "bytes_on_disk": model.num_bytes, "folders": [str(model.folder)]})
    return rows


def _cells(row: dict[str, object]) -> tuple[str, str, str, str, str]:
    size, count, folders = row["bytes_on_disk"], row.get("num_parameters"), row["folders"]
    assert isinstance(size, int)
    assert isinstance(folders, list)
    download = row.get("download_bytes")
    where = " ".join(str(folder) for folder in folders)
    if not where and isinstance(download, int):
        where = f"{row['hub_id']} (about {format_bytes(download)})"
    return (
        str(row["name"]),
        format_count(count) if isinstance(count, int) else "",
        str(row.get("license", "")) + (" (asks for approval)" if row.get("needs_approval") else ""),
        format_bytes(size) if size else "-",
        where,
    )


@command.command("get", short_help="Fetch a model now.")
@click.argument("name")
@click.option("--revision", metavar="COMMIT", help="Commit, tag or branch of a hub model.")
@click.option("--json", "as_json", is_flag=True, help="Print folder, source and hash as JSON on stdout.")
def get_model(name: str, revision: str | None, as_json: bool) -> int:
    """Fetch NAME (short name, hub id or .gguf file) now, so that training starts without a download."""
    from mlx_finetune.model.files.config import read_config
    from mlx_finetune.model.sources.fetch import fetch_model
    from mlx_finetune.recipe.asking import talk_command

    talk = LoadingTalk()
    try:
        local = fetch_model(name, revision=revision, report=talk)
    finally:
        talk.clear()
    if as_json:
        fields = ("name", "source", "revision", "sha256", "license")
        row = {field: getattr(local, field) for field in fields}
        click.echo(json.dumps({**row, "folder": str(local.folder)}, indent=1))
        return 0
    click.echo(str(local.folder))
    click.echo(f"{local.name} from {local.source}, licence {local.license or 'not stated'}", err=True)
    task = "seq2seq" if read_config(local.folder).get("model_type") == "t5" else ""
    click.echo(f'Use it in a recipe: model = "{name}"   or try it: {talk_command(task, shlex.quote(name))}', err=True)
    return 0


@command.command("rm", short_help="Remove a model from this disk.")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
def remove_model(name: str, yes: bool) -> int:
    """Remove NAME from the caches on this disk. Folders that were not fetched by this program or the hub stay."""
    from mlx_finetune.model.sources.catalogue import (
        cache_folder,
        cached_models,
        find_entry,
        hub_cache_folder,
        remove_cached,
    )

    entry = find_entry(name)
    names = {name} | ({entry.name, entry.hub_id} if entry else set())
    found = [model for model in cached_models(cache_folder(), hub_cache_folder()) if model.name in names]
    if not found:
        if Path(name).exists():
            raise ModelError(f"{name} is not in a cache of fetched models; it is left alone", "remove it yourself")
        raise ModelError(f"{name} is not on this disk", "see: mlxft models list")
    for model in found:
        shared = ", shared with other programs" if model.kind == "hub" else ""
        click.echo(f"{model.folder}  {format_bytes(model.num_bytes)}{shared}", err=True)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("nothing was removed: there is no terminal to ask on", f"mlxft models rm {name} --yes")
        if not click.confirm("Remove?", err=True):
            click.echo("Nothing was removed.", err=True)
            return 1
    for model in found:
        remove_cached(model)
    click.echo(f"Removed {name}, {format_bytes(sum(model.num_bytes for model in found))}.", err=True)
    return 0
