"""How many steps a run has that goes on: the recipe's, or more where it is or was extended."""

import math
from collections.abc import Mapping

from mlx_finetune.errors import RunError
from mlx_finetune.events import Notice
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.train.checkpoints.state import RunState
from mlx_finetune.train.start.admission import Admission, Request
from mlx_finetune.train.start.identity import recipe_identity
from mlx_finetune.train.start.rows import Emit


def extended_steps(
    run_info: Mapping[str, object] | None, request: Request, recipe: Recipe, state: RunState, emit: Emit
) -> int | None:
    """The length of a run that was or is now extended, None where the recipe's own counts.

    A finished run is extended from where it ended, early or not.
    """
    if run_info is None or not (request.extend or run_info.get("is_extended")):
        return None
    if request.fork and not request.extend and _asks_for_another_length(run_info, recipe):
        return None
    total = run_info.get("total_steps")
    if not isinstance(total, int):
        raise RunError("run.json does not say how long the run was", "choose another output_dir")
    if request.extend:
        total = (state.step if run_info.get("status") == "finished" else total) + request.extend
        emit(Notice("info", f"extended by {request.extend} to {total} steps; the schedule now ends there"))
    return total


def _asks_for_another_length(run_info: Mapping[str, object], recipe: Recipe) -> bool:
    identity = run_info.get("identity")
    saved = identity.get("recipe") if isinstance(identity, dict) else None
    now = recipe_identity(recipe)
    keys = ("training.max_steps", "training.epochs")
    return isinstance(saved, dict) and any(saved.get(key) != now.get(key) for key in keys)


def refuse_finished(admission: Admission, request: Request, recipe: Recipe, state: RunState, total_steps: int) -> None:
    """Refuse a fork or an extension without a step to take, or without the time for one."""
    is_finished = (admission.run_info or {}).get("status") == "finished"
    if request.fork and is_finished and state.step >= total_steps:
        raise RunError(
            f"the run has finished and there is nothing left to train: it is at step {state.step} of {total_steps}",
            "add --extend 100, or raise training.max_steps",
        )
    minutes = recipe.training.max_minutes
    if (request.fork or request.extend) and minutes is not None and state.train_seconds >= 60 * minutes:
        more = math.ceil(state.train_seconds / 60) + 60
        raise RunError(
            f"the run has used up training.max_minutes = {minutes:g}", f"allow more: --set training.max_minutes={more}"
        )
