"""How long the rows of an epoch are as they go through the model, whatever the task makes of them."""

import numpy as np
from numpy.typing import NDArray

from mlx_finetune.dataset.pairs import longest_sequences
from mlx_finetune.dataset.stream import epoch_rows
from mlx_finetune.dataset.token_rows import TokenRows
from mlx_finetune.dataset.tokens import last_answer
from mlx_finetune.hardware.planning.layout import shares_prompts
from mlx_finetune.recipe.preference import TWO_ANSWER_TASKS
from mlx_finetune.recipe.schema import Recipe


def planned_lengths(rows: TokenRows, recipe: Recipe, model_type: str) -> NDArray[np.int64]:
    """Tokens of every row of the first epoch, in its order.

    Two answers that do not share their prompt are two sequences with their padding; of grpo a problem, of which
    the earlier answers of a conversation are a part, has the longest answer behind it.
    """
    lengths = rows.lengths
    if recipe.task == "grpo":
        starts = [last_answer(rows[number].loss_mask)[0] for number in range(len(rows))]
        lengths = np.array(starts, np.int64) + recipe.grpo.max_tokens
    elif recipe.task in TWO_ANSWER_TASKS and not shares_prompts(recipe, model_type):
        lengths = 2 * longest_sequences(rows)
    return lengths[epoch_rows(rows, recipe.seed, 0)]
