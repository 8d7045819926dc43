"""The schemas of [serve]: read before anything else of a run and kept in its folder, where ``mlxft serve`` looks."""

import json
from collections.abc import Mapping
from pathlib import Path

from mlx_finetune import durable, rundir
from mlx_finetune.recipe.load import LoadedRecipe
from mlx_finetune.recipe.paths import named_file
from mlx_finetune.rundir import RunDir
from mlx_finetune.scoring.json_schema import Schema, read_schema


def read_schemas(loaded: LoadedRecipe, run: RunDir) -> Mapping[str, Schema]:
    """Path of each endpoint -> its schema. A name counts like data from here, else from the recipe's folder.

    A run that goes on where that file is no longer there takes its own copy. Raises ``DataError`` for a schema that
    cannot be read or used.
    """
    folder = loaded.path.absolute().parent
    found: dict[str, Schema] = {}
    for endpoint in loaded.recipe.serve.endpoints:
        file, kept = named_file(endpoint.schema, Path().absolute(), folder), _kept(run, endpoint.path)
        found[endpoint.path] = read_schema(kept if kept.is_file() and not file.is_file() else file)
    return found


def keep_schemas(run: RunDir, schemas: Mapping[str, Schema]) -> None:
    """Write them into the run folder, keys in the order in which they stand: an answer is written in that order."""
    if schemas:
        durable.make_folder(run.file(rundir.SCHEMAS))
    for path, schema in schemas.items():
        durable.write_text(_kept(run, path), json.dumps(schema, indent=2, ensure_ascii=False) + "\n")


def _kept(run: RunDir, path: str) -> Path:
    return run.file(rundir.SCHEMAS) / f"{path}.json"
