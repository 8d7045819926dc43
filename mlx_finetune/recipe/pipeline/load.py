"""A pipeline file and the recipes of its stages, checked together: every problem of all of them at once, located.

What a stage takes from earlier ones is put into its recipe here as overrides, the same that a user would type after
``mlxft train``: so a stage alone can be trained, resumed and looked at with the other commands too. Relative paths
count from the folder where mlxft is started; a recipe is also looked for beside the pipeline and by its name.
"""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from mlx_finetune.errors import Problem, RecipeError
from mlx_finetune.recipe.explain import Finding
from mlx_finetune.recipe.gallery import find_named, list_recipes
from mlx_finetune.recipe.load import LoadedRecipe, load_recipe
from mlx_finetune.recipe.locate import KeyLines, locate_keys
from mlx_finetune.recipe.pipeline.check import check
from mlx_finetune.recipe.pipeline.rules import filled, placeholders
from mlx_finetune.recipe.pipeline.schema import OWN_FOLDER, Pipeline, StageRecipe
from mlx_finetune.recipe.schema import LoraRecipe, Recipe
from mlx_finetune.recipe.toml_file import parse_toml, read_text, unsafe_strings
from mlx_finetune.recipe.values import shown, shown_name, toml_value
from mlx_finetune.rundir import MODEL_FOLDER

#: Keys of [lora] that an adapter has for good, and those that make its factor, which it has too.
_LORA_SHAPE, _LORA_FACTOR = ("use_dora", "target_modules", "num_layers"), ("rank", "alpha", "use_rslora")


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage, ready to be run: ``loaded`` is the recipe of a training, ``words`` are those of a command.

    ``needs`` are the earlier stages whose results it takes, and ``folder`` is where its own go.
    """

    asked: StageRecipe
    folder: Path
    loaded: LoadedRecipe | None
    words: tuple[str, ...]
    needs: tuple[str, ...]

    @property
    def name(self) -> str:
        """As the file calls it."""
        return self.asked.name

    @property
    def result(self) -> Path:
        """What a stage that starts from this one loads: the adapter's folder, or the fully trained model."""
        is_full = self.loaded is not None and self.loaded.recipe.lora is None
        return self.folder / MODEL_FOLDER if is_full else self.folder


@dataclass(frozen=True, slots=True)
class LoadedPipeline:
    """A checked pipeline with the recipes of its stages, the text of its file and the overrides it was given."""

    pipeline: Pipeline
    text: str
    path: Path
    overrides: tuple[str, ...]
    stages: tuple[Stage, ...]

    @property
    def folder(self) -> Path:
        """``output_dir`` as a path."""
        return Path(self.pipeline.output_dir).expanduser()

    @property
    def folders(self) -> Mapping[str, str]:
        """Stage -> its folder, as it stands in the place of ``{NAME}``."""
        return {stage.name: str(stage.folder) for stage in self.stages}

    def stage(self, name: str) -> Stage:
        """The stage of that name, which is known to be there."""
        return next(stage for stage in self.stages if stage.name == name)

    def command(self, *options: str) -> str:
        """``mlxft pipeline FILE`` with the overrides and ``options``, quoted for a shell."""
        given = [part for one in self.overrides for part in ("--set", one)]
        return shlex.join(["mlxft", "pipeline", str(self.path), *given, *options])


def load_pipeline(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    here: Path,
    look: Callable[[LoadedPipeline, Path], Iterable[Problem]] = lambda loaded, here: (),
) -> LoadedPipeline:
    """The pipeline in ``path``. Raises ``RecipeError`` with every problem of it and of its recipes.

    ``overrides`` are ``output_dir=FOLDER`` and ``STAGE.KEY=VALUE``, which changes a key of that stage's recipe.
    ``look`` finds more, in what could be read: all is said at once.
    """
    text = read_text(path, "pipeline")
    values = parse_toml(text, str(path))
    if "stages" not in values and "output_dir" in values and ("model" in values or "data" in values):
        raise RecipeError([Problem(str(path), "is a recipe, not a pipeline", f"mlxft train {shlex.quote(str(path))}")])
    given, problems = _split_overrides(values, overrides)
    lines = locate_keys(text)
    findings = unsafe_strings(values)
    pipeline, found = check(values)
    bad = {finding.path for finding in findings}
    findings += [finding for finding in found if finding.path not in bad]
    if pipeline is None:
        raise RecipeError([*_located(findings, lines, path), *problems])
    loading = _Loading(pipeline, path, here, lines, given)
    loaded = LoadedPipeline(pipeline, text, path, tuple(overrides), loading.load())
    problems = [*_located(findings, lines, path), *problems, *loading.problems, *look(loaded, here)]
    if problems:
        raise RecipeError(list(dict.fromkeys(problems)))
    return loaded


def _split_overrides(
    values: dict[str, object], overrides: Sequence[str]
) -> tuple[Mapping[str, Sequence[str]], list[Problem]]:
    """Stage -> overrides of its recipe; ``output_dir`` is put into ``values``. What names no stage is a problem."""
    found = values.get("stages")
    stages = [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []  # pyright: ignore[reportUnknownVariableType]
    names = [str(one.get("name")) for one in stages]  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType, reportUnknownVariableType]
    given: dict[str, list[str]] = {}
    problems: list[Problem] = []
    for text in overrides:
        key, equals, value = text.partition("=")
        stage, _, rest = key.strip().partition(".")
        if key.strip() == "output_dir" and equals:
            values["output_dir"] = value.strip()
        elif equals and rest and stage in names:
            given.setdefault(stage, []).append(f"{rest}={value}")
        else:
            near = get_close_matches(stage, names, 1)
            example = near[0] if near else names[0] if names else "STAGE"
            hint = f"write output_dir=FOLDER or STAGE.KEY=VALUE, for instance {example}.training.max_steps=50"
            what = f"there is no stage {shown(stage)}" if equals and rest else "is not STAGE.KEY=VALUE"
            problems.append(Problem(f"--set {shown_name(text)}", what, hint))
    return given, problems


def _located(findings: Sequence[Finding], lines: KeyLines, path: Path) -> list[Problem]:
    located = [(lines.line_of(finding.path) or 1, finding) for finding in findings]
    located.sort(key=lambda pair: pair[0])
    return [Problem(f"{path}:{line}", finding.message, finding.hint) for line, finding in located]


@dataclass(slots=True)
class _Loading:
    """The stages one after the other, and the problems that are found on the way."""

    pipeline: Pipeline
    path: Path
    here: Path
    lines: KeyLines
    given: Mapping[str, Sequence[str]]
    problems: list[Problem] = field(default_factory=list[Problem])
    stages: list[Stage] = field(default_factory=list[Stage])

    def load(self) -> tuple[Stage, ...]:
        """Every stage whose recipe is good."""
        folders: dict[str, str] = {}
        for index, asked in enumerate(self.pipeline.stages):
            folder = Path(self.pipeline.output_dir).expanduser() / asked.name
            loaded, words = None, ()
            if asked.command is not None:
                with suppress(ValueError):  # quotes that do not close: that is said
                    parts = shlex.split(asked.command)
                    words = tuple(filled(word, {**folders, OWN_FOLDER: str(folder)}) for word in parts)
                self._refuse_given(asked)
            else:
                loaded = self._recipe(index, asked, folder, folders)
            named = [*placeholders(asked.command or ""), *(name for one in asked.set for name in placeholders(one))]
            needs: dict[str, None] = dict.fromkeys([asked.start_from] if asked.start_from else [])
            needs |= dict.fromkeys(name for name in named if name != OWN_FOLDER)
            if loaded is not None or words:
                self.stages.append(Stage(asked, folder, loaded, words, tuple(needs)))
            folders[asked.name] = str(folder)
        return tuple(self.stages)

    def _refuse_given(self, asked: StageRecipe) -> None:
        for one in self.given.get(asked.name, ()):
            where, hint = f"--set {asked.name}.{shown_name(one)}", f"change its command in {self.path}"
            self.problems.append(Problem(where, f"{asked.name} runs a command and has no recipe", hint))

    def _recipe(self, index: int, asked: StageRecipe, folder: Path, folders: Mapping[str, str]) -> LoadedRecipe | None:
        name = asked.recipe or ""
        found = find_named(name, self.here, self.path.parent)
        if found is None:
            files = [path.name for folder in (self.path.parent, self.here) for path in sorted(folder.glob("*.toml"))]
            near = get_close_matches(name, [*files, *(one.name for one in list_recipes(self.here))], 1)
            hint = f"did you mean {near[0]}?" if near else "`mlxft recipe list` shows the recipes there are"
            self._problem(index, "recipe", f"there is no recipe {shown(name)}", hint)
            return None
        whole = {filled(one, folders): number for number, one in enumerate(asked.set)}
        whole = {one: number for one, number in whole.items() if not placeholders(one)}  # of no stage: that is said
        own = {f"--set {one}": number for one, number in whole.items()}
        changes = [*whole, *self.given.get(asked.name, ())]
        try:
            plain = load_recipe(found, (*changes, f"output_dir={folder}"))
            start = self._start(index, asked, plain.recipe)
            return load_recipe(found, (*start, *changes, f"output_dir={folder}")) if start else plain
        except RecipeError as error:
            for problem in error.problems:
                self._locate(problem, index, own)
            return None

    def _locate(self, problem: Problem, index: int, own: Mapping[str, int]) -> None:
        """A problem of a stage's recipe: with the line of the pipeline where that is what changed the key."""
        name = self.pipeline.stages[index].name
        if problem.where in own:
            line = self.lines.line_of(("stages", index, "set", own[problem.where])) or 1
            problem = Problem(f"{self.path}:{line}", problem.message, problem.hint)
        elif problem.where.startswith("--set "):
            problem = Problem(f"--set {name}.{problem.where[6:]}", problem.message, problem.hint)
        if problem not in self.problems:  # two stages may share a recipe
            self.problems.append(problem)

    def _start(self, index: int, asked: StageRecipe, recipe: Recipe) -> Sequence[str]:
        """What makes the recipe start from the result of an earlier stage, as overrides."""
        before = next((stage for stage in self.stages if stage.name == asked.start_from), None)
        if before is None:
            return ()
        if before.loaded is None:
            self._problem(
                index, "start_from", f"{before.name} trains nothing to start from", "name a stage that has a recipe"
            )
            return ()
        if recipe.scratch is not None:
            message = f"{asked.name} begins with random weights ([scratch]) and cannot start from {before.name}"
            self._problem(index, "start_from", message, "remove start_from, or [scratch] from its recipe")
            return ()
        earlier = before.loaded.recipe
        named = [f"{key}=" for key in ("revision", "adapter") if getattr(recipe, key)]  # those of its own file
        if earlier.lora is None:
            return [f"model={before.folder}", *named]
        if different := _differences(earlier.lora, recipe.lora):
            message = f"{asked.name} cannot go on with the adapter of {before.name}: {different[0]}"
            self._problem(index, "start_from", message, different[1])
            return ()
        revision = [f"revision={earlier.revision}"] if earlier.revision else named[:1] if recipe.revision else []
        return [f"model={earlier.model}", *revision, f"adapter={before.folder}"]

    def _problem(self, index: int, key: str, message: str, hint: str) -> None:
        line = self.lines.line_of(("stages", index, key)) or 1
        self.problems.append(Problem(f"{self.path}:{line}", message, hint))


def _differences(earlier: LoraRecipe, later: LoraRecipe | None) -> tuple[str, str] | None:
    """Why an adapter of one shape cannot be trained further as another, in words, and the way out; None where it can.

    What counts of alpha is the factor that it makes with the rank: other keys that make the same one differ in nothing.
    """
    is_same = later is not None and (earlier.rank, earlier.scale) == (later.rank, later.scale)
    keys = _LORA_SHAPE if is_same else (*_LORA_FACTOR, *_LORA_SHAPE)
    pairs = [(key, getattr(later or LoraRecipe.model_validate({}), key), getattr(earlier, key)) for key in keys]
    pairs = [(key, new, old) for key, new, old in pairs if new != old]
    wanted = ", ".join(f"{key} = {toml_value(old)}" for key, _, old in pairs)
    if later is None:
        what = "it trains every weight, for which the adapter would have to be fused first"
        return what, "write a [lora] section in its recipe" + (f": {wanted}" if wanted else "")
    told = "; ".join(f"lora.{key} is {shown(new)}, and was {shown(old)}" for key, new, old in pairs)
    return (told, f"write in the [lora] of its recipe: {wanted}") if pairs else None
