"""The recipes that come with mlxft and those of the user: found by name, listed, copied.

Looked for in ``recipes`` of the current folder, then in the installed package, then in the checkout the package
runs from; of two recipes with one name the first counts.
"""

import json
import shlex
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import mlx_finetune
from mlx_finetune.errors import UsageError
from mlx_finetune.recipe.describe import SCHEMA_NAME, schema_text
from mlx_finetune.recipe.pipeline import check as pipeline
from mlx_finetune.recipe.scratch import SCRATCH
from mlx_finetune.recipe.toml_file import MAX_BYTES

#: Stands in the place of the task for a pipeline, which lies among the recipes.
PIPELINE_TASK = "pipeline"
#: Rows of the pipelines that come with mlxft.
PIPELINE_DATA = "data/pipeline"
_PACKAGE = Path(mlx_finetune.__file__).parent


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """One recipe in a gallery. ``purpose`` is its first line of comment; what cannot be read is empty."""

    name: str
    path: Path
    model: str
    task: str
    purpose: str


def list_recipes(here: Path = Path()) -> list[RecipeFile]:
    """Every recipe that ``find_recipe`` finds from the folder ``here``, by name."""
    found: dict[str, RecipeFile] = {}
    for folder in _folders(here):
        for path in sorted(folder.glob("*.toml")):
            found.setdefault(path.stem, _describe(path))
    return [found[name] for name in sorted(found)]


def find_recipe(name: str, here: Path = Path()) -> RecipeFile:
    """The recipe called ``name`` (with or without .toml), or the file of that path. Raises ``UsageError``."""
    path = here / name
    if path.suffix == ".toml" and path.is_file():
        return _describe(Path(name))
    recipes = {recipe.name: recipe for recipe in list_recipes(here)}
    wanted = name.removesuffix(".toml").removeprefix("recipes/")
    if wanted in recipes:
        return recipes[wanted]
    if "/" in wanted and (stage := find_named(wanted, here, here)) is not None:
        return _describe(stage)  # of a pipeline
    near = get_close_matches(wanted, recipes, 1)
    hint = f"did you mean `{near[0]}`?" if near else "`mlxft recipe list` shows the recipes there are"
    raise UsageError(f"there is no recipe `{name}`", hint)


def find_named(name: str, here: Path, beside: Path) -> Path | None:
    """The recipe that a pipeline in the folder ``beside`` names: a path from ``here`` or from there, else a name.

    A name may have the folder of a pipeline in it: ``pipeline-scratch/sft``.
    """
    path = Path(name).expanduser()
    folders = (here, beside, *_folders(here))
    with_ending = path if path.suffix == ".toml" else path.with_name(f"{path.name}.toml")
    found = next((folder / with_ending for folder in folders if (folder / with_ending).is_file()), None)
    return found.relative_to(here) if found is not None and found.is_relative_to(here) else found


def copy_recipe(recipe: RecipeFile, destination: Path) -> list[Path]:
    """Copy the recipe to the file or folder ``destination``, and its schema beside it. Returns what was written.

    The commands in its comments name the copy.

    The data of a recipe that comes with an installed package is copied too, where the recipe expects it.
    Never overwrites: raises ``UsageError``.
    """
    target = destination / f"{recipe.name}.toml" if destination.is_dir() else destination
    if target.suffix != ".toml":
        raise UsageError(f"{target} is not the name of a recipe", f"write {target}.toml, or a folder that exists")
    text = recipe.path.read_text(encoding="utf-8")
    text = text.replace(f" recipes/{recipe.path.name}", f" {shlex.quote(str(target))}")  # the commands in its comments
    try:
        with target.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{target} exists and is not overwritten", "name another file, or remove it first") from None
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {error.strerror}", "name a folder that exists") from None
    written = [target]
    is_of_pipeline = recipe.task == PIPELINE_TASK
    schema = target.with_name(pipeline.SCHEMA_NAME if is_of_pipeline else SCHEMA_NAME)
    content = pipeline.schema_text() if is_of_pipeline else schema_text()
    if _may_write_schema(schema, json.loads(content)):
        schema.write_text(content, encoding="utf-8")
        written.append(schema)
    return written


def copy_data(recipe: RecipeFile, here: Path) -> Path | None:
    """Copy the data that came with the package to where the recipe looks from ``here``; None where none is missing.

    Of a pipeline that is the folder with the rows of all its stages.
    """
    if recipe.task == PIPELINE_TASK:
        return _copy_folder(recipe, PIPELINE_DATA, here)
    data = read_values(recipe.path).get("data")
    path = cast(dict[str, Any], data).get("path") if isinstance(data, dict) else None
    return _copy_folder(recipe, path, here)


def _copy_folder(recipe: RecipeFile, path: object, here: Path) -> Path | None:
    if not isinstance(path, str) or Path(path).is_absolute() or ".." in Path(path).parts:
        return None
    shipped, target = _PACKAGE / path, here / path
    if recipe.path.parent != _PACKAGE / "recipes" or not shipped.is_dir() or target.exists():
        return None
    shutil.copytree(shipped, target)
    return target


def is_pipeline(path: Path) -> bool:
    """True for a file with stages; a file that cannot be read is taken for a recipe."""
    return "stages" in read_values(path)


def recipe_files(here: Path, beside: Path) -> Iterator[Path]:
    """Every recipe and pipeline in the folder ``beside`` and in the gallery, those of its pipelines' stages too."""
    folders = (beside, *_folders(here))
    files = (path for pattern in ("*.toml", "*/*.toml") for folder in folders for path in sorted(folder.glob(pattern)))
    yield from dict.fromkeys(path.relative_to(here) if path.is_relative_to(here) else path for path in files)


def _folders(here: Path) -> Iterator[Path]:
    yield here / "recipes"
    yield _PACKAGE / "recipes"
    if (_PACKAGE.parent / "pyproject.toml").is_file():
        yield _PACKAGE.parent / "recipes"


def _describe(path: Path) -> RecipeFile:
    values = read_values(path)
    if "stages" in values:
        return RecipeFile(path.stem, path, "", PIPELINE_TASK, _purpose(path))
    task = values.get("task", "pretrain" if "scratch" in values else "sft")
    return RecipeFile(path.stem, path, _model(values), str(task), _purpose(path))


def _model(values: dict[str, Any]) -> str:
    model = values.get("model", SCRATCH if "scratch" in values else "")
    return model if isinstance(model, str) else ""


def read_values(path: Path) -> dict[str, Any]:
    """What a recipe or a pipeline says, unchecked; empty for what cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")) if path.stat().st_size <= MAX_BYTES else {}
    except (OSError, ValueError, RecursionError):
        return {}


def _purpose(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            first = [file.readline(1000) for _ in range(5)]
    except (OSError, ValueError):
        return ""
    comments = [line[1:].strip() for line in first if line.startswith("#") and not line.startswith("#:")]
    return comments[0] if comments else ""


def _may_write_schema(path: Path, ours: Mapping[str, object]) -> bool:
    """Is there no such file, or an older one of the schema ``ours``?"""
    if not path.exists():
        return True
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    is_ours = isinstance(found, dict) and cast(dict[str, object], found).get("title") == ours["title"]
    return is_ours and found != ours
