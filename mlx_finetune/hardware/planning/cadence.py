"""How many steps a run has, and when it warms up, evaluates and saves where the recipe does not say."""

import math

from mlx_finetune.recipe.schema import Recipe

NUM_EVALUATIONS = 10


def cadence(recipe: Recipe, total: int, per_epoch: int) -> tuple[dict[str, object], dict[str, str]]:
    """``warmup_steps``, ``eval_steps`` and ``save_steps`` of a run of ``total`` steps, and the reasons for defaults.

    Warm-up is 3 % of the steps, at most 100 (ALGORITHMS.md section 4); ten evaluations; a checkpoint with each.
    """
    training = recipe.training
    reasons: dict[str, str] = {}
    warmup = training.warmup_steps
    if training.warmup_ratio is not None:
        warmup = math.ceil(training.warmup_ratio * total)
        reasons["training.warmup_steps"] = f"warmup_ratio {training.warmup_ratio:g} of {total} steps"
    elif warmup is None:
        warmup = min(math.ceil(0.03 * total), 100)
        reasons["training.warmup_steps"] = f"3 % of {total} steps, at most 100"
    evaluate = training.eval_steps
    if training.evals_per_epoch is not None:
        evaluate = max(1, per_epoch // training.evals_per_epoch)
        reasons["training.eval_steps"] = f"{training.evals_per_epoch} in an epoch of {per_epoch} steps"
    elif evaluate is None:
        evaluate = max(1, math.ceil(total / NUM_EVALUATIONS))
        reasons["training.eval_steps"] = f"{NUM_EVALUATIONS} evaluations in {total} steps"
    save = training.save_steps
    if save is None:
        save = evaluate
        reasons["training.save_steps"] = "as often as it evaluates"
    values: dict[str, object] = {"warmup_steps": warmup, "eval_steps": evaluate, "save_steps": save}
    return values | {"warmup_ratio": None, "evals_per_epoch": None}, reasons


def steps_in_epoch(num_sequences: int, batch_size: int, accumulation: int) -> int:
    """Optimizer steps of one epoch; the last may have fewer microbatches (``dataset.stream`` counts the same)."""
    num_microbatches = math.ceil(num_sequences / batch_size)
    return math.ceil(num_microbatches / accumulation)


def total_steps(per_epoch: int, epochs: float) -> int:
    """Optimizer steps of ``epochs`` passes, a last part of one rounded up; at least 1."""
    whole = int(epochs)
    return max(1, whole * per_epoch + math.ceil((epochs - whole) * per_epoch - 1e-9))
