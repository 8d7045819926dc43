"""How a recipe is started: anew, going on where it stopped, or anew beside a run that has finished."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from mlx_finetune.app.desktop.asking import choose, one_line
from mlx_finetune.app.desktop.desk import Desk
from mlx_finetune.app.desktop.runs import RunState, known_runs, read_state
from mlx_finetune.errors import RecipeError, UsageError
from mlx_finetune.recipe.gallery import PIPELINE_TASK, list_recipes
from mlx_finetune.recipe.load import load_recipe
from mlx_finetune.recipe.values import toml_value
from mlx_finetune.rundir import RECIPE, RunDir, run_info

#: Which recipe is offered first where nothing was trained yet.
FIRST = "quickstart"


@dataclass(frozen=True, slots=True)
class Start:
    """One training to be started. ``recipe`` and the run's path count from the desk's folder."""

    recipe: Path
    run: RunDir
    overrides: tuple[str, ...] = ()
    is_resumed: bool = False

    @property
    def arguments(self) -> list[str]:
        """What a user types after ``mlxft train``."""
        return [*self.plan_arguments, *(["--resume"] if self.is_resumed else [])]

    @property
    def plan_arguments(self) -> list[str]:
        """What a user types after ``mlxft plan``."""
        return [str(self.recipe), *(part for one in self.overrides for part in ("--set", one))]

    @property
    def name(self) -> str:
        """The run's name for a person."""
        return one_line(self.run.path.name, 40)


@dataclass(frozen=True, slots=True)
class Offer:
    """A recipe in the menu, with what became of its run; ``state`` is None for a recipe with mistakes."""

    path: Path
    purpose: str
    state: RunState | None

    @property
    def label(self) -> str:
        """One line: name, what became of it, purpose."""
        words = "has mistakes" if self.state is None else self.state.words
        return f"{self.path.stem}{f' ({words})' if words else ''} - {self.purpose}"


def offers(desk: Desk) -> Sequence[Offer]:
    """Every recipe: the quickstart first where it was not trained yet, what was trained after what was not."""
    found: list[Offer] = []
    for file in list_recipes(Path()):
        if file.task == PIPELINE_TASK:
            continue
        try:
            state = read_state(RunDir(load_recipe(file.path).recipe.run_folder))
        except RecipeError:
            state = None
        found.append(Offer(_from(desk, file.path), file.purpose or file.model, state))
    return sorted(found, key=lambda one: (_rank(one), one.path.is_absolute(), one.path.stem))


def _rank(offer: Offer) -> int:
    if offer.state is None:
        return 3
    if offer.state.kind != "none":
        return 2
    return 0 if offer.path.stem == FIRST else 1


def unfinished(desk: Desk) -> Sequence[Start]:
    """The runs under adapters/ that were started in the desk's folder and not finished, the latest first."""
    found = [resumption(run, desk.folder) for run in known_runs(desk) if read_state(run).kind == "unfinished"]
    return [start for start in found if start is not None]


def resumption(run: RunDir, folder: Path) -> Start | None:
    """How a run goes on, as its run.json tells; None where it was started in another folder, or nothing is told."""
    info = cast("dict[str, Any]", run_info(run))
    try:
        recipe, started_in = Path(info["recipe_path"]), Path(info["started_in"])
        overrides = tuple(str(override) for override in info["overrides"])
    except (KeyError, TypeError):
        return None
    if started_in.resolve() != folder.resolve():
        return None
    if not (folder / recipe).is_file():
        recipe = run.file(RECIPE)
    return Start(recipe, run, overrides, is_resumed=True)


def recipe_path(desk: Desk, given: str) -> Path:
    """The recipe that an argument names: a path, or a name in the gallery. Raises ``UsageError``."""
    path = Path(given).expanduser()
    if path.exists() or "/" in given or path.is_absolute():
        return check_recipe_file(desk, path)
    from mlx_finetune.recipe.gallery import find_recipe

    return _from(desk, find_recipe(given, Path()).path)


def check_recipe_file(desk: Desk, path: Path) -> Path:
    """``path`` as it is passed on; what is dragged in by mistake is named. Raises ``UsageError``."""
    if path.is_dir() or (path.exists() and path.suffix != ".toml"):
        what = "a folder" if path.is_dir() else "not a recipe"
        hint = 'a recipe ends in .toml; "Train" makes one from data: choose "my own data" there'
        raise UsageError(f"{one_line(str(path))} is {what}", hint)
    if not path.is_file():
        raise UsageError(f"there is no recipe {one_line(str(path))}", "drag the file into the window")
    return _from(desk, path)


def _from(desk: Desk, path: Path) -> Path:
    """``path`` from the desk's folder where it lies below it, else absolute; never like an option."""
    whole = path if path.is_absolute() else Path.cwd() / path
    return whole.relative_to(desk.folder) if whole.is_relative_to(desk.folder) else whole


def bring_data(desk: Desk, recipe: Path) -> Path:
    """``recipe``, with the data it needs beside it where both come with an installed package."""
    from mlx_finetune.recipe.gallery import copy_data, find_recipe

    if recipe.is_absolute() and (copied := copy_data(find_recipe(str(recipe), desk.folder), desk.folder)) is not None:
        desk.say(f"copied its data to {copied}")
    return recipe


def start_of(recipe: Path) -> tuple[Start, RunState]:
    """The recipe as it stands, and what became of its run. Raises ``RecipeError``."""
    named = recipe if not str(recipe).startswith("-") else Path.cwd() / recipe
    run = RunDir(load_recipe(named).recipe.run_folder)
    return Start(named, run), read_state(run)


def beside(start: Start, taken: Collection[Path] = ()) -> Start:
    """The same recipe into the first free folder beside its run that is not ``taken``: adapters/NAME-2, -3, ..."""
    number = 2
    while (path := start.run.path.with_name(f"{start.run.path.name}-{number}")).exists() or path in taken:
        number += 1
    return Start(start.recipe, RunDir(path), (*start.overrides, f"output_dir={toml_value(str(path))}"))


def decide(start: Start, state: RunState) -> Start:
    """Without asking: go on with what was left unfinished, leave a finished run alone and train beside it."""
    match state.kind:
        case "unfinished":
            return resumption(start.run, Path.cwd()) or replace(start, is_resumed=True)
        case "finished":
            return beside(start)
        case "none" | "running":
            return start


def ask_how(desk: Desk, start: Start, state: RunState) -> Start:
    """What is to happen with a run that is there already. Raises ``Cancelled``."""
    if state.kind not in ("unfinished", "finished") or not desk.can_ask:
        return decide(start, state)
    other = beside(start)
    if state.kind == "finished":
        desk.say(f"\n{start.name} has been trained with this recipe already; it stays as it is.")
        desk.say(f"This training gets a name of its own: {other.name}")
        return other
    labels = [f"Go on with {start.name} ({state.words})", f"Start anew as {other.name}; {start.name} stays as it is"]
    return decide(start, state) if choose(desk, f"{start.name} was not finished.", labels) == 0 else other
