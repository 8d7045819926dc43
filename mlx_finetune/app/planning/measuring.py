"""Runs the measuring process of a plan and reads what it found. Never imports mlx.

It gets ``LIMIT_SECONDS``; after that it is killed and the plan stays with its arithmetic.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from mlx_finetune.app.planning.talking_child import Report, Talk, ask_child
from mlx_finetune.hardware.planning.measured import Measured
from mlx_finetune.recipe.hardware import HardwareRecipe

MODULE = "mlx_finetune.train.measure"
BUDGET_SECONDS = 25.0  # since the start of the process; nothing is begun that would end later
LIMIT_SECONDS = 300.0  # a microbatch that takes minutes cannot be cut short; the budget of the process is far less

_TALK = Talk("measuring the plan", "plan without it: --no-measure")


def measure(
    recipe: Path,
    overrides: Sequence[str],
    report: Report,
    *,
    hardware: HardwareRecipe | None = None,
    command: Sequence[str] | None = None,
) -> Measured:
    """What the measuring process found out about the recipe, whose section ``hardware`` is.

    ``command`` replaces ``python -m`` and module in tests.
    Raises ``DoesNotFitError`` where it ran out of memory, ``RunError`` for every other end without a result.
    """
    start = list(command) if command is not None else [sys.executable, "-m", MODULE]
    settings = (part for one in overrides for part in ("--set", one))
    arguments = [*start, "--recipe", str(recipe), "--budget", str(BUDGET_SECONDS), *settings]
    found = ask_child(arguments, "measured", _TALK, report, hardware=hardware, limit_seconds=LIMIT_SECONDS)
    return Measured.from_json(found)
