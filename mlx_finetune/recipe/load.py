"""TOML and ``--set`` overrides to one ``Recipe``; every problem located, all of them at once."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from mlx_finetune.errors import Problem, RecipeError
from mlx_finetune.recipe.schema import Recipe


@dataclass(frozen=True, slots=True)
class LoadedRecipe:
    """A checked recipe, the text it came from, and the overrides that were applied to it."""

    recipe: Recipe
    text: str
    path: Path
    overrides: tuple[str, ...]
    notices: tuple[str, ...] = ()


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """The recipe in ``path`` with ``overrides`` applied. Raises ``RecipeError`` with every problem, in file order."""
    try:
        text = path.read_text("utf-8")
        values = tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise RecipeError([Problem(str(path), str(error))]) from None
    for override in overrides:
        _set(values, override)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        problems = [
            Problem(str(path), f"`{'.'.join(map(str, item['loc']))}`: {item['msg']}") for item in error.errors()
        ]
        raise RecipeError(problems) from None
    return LoadedRecipe(recipe, text, path, tuple(overrides))


def _set(values: dict[str, object], override: str) -> None:
    name, _, text = override.partition("=")
    *sections, key = name.split(".")
    table = values
    for section in sections:
        inner = table.setdefault(section, {})
        assert isinstance(inner, dict)
        table = inner
    try:
        table[key] = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        table[key] = text
    for pair in (("epochs", "max_steps"), ("warmup_steps", "warmup_ratio"), ("eval_steps", "evals_per_epoch")):
        if sections == ["training"] and key in pair:
            table.pop(pair[1 - pair.index(key)], None)
