"""[preference] of a recipe: the few numbers of preference losses, each used by some tasks only.

Defaults are those of ALGORITHMS.md 6; ``preference_settings`` fills them in for a task.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field

from mlx_finetune.recipe.fields import Auto, Section

Weight = Annotated[float, Field(gt=0, le=1000)]

PAIRED_TASKS = ("dpo", "cdpo", "rdpo", "ipo", "simpo", "orpo")
PREFERENCE_TASKS = (*PAIRED_TASKS, "kto")
#: Tasks whose rows hold two answers (``dataset.pairs``).
TWO_ANSWER_TASKS = (*PREFERENCE_TASKS, "reward")


class PreferenceRecipe(Section):
    """[preference]: numbers of the losses on preferences; each task uses some of them."""

    beta: Annotated[float, Field(gt=0, le=1000)] | None = Field(
        None, description="How much a log-probability counts in the loss; default is 0.1, and 2 for simpo (not orpo)."
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] | None = Field(
        None, description="Share of pairs whose two answers are taken to be swapped, for cdpo and rdpo; default is 0.1."
    )
    gamma: Annotated[float, Field(ge=0, le=1000)] | None = Field(
        None, description="Margin that simpo asks for between the two answers; default is 1."
    )
    odds_weight: Annotated[float, Field(ge=0, le=1000)] | None = Field(
        None, description="Weight of the odds ratio beside the likelihood of the chosen answer in orpo; default is 0.1."
    )
    length_normalise: bool | None = Field(
        None, description="ipo on means over an answer's tokens instead of sums; default is true."
    )
    alpha: Annotated[float, Field(ge=0, le=1000)] | None = Field(
        None,
        description="Weight of the loss of the chosen answer (nats per token) beside dpo, cdpo, rdpo or ipo; default "
        "is 0, and 1 helps where the chosen log-probability falls.",
    )
    good_weight: Auto | Weight | None = Field(
        None, description="Weight of good answers in kto; auto weighs good and bad answers alike in sum."
    )
    bad_weight: Auto | Weight | None = Field(
        None, description="Weight of bad answers in kto; auto weighs good and bad answers alike in sum."
    )
    share_prompt: Auto | bool | None = Field(
        None,
        description="Compute the prompt of two answers once; auto does where the model allows it. The same numbers up "
        "to rounding.",
    )


_WITH_REFERENCE: Mapping[str, object] = {"beta": 0.1, "alpha": 0.0}
_SMOOTHED: Mapping[str, object] = {**_WITH_REFERENCE, "label_smoothing": 0.1}

#: Task -> the keys that it uses, with their defaults.
_DEFAULTS: Mapping[str, Mapping[str, object]] = {
    "dpo": _WITH_REFERENCE,
    "cdpo": _SMOOTHED,
    "rdpo": _SMOOTHED,
    "ipo": {**_WITH_REFERENCE, "length_normalise": True},
    "simpo": {"beta": 2.0, "gamma": 1.0},
    "orpo": {"odds_weight": 0.1},
    "kto": {"beta": 0.1, "good_weight": "auto", "bad_weight": "auto"},
}


def used_keys(task: str) -> Sequence[str]:
    """Keys of [preference] that ``task`` uses; none where it is no preference task."""
    return (*_DEFAULTS[task], "share_prompt") if task in _DEFAULTS else ()


def preference_settings(task: str, section: PreferenceRecipe | None) -> PreferenceRecipe:
    """``section`` with the defaults of ``task``, which is a preference task."""
    given = section.model_dump(exclude_none=True) if section else {}
    return PreferenceRecipe.model_validate({**_DEFAULTS[task], "share_prompt": "auto", **given})


def unused_problems(task: str, section: PreferenceRecipe | None) -> list[str]:
    """A sentence ``problem; way out`` for each key that ``task`` does not use."""
    if section is None:
        return []
    if task not in _DEFAULTS:
        return [f"[preference] goes with the tasks {', '.join(PREFERENCE_TASKS)}, and `task` is {task!r}; remove it"]
    used = used_keys(task)
    return [
        f"`preference.{key}` = {value} is not used by task {task!r}, which has {', '.join(used)}; remove it, or "
        f"take it away with --set preference.{key}="
        for key, value in section.model_dump(exclude_none=True).items()
        if key not in used
    ]


def needs_reference(task: str) -> bool:
    """True where the loss compares with the policy at step 0."""
    return task in ("dpo", "cdpo", "rdpo", "ipo", "kto")


def default_rate(task: str, *, is_adapter: bool) -> tuple[float, str]:
    """Peak learning rate of a preference task, and why (ALGORITHMS.md 6)."""
    if task == "orpo":
        return 8e-6, "for orpo"
    return (5e-6, f"for adapters with {task}") if is_adapter else (5e-7, f"where every weight is trained with {task}")


def settled_preference(
    task: str, section: PreferenceRecipe | None, answers: tuple[float, float] | None
) -> tuple[PreferenceRecipe | None, Mapping[str, str]]:
    """The section with the defaults of ``task``, and reasons by key; as it is for other tasks.

    ``answers`` are those marked good and bad, weighted as rows are: automatic weights make both kinds weigh alike.
    """
    if task not in PREFERENCE_TASKS:
        return section, {}
    settings = preference_settings(task, section)
    if answers is None:
        return settings, {}
    found = dict(zip(("good_weight", "bad_weight"), kto_weights(*answers), strict=True))
    chosen = {key: value for key, value in found.items() if getattr(settings, key) == "auto"}
    reason = f"{answers[0]:.10g} good and {answers[1]:.10g} bad answers weigh alike"
    return settings.model_copy(update=chosen), {f"preference.{key}": reason for key in chosen}


def kto_weights(num_good: float, num_bad: float) -> tuple[float, float]:
    """Weights of good and bad answers that make both weigh alike in sum: 1 for the more frequent kind."""
    if not num_good or not num_bad:
        return 1.0, 1.0
    return (1.0, num_good / num_bad) if num_good >= num_bad else (num_bad / num_good, 1.0)
