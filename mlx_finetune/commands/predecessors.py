"""What a recipe takes from an earlier run that is not there yet or has not finished, and the command that makes it."""

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

from mlx_finetune.recipe.explain import Finding
from mlx_finetune.recipe.gallery import read_values, recipe_files
from mlx_finetune.recipe.grpo import scorers_in
from mlx_finetune.recipe.load import LoadedRecipe
from mlx_finetune.recipe.overrides import KeyPath
from mlx_finetune.recipe.paths import exists
from mlx_finetune.rundir import ADAPTER_CONFIG, MODEL_FOLDER, RunDir, run_info

_RUNS = Path("adapters")


Made = Callable[[Path], bool]


def nothing(path: Path) -> bool:
    """Nobody else will make it first."""
    del path
    return False


def find_predecessors(loaded: LoadedRecipe, here: Path, is_made: Made = nothing) -> Iterator[Finding]:
    """Each run that ``loaded`` needs, that is not there or not finished, and that somebody knows how to make.

    What nobody knows how to make is left to whoever loads it. ``is_made`` tells what will be there in time.
    """
    for key, path in _taken(loaded, here):
        if not is_made(path):
            yield from _missing(key, path, loaded, here)
            yield from _unfinished(key, path, here) if key[0] != "data" else ()


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


def _missing(key: KeyPath, path: Path, loaded: LoadedRecipe, here: Path) -> Iterator[Finding]:
    if len(path.parts) < 2 or exists(here / path.expanduser()):
        return
    command = _maker(path, loaded.path, here)
    if command is not None:
        message = f"there is no {path} yet, which this recipe takes from an earlier run"
        yield Finding(key, message, f"make it: {command}")


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


def _unfinished(key: KeyPath, path: Path, here: Path) -> Iterator[Finding]:
    """A run that is named before it has a model."""
    from mlx_finetune.commands.closing import recorded_go_on_lines

    run = RunDir(path.expanduser())
    has_model = run.file(MODEL_FOLDER).exists() or run.file(ADAPTER_CONFIG).exists()
    is_done = has_model and key[0] != "grpo"  # a reward has to be that of the end
    if not exists(here / run.path) or not run.is_run() or is_done:
        return
    status = run_info(run).get("status", "")
    if status not in ("", "finished") and (lines := recorded_go_on_lines(run)):
        yield Finding(key, f"the run {run.path} has no model yet: it did not come to its end", lines[0])
