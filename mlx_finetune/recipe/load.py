"""TOML and ``--set`` overrides to one ``Recipe``; every problem located, all of them at once, in file order.

Reads at most 1 MB, runs nothing, expands nothing: ``${NAME}`` stays as it is written. A recipe is copied into
the run folder and shared, so an access token anywhere in it is refused, and never repeated in the message.
"""

import re
import shlex
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from mlx_finetune.errors import MlxftError, Problem, RecipeError, RunError
from mlx_finetune.recipe.explain import Finding, check
from mlx_finetune.recipe.locate import locate_keys
from mlx_finetune.recipe.overrides import KeyPath, Override, Values, apply_overrides, latest, parse_overrides
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.recipe.toml_file import TOKEN_HINT, parse_toml, read_text, strings_of, unsafe_strings
from mlx_finetune.recipe.values import TOKEN, shown, shown_path

_VARIABLE = re.compile(r"\$\{\w+\}")


@dataclass(frozen=True, slots=True)
class LoadedRecipe:
    """A checked recipe, the text of its file, and the overrides that were applied to it.

    ``notices`` are sentences for the user: keys that an override replaced, text that looks like a variable and is not.
    """

    recipe: Recipe
    text: str
    path: Path
    overrides: tuple[str, ...]
    notices: tuple[str, ...] = ()

    def command(self, name: str) -> str:
        """``mlxft NAME RECIPE`` with the overrides, quoted for a shell."""
        options = [part for one in latest(self.overrides) for part in ("--set", one)]
        return shlex.join(["mlxft", name, str(self.path), *options])


def recorded_recipe(info: Mapping[str, object], whose: str) -> Recipe:
    """The recipe of a run as it was decided, in the fields of run.json.

    Raises ``RunError`` where it is not there, or another version of mlxft wrote it.
    """
    if "resolved" not in info:
        raise RunError(f"the settings of {whose} cannot be read: its run.json does not hold them")
    try:
        return Recipe.model_validate(info["resolved"])
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise RunError(
            f"the settings of {whose} were written by another version of mlxft (`{where}`)",
            "train it again with this version",
        ) from None


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """The recipe in ``path`` with ``overrides`` applied. Raises ``RecipeError`` with every problem, in file order."""
    text = read_text(path)
    parsed, problems = parse_overrides(overrides)
    problems += [
        Problem("--set", "an access token does not belong in a recipe", TOKEN_HINT)
        for override in overrides
        if TOKEN.search(override)
    ]
    values = parse_toml(text, str(path))
    if "stages" in values:
        raise RecipeError(
            [Problem(str(path), "is a pipeline, not a recipe", f"mlxft pipeline {shlex.quote(str(path))}")]
        )
    notices, more = apply_overrides(values, parsed)
    problems += more
    findings = unsafe_strings(values)
    result = check(values)
    if isinstance(result, Recipe) and not findings and not problems:
        return LoadedRecipe(result, text, path, tuple(overrides), (*notices, *_variables(values)))
    if not isinstance(result, Recipe):
        bad = {finding.path for finding in findings}
        findings += [finding for finding in result if finding.path not in bad]
    raise RecipeError(_located(findings, text, str(path), parsed) + problems)


def locate_findings(findings: Sequence[Finding], loaded: LoadedRecipe) -> list[Problem]:
    """What is found wrong with a recipe that was loaded, with the line or the override it belongs to."""
    return _located(findings, loaded.text, str(loaded.path), parse_overrides(loaded.overrides)[0])


def name_recipe(hint: str, path: Path, overrides: Sequence[str]) -> str:
    """``hint`` with the word RECIPE of its commands replaced by ``path`` and its ``--set`` options, to be typed."""
    typed = shlex.join([str(path), *(part for one in latest(overrides) for part in ("--set", one))])
    return re.sub(r"\bRECIPE\b", lambda _: typed, hint)


@contextmanager
def naming_recipe(path: Path, overrides: Sequence[str]) -> Generator[None]:
    """Inside, the hint of an error names the recipe that the command at hand was given (``name_recipe``)."""
    try:
        yield
    except MlxftError as error:
        error.hint = name_recipe(error.hint, path, overrides)
        raise


def _variables(values: Values) -> list[str]:
    return [
        f"`{shown_path(path)}` = {shown(text)}: ${{...}} is not expanded in a recipe and stands as it is written"
        for path, text in strings_of(values)
        if _VARIABLE.search(text)
    ]


# --- where it stands ---


def _located(findings: Sequence[Finding], text: str, path: str, overrides: Sequence[Override]) -> list[Problem]:
    """Problems of the file by line, then those of the overrides in their order."""
    lines = locate_keys(text)
    in_file: list[tuple[int, Problem]] = []
    from_override: list[tuple[int, Problem]] = []
    for finding in findings:
        index = _override_of(finding.path, overrides, is_written=finding.path in lines.first)
        if index is None:
            line = lines.line_of(finding.path) or 1
            in_file.append((line, Problem(f"{path}:{line}", finding.message, finding.hint)))
        else:
            from_override.append((index, Problem(overrides[index].where, finding.message, finding.hint)))
    in_file.sort(key=lambda pair: pair[0])
    from_override.sort(key=lambda pair: pair[0])
    return [problem for _, problem in in_file] + [problem for _, problem in from_override]


def _override_of(path: KeyPath, overrides: Sequence[Override], *, is_written: bool) -> int | None:
    """The override ``path`` came from: the last that sets it or what contains it, else one that made its section."""
    numbered = list(enumerate(overrides))[::-1]
    for index, override in numbered:
        if path[: len(override.path)] == override.path:
            return index
    if path and not is_written:
        return next((index for index, override in numbered if override.path[: len(path)] == path), None)
    return None
