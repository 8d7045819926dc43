"""``mlxft plan --lr-range``: runs the process that tries learning rates, and says what it found. Never imports mlx."""

import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mlx_finetune.app.planning.talking_child import Report, Talk, ask_child
from mlx_finetune.errors import UsageError
from mlx_finetune.hardware.planning.auto import default_learning_rate
from mlx_finetune.hardware.planning.lr_range import DIVERGED, HIGHEST, LOWEST, NUM_STEPS, RangeFound, RangePoint
from mlx_finetune.recipe.hardware import HardwareRecipe
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.units import format_seconds

MODULE = "mlx_finetune.train.lr_range"
NEAR = 3.0  # a recipe's rate within this factor of the suggestion is as good

_TALK = Talk("trying learning rates", "see what a run of the recipe says: mlxft train RECIPE")


def refuse_own_answers(recipe: Recipe) -> None:
    """Raise ``UsageError`` for a task that learns from its own answers, whose loss says nothing about a rate."""
    if recipe.task == "grpo":
        trained = "adapters" if recipe.lora is not None else "training of every weight"
        raise UsageError(
            f"the range test is for tasks that learn from rows; {recipe.task} learns from its own answers",
            f"start with training.learning_rate = {default_learning_rate(recipe)[0]:.0e}, the default for {trained}",
        )


def find_range(
    path: Path, overrides: Sequence[str], report: Report, *, hardware: HardwareRecipe, command: Sequence[str] = ()
) -> RangeFound:
    """The learning-rate range test of a recipe, whose section ``hardware`` is; ``command`` replaces the process.

    Raises ``DoesNotFitError`` and ``RunError``.
    """
    start = list(command) or [sys.executable, "-m", MODULE]
    settings = (part for one in overrides for part in ("--set", one))
    arguments = [*start, "--recipe", str(path), "--parent-pid", str(os.getpid()), *settings]
    return RangeFound.from_json(ask_child(arguments, "lr_range", _TALK, report, hardware=hardware))


def rate_names(points: Sequence[RangePoint]) -> Mapping[float, str]:
    """Each power of ten among the rates of ``points``, which rise geometrically, by its place among them: a step, or
    between two."""
    if len(points) < 2:
        return {}
    first, last = (math.log10(point.rate) for point in (points[0], points[-1]))
    powers = range(math.ceil(first - 1e-9), math.floor(last + 1e-9) + 1)
    return {(power - first) / (last - first) * (len(points) - 1): f"1e{power:+03d}" for power in powers}


def range_lines(found: RangeFound, chart: Sequence[str], sweep: str) -> Iterator[str]:
    """What was found, for a person; ``chart`` is the smoothed loss over rising rates, with its figures.

    ``sweep`` is the command that compares short runs of the recipe at several rates.
    """
    took = f"in {len(found.points)} steps of this recipe, {format_seconds(found.seconds)}"
    yield f"learning rates from {LOWEST:.0e} to {found.points[-1].rate if found.points else HIGHEST:.0e} {took}"
    yield ""
    if chart:
        yield "  smoothed loss over the learning rate; that rows are easy or hard is taken out"
        yield from (f"  {line}" for line in chart)
        yield ""
    if found.is_memorised:
        seen = f"each was seen {found.times_seen:.0f} times"
        yield f"the rows are few: {seen}, so the curve shows how fast they are learned by heart, not what helps"
        yield "on other rows; more rows, or the validation loss of short runs at several rates, tell more"
    best = found.best
    if best is None:
        yield "no rate made the loss fall below where it began: the rows teach this model nothing in so few steps,"
        yield f"or {NUM_STEPS} steps are too few to tell; no rate is suggested"
        return
    if found.is_at_end:
        last = found.points[-1].rate
        yield f"cannot tell: the smoothed loss still fell at {last:.1e}, the highest rate tried, so none is suggested;"
        yield f"short runs at several rates tell more: {sweep}"
        return
    end = f"it rose past {DIVERGED:g} times that" if found.has_diverged else "it did not diverge up to the highest rate"
    yield f"the smoothed loss was lowest, {best.smoothed:.4f}, at a rate of {best.rate:.1e}; {end}"
    why = "a third of that rate" if found.is_third else "where nine tenths of the fall were reached"
    yield f"suggested: training.learning_rate = {found.suggestion:.1e}, {why}; {_beside(found)}"


def is_near(found: RangeFound) -> bool:
    """True where the recipe's own rate is as good as the suggestion."""
    return found.suggestion is not None and 1 / NEAR <= found.recipe_rate / found.suggestion <= NEAR


def _beside(found: RangeFound) -> str:
    """The recipe's own rate beside the suggestion."""
    assert found.suggestion is not None, "nothing is suggested"
    rate = found.recipe_rate
    ratio = rate / found.suggestion
    if is_near(found):
        return f"the recipe's {rate:.1e} is near enough to it"
    return f"the recipe's {rate:.1e} is {'higher' if ratio > 1 else 'lower'} by {max(ratio, 1 / ratio):.0f} times"
