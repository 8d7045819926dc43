"""Relative paths of a recipe count from the folder where mlxft is started; data that lies elsewhere is refused.

A recipe whose data has to be fetched by hand says how in a comment ``# Data: ...``: the way out where it is missing.
"""

import itertools
import shlex
from collections.abc import Iterator
from pathlib import Path

from mlx_finetune.errors import Problem, RecipeError
from mlx_finetune.recipe.data import DataRecipe
from mlx_finetune.recipe.load import LoadedRecipe


def check_paths(loaded: LoadedRecipe, base: Path) -> None:
    """Refuse data that is not below ``base`` but below a folder above the recipe, as a hub id would be asked for then.

    Raises ``RecipeError`` naming that folder, or for data that is nowhere what the recipe says about getting it.
    """
    above = loaded.path.absolute().parents
    for key, text in data_paths(loaded.recipe.data):
        path = Path(text).expanduser()
        if path.is_absolute() or exists(base / path):
            continue
        home = next((folder for folder in above if exists(folder / path)), None)
        if home is not None:
            message = f"{key} = {text!r} is not in {base}; relative paths count from where mlxft is started"
            raise RecipeError([Problem(str(loaded.path), message, f"cd {shlex.quote(str(home))}")])
        may_be_of_hub = not path.suffix and not exists((base / path).parent)
        if not may_be_of_hub and (origin := _origin(loaded.path, text)):
            raise RecipeError([Problem(str(loaded.path), f"{key} = {text!r} is not there yet", origin)])


def _origin(recipe: Path, text: str) -> str:
    """What the comment ``# Data:`` of a recipe and its further lines say, where ``text`` is the recipe's own data."""
    lines = recipe.read_text(encoding="utf-8").splitlines()
    start = next((number for number, line in enumerate(lines) if line.startswith("# Data:")), None)
    if start is None or f'"{text}"' not in "\n".join(lines):
        return ""
    more = itertools.takewhile(lambda line: line.startswith("#  "), lines[start + 1 :])
    return " ".join([lines[start].removeprefix("# Data:").strip(), *(line[1:].strip() for line in more)])


def named_file(name: str, *folders: Path) -> Path:
    """The file that ``name`` means: in the first of ``folders`` that has it, else where the first would have it.

    The first is where mlxft is started, as for data; those behind it are where a recipe lies, or a run was started.
    """
    path = Path(name).expanduser()
    return next((folder / path for folder in folders if exists(folder / path)), folders[0] / path)


def data_paths(data: DataRecipe) -> Iterator[tuple[str, str]]:
    """Key and text of every file, folder or hub id that [data] names."""
    for key in ("path", "train", "valid", "test"):
        text = getattr(data, key)
        if text:
            yield f"data.{key}", text
    for source in data.sources:
        yield "data.sources.path", source.path


def exists(path: Path) -> bool:
    """Whether something is there; False for a name that no file can have."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
