"""What a recipe takes from an earlier run that is not there yet or has not finished, and the command that makes it."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from mlx_finetune.errors import RecipeError
from mlx_finetune.recipe.explain import Finding
from mlx_finetune.recipe.gallery import read_values, recipe_files
from mlx_finetune.recipe.grpo import scorers_in
from mlx_finetune.recipe.load import LoadedRecipe, locate_findings
from mlx_finetune.recipe.overrides import KeyPath
from mlx_finetune.recipe.paths import exists
from mlx_finetune.rundir import ADAPTER_CONFIG, MODEL_FOLDER, RunDir, run_info

_RUNS = Path("adapters")


def check_predecessors(loaded: LoadedRecipe, here: Path) -> None:
    """Raises ``RecipeError`` with each run that ``loaded`` needs, is not there, and somebody knows how to make.

    What nobody knows how to make is left to whoever loads it.
    """
    found = [finding for key, path in _taken(loaded, here) if (finding := _missing(key, path, loaded, here))]
    if findings := [*found, *_unfinished(loaded, here)]:
        raise RecipeError(locate_findings(findings, loaded))


def _taken(loaded: LoadedRecipe, here: Path) -> Iterator[tuple[KeyPath, Path]]:
    """Key and folder of all that the recipe takes from runs; a bare name is that of a run under adapters/."""
    recipe, data = loaded.recipe, loaded.recipe.data
    yield ("model",), Path(recipe.model)
    named = [(("adapter",), recipe.adapter)]
    named += [(("grpo", "rewards"), reward.partition(":")[2]) for reward in scorers_in(recipe.grpo.rewards)]
    for key, name in named:
        is_name = len(Path(name).parts) == 1 and not exists(here / name)
        yield key, _RUNS / name if is_name else Path(name)
    for name in ("path", "train", "valid", "test"):
        yield ("data", name), Path(getattr(data, name) or "")
    for index, source in enumerate(data.sources):
        yield ("data", "sources", index, "path"), Path(source.path)


def _missing(key: KeyPath, path: Path, loaded: LoadedRecipe, here: Path) -> Finding | None:
    if len(path.parts) < 2 or exists(here / path.expanduser()):
        return None
    command = _maker(path, loaded.path, here)
    if command is None:
        return None
    return Finding(key, f"there is no {path} yet, which this recipe takes from an earlier run", f"make it: {command}")


def _maker(path: Path, recipe: Path, here: Path) -> str | None:
    """The command that makes ``path``: training by a recipe, a pipeline, or what a comment of a recipe says."""
    target, own = here / path.expanduser(), (here / recipe).resolve()
    files = [file for file in recipe_files(here, (here / recipe).parent) if (here / file).resolve() != own]
    for file in files:
        values = read_values(here / file)
        folder = values.get("output_dir")
        if isinstance(folder, str) and folder and target.is_relative_to(here / Path(folder).expanduser()):
            return shlex.join(["mlxft", "pipeline" if "stages" in values else "train", str(file)])
    said = (line for file in files for line in _comments(here / file))
    return next((line for line in said if _writes_above(line, target, here)), None)


def _comments(file: Path) -> Iterator[str]:
    """Commands of mlxft in the comments of a recipe, without what is said behind them."""
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        if line.startswith("#") and (found := re.search(r"mlxft \S.*? --out \S+", line)):
            yield found[0]


def _writes_above(command: str, target: Path, here: Path) -> bool:
    return target.is_relative_to(here / command.rpartition(" --out ")[2])


def _unfinished(loaded: LoadedRecipe, here: Path) -> Iterator[Finding]:
    """A run named as the model before it has one."""
    from mlx_finetune.commands.closing import recorded_go_on_lines

    run = RunDir(Path(loaded.recipe.model).expanduser())
    is_done = run.file(MODEL_FOLDER).exists() or run.file(ADAPTER_CONFIG).exists()
    if not exists(here / run.path) or not run.is_run() or is_done:
        return
    status = run_info(run).get("status", "")
    if status not in ("", "finished") and (lines := recorded_go_on_lines(run)):
        message = f"the run {run.path} has no model yet: it did not come to its end"
        yield Finding(("model",), message, lines[0])
