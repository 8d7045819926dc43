"""Every objective by the name that ``task`` has in a recipe."""

from collections.abc import Callable

from mlx_finetune.recipe.preference import PREFERENCE_TASKS
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.train.objective import Objective
from mlx_finetune.train.objectives.classify import classify
from mlx_finetune.train.objectives.grpo.policy import grpo
from mlx_finetune.train.objectives.next_token import next_token
from mlx_finetune.train.objectives.preference.objective import preference
from mlx_finetune.train.objectives.reward import reward
from mlx_finetune.train.objectives.scratch import pretrain
from mlx_finetune.train.objectives.seq2seq import seq2seq
from mlx_finetune.train.objectives.verifier import verifier

#: Name of a task -> its objective with the settings of a recipe.
OBJECTIVES: dict[str, Callable[[Recipe], Objective]] = {
    "sft": lambda recipe: next_token("sft"),
    "pretrain": lambda recipe: pretrain(recipe.scratch),
    **dict.fromkeys(PREFERENCE_TASKS, preference),
    "grpo": grpo,
    "seq2seq": lambda recipe: seq2seq(),
    "classify": lambda recipe: classify(),
    "reward": lambda recipe: reward(),
    "verifier": lambda recipe: verifier(recipe.verifier.lm_loss_weight),
}


def build_objective(recipe: Recipe) -> Objective:
    """The objective of the recipe's task."""
    return OBJECTIVES[recipe.task](recipe)
