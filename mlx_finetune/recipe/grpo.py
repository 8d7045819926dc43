"""[grpo]: how answers are drawn and rewarded where a model learns from its own answers (task = "grpo")."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, cast

from pydantic import BeforeValidator, Field

from mlx_finetune.recipe.evaluation import task_problem
from mlx_finetune.recipe.fields import Names, Section, Text, as_tuple
from mlx_finetune.recipe.measured import CHECKS

#: What [lora] is in a recipe of this task that names neither: little capacity is enough (ALGORITHMS.md section 7).
LORA_DEFAULTS: Mapping[str, object] = {"rank": 8, "alpha": 16.0}
#: Rewards by a run: the probability of being right by a verifier, the score of a reward model.
SCORERS = ("verifier", "reward")
#: Rewards by a rule; the checks of [eval] beside them.
RULES = ("number", "text", "exact", "json")

Weight = Annotated[float, Field(ge=-1000, le=1000)]
Weights = Annotated[tuple[Weight, ...], BeforeValidator(as_tuple, json_schema_input_type=list[Weight])]

with warnings.catch_warnings():
    # ``schema`` is also the name of a method of pydantic that was replaced by another; nothing here calls it.
    warnings.filterwarnings("ignore", message='Field name "schema"')

    class GrpoRecipe(Section):
        """[grpo]: rewards and rollouts of task = "grpo"."""

        rewards: Names = Field(
            ("number",),
            description="What an answer is rewarded for, 1 each: number, text or exact (right by its reference), json, "
            "max_length:N (characters), contains:TEXT, regex:PATTERN. verifier:RUN is the probability of being right "
            "by a finished verifier run, reward:RUN the score of a finished reward run.",
        )
        reward_weights: Weights = Field((), description="A weight for each of the rewards; left out, each counts 1.")
        schema: Text | None = Field(  # pyright: ignore[reportIncompatibleMethodOverride]
            None, description="JSON Schema file for the reward json; left out, any object will do."
        )
        group_size: Annotated[int, Field(ge=2, le=256)] = Field(
            8, description="Answers drawn to each problem; an answer is compared with the mean of its group."
        )
        max_tokens: Annotated[int, Field(ge=1, le=65_536)] = Field(
            256, description="Longest answer in tokens: time and memory grow with it."
        )
        temperature: Annotated[float, Field(gt=0, le=10)] = Field(
            1.0, description="Of the drawn answers; at 1 they come from the distribution that is trained."
        )
        updates: Annotated[int, Field(ge=1, le=64)] = Field(
            1,
            description="Optimizer steps on the answers of one drawing. max_steps and all other steps count each of "
            "them: with 4, answers are drawn in every fourth step.",
        )
        clip: Annotated[float, Field(gt=0, lt=1)] = Field(
            0.2,
            description="With several updates: the ratio of a token's probability to that at its drawing is learned "
            "from while it is this near to 1.",
        )
        divide_by_sd: bool = Field(
            False,
            description="Divide by the spread of the group's rewards; it favours problems that are nearly always or "
            "never solved.",
        )


def with_grpo_defaults(values: object) -> object:
    """``values`` of a recipe with this task's adapter where its [lora] names neither rank nor alpha."""
    if not isinstance(values, dict) or cast("dict[str, Any]", values).get("task") != "grpo":
        return values
    recipe = cast("dict[str, Any]", values)
    lora = recipe.get("lora")
    if not isinstance(lora, dict) or LORA_DEFAULTS.keys() & cast("dict[str, Any]", lora).keys():
        return recipe
    return recipe | {"lora": {**LORA_DEFAULTS, **cast("dict[str, Any]", lora)}}


def scorers_in(rewards: Sequence[str]) -> Sequence[str]:
    """Those of ``rewards`` that ask a run: ``verifier:RUN`` and ``reward:RUN``."""
    return [reward for reward in rewards if reward.partition(":")[0] in SCORERS]


def grpo_problems(recipe: Mapping[str, Any]) -> list[str]:
    """A sentence ``problem; way out`` for each key that does not go with the task; ``recipe`` are its sections."""
    grpo: GrpoRecipe = recipe["grpo"]
    if recipe["task"] != "grpo":
        return [] if grpo == GrpoRecipe.model_validate({}) else [_other_task(recipe["task"])]
    problems = [f"`grpo.rewards`: {problem}" for one in grpo.rewards if (problem := _reward_problem(one))]
    if grpo.reward_weights and len(grpo.reward_weights) != len(grpo.rewards):
        problems.append(
            f"`grpo.reward_weights` has {len(grpo.reward_weights)} entries and `grpo.rewards` {len(grpo.rewards)}; "
            "give one weight for each reward, or leave the weights out"
        )
    if grpo.schema and "json" not in grpo.rewards:
        problems.append('`grpo.schema` goes with the reward json; add "json" to `grpo.rewards`, or remove `schema`')
    if grpo.updates == 1 and grpo.clip != GrpoRecipe.model_fields["clip"].default:
        problems.append(
            f"`grpo.clip` = {grpo.clip} with `grpo.updates` = 1: one update never leaves the policy that gave the "
            "answers, so nothing is clipped; raise `updates`, or remove `clip`"
        )
    lora, data, training = recipe["lora"], recipe["data"], recipe["training"]
    if lora is not None and lora.dropout:
        problems.append(
            f"`lora.dropout` = {lora.dropout} with task 'grpo': answers would be judged by another model than the one "
            "that gave them; remove `dropout`"
        )
    if training.neftune_alpha:
        problems.append("`training.neftune_alpha` does not go with task 'grpo'; remove it")
    if data.packing is True:
        problems.append("`data.packing` = true with task 'grpo': answers are not packed; remove `packing`")
    if data.truncation == "split":
        problems.append("`data.truncation` = 'split' with task 'grpo': half a problem has no answer; remove it")
    if not data.mask_prompt:
        problems.append("`data.mask_prompt` = false with task 'grpo': answers alone are learned; remove `mask_prompt`")
    return problems


def _other_task(task: str) -> str:
    return f"[grpo] goes with the task grpo, and `task` is {task!r}; remove the section"


def _reward_problem(name: str) -> str:
    if name in RULES:
        return ""
    word, _, argument = name.partition(":")
    if word in SCORERS:
        return "" if argument else f"the reward {word} needs a run behind a colon; write for instance {word}:my-run"
    if word in CHECKS:
        return task_problem(name)
    checks = [f"{check}:" for check in (*CHECKS, *SCORERS)]
    return f"there is no reward {name[:40]!r}; rewards are {', '.join((*RULES, *checks))}"
