"""dpo, cdpo, rdpo, ipo, simpo, orpo and kto as objectives: rows, arrays, losses and metrics."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_finetune.dataset.pairs import IS_GOOD, WEIGHT
from mlx_finetune.dataset.stream import Batch
from mlx_finetune.model.inside.shared_prefix import why_not_shared
from mlx_finetune.model.inside.split import SplitModel
from mlx_finetune.recipe.preference import PreferenceRecipe, needs_reference, preference_settings
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.scoring.picks import share_right
from mlx_finetune.train.losses import Head
from mlx_finetune.train.objective import Arrays, Objective, StepValue, nothing_around
from mlx_finetune.train.objectives.classify import count_rows
from mlx_finetune.train.objectives.next_token import read_as
from mlx_finetune.train.objectives.preference.formulas import kto_losses, pair_losses
from mlx_finetune.train.objectives.preference.sequences import Sequences, first_answers

SHARE = "preference.share_prompt"
_TELLING_MARGIN = 0.1  # a reward; below it nothing has been learned yet
_UNPACKABLE = "a row holds two answers"

PAIR_METRICS = (
    "rewards/chosen",
    "rewards/rejected",
    "margin",
    "accuracy",
    "logps/chosen",
    "logps/rejected",
)
KTO_METRICS = ("good", "bad", "rewards/good", "rewards/bad", "logps/good", "logps/bad")


def preference(recipe: Recipe) -> Objective:
    """The objective of a preference task; whether prompts are shared is settled with the model."""
    settings = preference_settings(recipe.task, recipe.preference)
    wanted = settings.share_prompt
    return replace(
        preference_objective(recipe.task, settings, Sequences(is_shared=wanted is not False)),
        settle=partial(_settle, recipe.task, settings),
    )


def _settle(
    task: str, settings: PreferenceRecipe, split: SplitModel
) -> tuple[Objective, Mapping[str, tuple[object, str]]]:
    """With the prompt shared where that is wanted and the model allows it."""
    if settings.share_prompt is False:
        return preference_objective(task, settings, Sequences(is_shared=False)), {SHARE: (False, "as the recipe says")}
    reason = why_not_shared(split)
    chosen = "computed once for both answers of a row" if not reason else f"two sequences a row: {reason}"
    objective = preference_objective(task, settings, Sequences(is_shared=not reason))
    return objective, {SHARE: (not reason, chosen)}


def preference_objective(task: str, settings: PreferenceRecipe, sequences: Sequences) -> Objective:
    """One of them with these settings."""
    scores = _log_probs(task, sequences)
    if task == "kto":
        alone = Sequences(is_shared=False, num_answers=1)
        value = StepValue(scores, _moved_mismatched, lambda mean: max(0.0, mean))
        return replace(
            scores,
            arrays=partial(_kto_arrays, alone),
            loss=partial(_kto_loss, settings, alone),
            metrics=KTO_METRICS,
            unfold=first_answers,
            around=nothing_around,
            reference=scores,
            step_value=value,
            present=_present_kto,
        )
    return replace(
        scores,
        arrays=partial(_pair_arrays, sequences),
        loss=partial(_pair_loss, task, settings, sequences),
        metrics=PAIR_METRICS,
        reference=scores if needs_reference(task) else None,
        advise=_advise if needs_reference(task) else scores.advise,
    )


def _log_probs(task: str, sequences: Sequences) -> Objective:
    """An objective whose loss gives the log-probabilities of both answers of each row, (B, 2)."""

    def arrays(batch: Batch, parts: int) -> Arrays:
        found, values, _ = sequences.arrays(batch, parts)
        return *found, mx.zeros((len(values),))

    def loss(head: Head, hidden: mx.array, *arrays: mx.array) -> mx.array:
        return sequences.log_probs(head, hidden, arrays[-1].shape[0], *arrays)

    return Objective(
        task,
        read_as(task),
        arrays,
        loss,
        count=count_rows,
        unpackable=_UNPACKABLE,
        is_per_position=False,
        unfold=sequences.unfold,
        around=sequences.around if sequences.is_shared else nothing_around,
    )


def _pair_arrays(sequences: Sequences, batch: Batch, parts: int) -> Arrays:
    """What ``log_probs`` takes; then of each row (B, 5): tokens of both answers, weight, reference of both."""
    found, values, lengths = sequences.arrays(batch, parts)
    reference = values[:, WEIGHT + 1 : WEIGHT + 3]
    if reference.shape[1] < 2:
        reference = np.zeros((len(values), 2))
    numbers = np.concatenate([lengths, values[:, WEIGHT : WEIGHT + 1], reference], axis=1)
    return *found, mx.array(numbers.astype(np.float32))


def _pair_loss(
    task: str, settings: PreferenceRecipe, sequences: Sequences, head: Head, hidden: mx.array, *arrays: mx.array
) -> mx.array:
    """The sums over pairs of the weighted loss and of ``PAIR_METRICS``."""
    numbers = arrays[-1]
    logps = sequences.log_probs(head, hidden, numbers.shape[0], *arrays)
    losses, rewards = pair_losses(task, settings, logps, numbers[:, :2], numbers[:, 3:5])
    margins = rewards[:, 0] - rewards[:, 1]
    parts = [
        losses * numbers[:, 2],
        rewards[:, 0],
        rewards[:, 1],
        margins,
        share_right(mx.sign(margins)),
        logps[:, 0],
        logps[:, 1],
    ]
    return mx.stack([mx.sum(part.astype(mx.float32)) for part in parts])


def _advise(metrics: Mapping[str, float]) -> tuple[str, str]:
    """The usual failure: the margin grows while even the chosen answers become less likely."""
    chosen, margin = metrics["rewards/chosen"], metrics["margin"]
    if margin <= _TELLING_MARGIN or chosen >= -0.1 * margin:
        return "", ""
    return (
        f"the log-probability of the chosen answers has fallen (reward {chosen:.3g}) while the margin has grown to "
        f"{margin:.3g}: rejected answers are unlearned faster than chosen ones are learned",
        "preference.alpha = 1.0 adds the loss of the chosen answers; a lower learning rate or a higher beta helps too",
    )


def _kto_arrays(sequences: Sequences, batch: Batch, parts: int) -> Arrays:
    """What ``log_probs`` takes for first answers alone; then of each row (B, 4): good, weight, reference and z0."""
    found, values, _ = sequences.arrays(batch, parts)
    numbers = np.stack([values[:, IS_GOOD], values[:, WEIGHT], values[:, IS_GOOD + 1], values[:, IS_GOOD + 3]], axis=1)
    return *found, mx.array(numbers.astype(np.float32))


def _kto_loss(
    settings: PreferenceRecipe, sequences: Sequences, head: Head, hidden: mx.array, *arrays: mx.array
) -> mx.array:
    """The sums over answers of the weighted loss and of ``KTO_METRICS``."""
    numbers = arrays[-1]
    logps = sequences.log_probs(head, hidden, numbers.shape[0], *arrays).reshape(-1)
    is_good = numbers[:, 0]
    losses, rewards = kto_losses(settings, logps, numbers[:, 2], is_good, numbers[:, 3])
    kinds = (is_good, 1 - is_good)
    parts = [losses * numbers[:, 1], *kinds, *(rewards * kind for kind in kinds), *(logps * kind for kind in kinds)]
    return mx.stack([mx.sum(part) for part in parts])


def _moved_mismatched(found: NDArray[np.float32], batch: Batch) -> float:
    """The sum over rows of how far the log-probability of a mismatched answer has moved."""
    reference = batch.values[:, IS_GOOD + 2]
    return float((found[:, 1].astype(np.float64) - reference).sum())


def _present_kto(means: Mapping[str, float]) -> Mapping[str, float]:
    """Means over good and over bad answers, and the share of good ones; what a batch has none of is left out."""
    shown: dict[str, float] = {}
    for name, share in (("good", means["good"]), ("bad", means["bad"])):
        if share:
            shown[f"rewards/{name}"] = means[f"rewards/{name}"] / share
            shown[f"logps/{name}"] = means[f"logps/{name}"] / share
    if len(shown) == 4:
        shown["margin"] = shown["rewards/good"] - shown["rewards/bad"]
    return shown
