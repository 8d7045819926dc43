"""What a recipe is checked for before anything is loaded: the same by every command that would train by it."""

from pathlib import Path

from mlx_finetune.commands.named import find_named
from mlx_finetune.commands.predecessors import Made, find_predecessors, nothing
from mlx_finetune.errors import DataError, Problem, RecipeError
from mlx_finetune.recipe.load import LoadedRecipe, locate_findings
from mlx_finetune.recipe.paths import check_paths, data_paths, exists

#: Rows of each file that are read before there is a training; ``mlxft data check`` reads all.
MAX_ROWS = 20_000


def check_recipe(loaded: LoadedRecipe, here: Path, is_made: Made = nothing) -> None:
    """Raises ``RecipeError`` with everything that a training would be refused for: data that lies elsewhere, what is
    named and cannot be used, runs that it needs and that have to be made first.

    ``is_made`` tells what will be there when its turn has come.
    """
    problems: list[Problem] = []
    try:
        check_paths(loaded, here)
    except RecipeError as error:
        problems += error.problems
    findings = [*find_named(loaded, here), *find_predecessors(loaded, here, is_made)]
    problems += locate_findings(findings, loaded)
    if problems:
        raise RecipeError(problems)


def check_first_rows(loaded: LoadedRecipe, here: Path, is_made: Made = nothing) -> None:
    """Raises ``RecipeError`` with what is wrong in the first rows of each file of [data].

    Not of data that is not there: it may be of the hub, or come later; nor of what somebody will make anew.
    """
    from mlx_finetune.dataset.corpus import check_rows

    data = loaded.recipe.data
    paths = [Path(text).expanduser() for _, text in data_paths(data)]
    if not all(exists(here / path) for path in paths) or any(map(is_made, paths)):
        return
    try:
        check_rows(data, base=here, task=loaded.recipe.task, max_rows=MAX_ROWS)
    except DataError as error:
        raise RecipeError(error.problems or [Problem(str(loaded.path), error.message, error.hint)]) from None
