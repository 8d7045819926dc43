"""A sweep as lines for a person: what will be tried, what came out, what to type next."""

import shlex
from collections.abc import Iterator

from mlx_finetune.app.sweep.design import FACTOR, Base, Done, best_of, edges_of, other_ranks, steps_of
from mlx_finetune.app.sweep.journal import Sweep
from mlx_finetune.recipe.asking import talk_command
from mlx_finetune.recipe.load import LoadedRecipe
from mlx_finetune.recipe.overrides import latest, train_command
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.units import format_seconds


def plan_lines(base: Base, *, step_seconds: float | None) -> Iterator[str]:
    """What a sweep will do, before anything is trained."""
    short, rate = base.short_steps, base.learning_rate
    ranks = other_ranks(base.rank)
    rates = f"{rate / FACTOR:.2g}, {rate:.2g}, {FACTOR * rate:.2g}"
    yield f"learning rate  3 trials of {short} steps: {rates}; one more beyond an end"
    if ranks:
        beside = f"rank {', '.join(map(str, ranks))} beside {base.rank}"
        yield f"rank           {len(ranks)} trials of {short} steps at the best rate: {beside}"
    yield f"all steps      the best third of them and the recipe's own settings, with {base.total_steps} steps"
    yield "selected by the validation loss; the winner is tested once on the test rows"
    least, most = steps_of(base)
    took = ""
    if step_seconds is not None:
        took = f", {format_seconds(least * step_seconds)} to {format_seconds(most * step_seconds)} without evaluations"
    yield f"in all         {least:,} to {most:,} steps{took}"


def sweep_lines(sweep: Sweep) -> Iterator[str]:
    """The table of trials, the winner first named, then its test."""
    best = best_of(sweep.done)
    yield f"{'trial':<7}{'learning rate':>14}{'rank':>6}{'steps':>8}{'validation loss':>17}{'time':>9}"
    for one in sweep.done:
        trial = one.trial
        loss = f"{one.loss:.4f}" if one.loss is not None else "none"
        mark = "  best" if one == best else f"  {one.failure[:70]}" if one.failure else ""
        rank = "" if trial.rank is None else str(trial.rank)
        yield (
            f"{trial.number:<7}{trial.learning_rate:>14.2g}{rank:>6}{trial.steps:>8}{loss:>17}"
            f"{format_seconds(one.seconds):>9}{mark}"
        )
    yield ""
    if best is None:
        yield "no trial came to a validation loss: a lower training.learning_rate in the recipe may help"
        return
    yield _verdict(sweep, best)
    if edges := edges_of(sweep.done):
        what = " and ".join(f"{name} the {edge}" for name, edge in edges.items())
        yield f"of what was tried the winner has the {what}: a better one may lie beyond, which was not looked for"
    if sweep.test is not None:
        yield str(sweep.test["sentence"])
    yield f"every trial is a run of its own: {shlex.join(['mlxft', 'runs', 'list', str(sweep.folder)])}"


def _verdict(sweep: Sweep, best: Done) -> str:
    """The winner beside the recipe's own settings with as many steps."""
    own = next(
        (
            one
            for one in sweep.done
            if one.trial.learning_rate == sweep.base.learning_rate
            and one.trial.rank == sweep.base.rank
            and one.trial.steps == best.trial.steps
        ),
        None,
    )
    settings = f"learning rate {best.trial.learning_rate:.2g}" + (
        "" if best.trial.rank is None else f", rank {best.trial.rank}"
    )
    if best == own:
        return f"the recipe's own settings were best: {settings}, validation loss {best.loss:.4f}"
    theirs = "came to no validation loss" if own is None or own.loss is None else f"{own.loss:.4f}"
    return f"best: {settings}, validation loss {best.loss:.4f}; the recipe's own settings {theirs}"


def next_commands(sweep: Sweep, loaded: LoadedRecipe) -> list[str]:
    """Commands that use the winner: try it as its task is tried, train the recipe with its settings, or look further
    from it where it lies at an edge."""
    best = best_of(sweep.done)
    if best is None:
        return []
    overrides = latest([*loaded.overrides, *winner_overrides(loaded.recipe, best)])
    talk = talk_command(loaded.recipe.task, shlex.quote(str(sweep.trial_folder(best.trial))))
    commands = [f"next: {talk}", f"or:   {train_command(loaded.path, overrides, loaded.recipe.run_folder)}"]
    if edges_of(sweep.done):
        further = latest([*overrides, f"output_dir={loaded.recipe.run_folder}-further"])
        options = [part for one in further for part in ("--set", one)]
        steps = sweep.base.total_steps
        options += [] if loaded.recipe.training.max_steps == steps else ["--steps", str(steps)]
        commands.append(f"or:   {shlex.join(['mlxft', 'sweep', str(loaded.path), *options])}   (tries beyond it)")
    return commands


def winner_overrides(recipe: Recipe, best: Done) -> list[str]:
    """What the winner sets in the recipe."""
    trial, lora = best.trial, recipe.lora
    found = [f"training.learning_rate={trial.learning_rate:.6g}"]
    if lora is not None and trial.rank is not None and trial.rank != lora.rank:
        found += [f"lora.rank={trial.rank}", f"lora.alpha={lora.alpha * trial.rank / lora.rank:g}"]
    return found
