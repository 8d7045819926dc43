"""What a recipe names beside the training: schemas that can be read, gates that are measured, trackers that are there.
Never imports mlx.

``mlxft eval`` and ``mlxft serve`` would find such a slip too, but only when the training has been paid for.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mlx_finetune.errors import DataError, RecipeError
from mlx_finetune.recipe.evaluation import EvalRecipe, parse_gate
from mlx_finetune.recipe.explain import Finding
from mlx_finetune.recipe.load import LoadedRecipe, locate_findings
from mlx_finetune.recipe.paths import named_file
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.rundir import RunDir


def find_named(loaded: LoadedRecipe, base: Path) -> Iterator[Finding]:
    """Every schema that cannot be used, gate that is never measured and tracker that is not installed."""
    recipe = loaded.recipe
    yield from (*_endpoints(loaded), *_schema(recipe.eval, base), *_gates(recipe.eval), *_trackers(recipe))


def check_named(loaded: LoadedRecipe, base: Path) -> None:
    """Raises ``RecipeError`` with all of them."""
    if findings := [*find_named(loaded, base)]:
        raise RecipeError(locate_findings(findings, loaded))


def check_trackers(loaded: LoadedRecipe) -> None:
    """Raises ``RecipeError`` with every tracker of report_to that is not installed: a run that goes on needs it too."""
    if findings := [*_trackers(loaded.recipe)]:
        raise RecipeError(locate_findings(findings, loaded))


def _trackers(recipe: Recipe) -> Iterator[Finding]:
    if not recipe.training.report_to:
        return
    from mlx_finetune.app.trackers.names import missing

    for index, problem in missing(recipe.training.report_to):
        yield Finding(("training", "report_to", index), problem.message, problem.hint)


def _endpoints(loaded: LoadedRecipe) -> Iterator[Finding]:
    if not loaded.recipe.serve.endpoints:
        return
    from mlx_finetune.train.start.endpoints import read_schemas

    run = RunDir(loaded.recipe.run_folder)
    for index, endpoint in enumerate(loaded.recipe.serve.endpoints):
        alone = loaded.recipe.serve.model_copy(update={"endpoints": (endpoint,)})
        try:
            read_schemas(replace(loaded, recipe=loaded.recipe.model_copy(update={"serve": alone})), run)
        except DataError as error:
            yield Finding(("serve", "endpoints", index, "schema"), error.message, error.hint)


def _schema(recipe: EvalRecipe, base: Path) -> Iterator[Finding]:
    if recipe.schema is None:
        return
    from mlx_finetune.scoring.json_schema import read_schema

    try:
        read_schema(named_file(recipe.schema, base))
    except DataError as error:
        yield Finding(("eval", "schema"), error.message, error.hint)


def _gates(recipe: EvalRecipe) -> Iterator[Finding]:
    """Where no tasks are named the rows decide: then only ``mlxft eval`` knows what is measured."""
    if not recipe.tasks or not recipe.gates:
        return
    from mlx_finetune.app.eval.measures import measures_of

    tasks = recipe.tasks if recipe.schema is None or "json" in recipe.tasks else ("json", *recipe.tasks)
    names = [measure.name for measure in measures_of(tasks, has_schema=recipe.schema is not None)]
    for index, text in enumerate(recipe.gates):
        gate = parse_gate(text)
        if gate is not None and gate.measure not in names:
            yield Finding(
                ("eval", "gates", index),
                f"the gate `{gate}` is about {gate.measure}, which [eval] does not measure",
                f"measured are {', '.join(names)}; `tasks` and `schema` add others",
            )
