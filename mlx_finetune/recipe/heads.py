"""What a recipe says about tasks that train a score head, and which other keys do not go with them."""

from typing import Annotated

from pydantic import Field

from mlx_finetune.recipe.data import WHOLE_TEXT, DataRecipe
from mlx_finetune.recipe.fields import Section

#: Task -> why its rows cannot share a sequence.
SCORED_TASKS = {
    "classify": "every row has a label of its own",
    "reward": "a row holds two answers",
    "verifier": "every answer has a verdict of its own",
}


class VerifierRecipe(Section):
    """[verifier]: what task = "verifier" learns beside the verdict."""

    lm_loss_weight: Annotated[float, Field(ge=0, le=100)] = Field(
        1.0, description="Weight of the loss of the answers' tokens beside that of the verdict; 0 learns verdicts only."
    )


def scored_problems(task: str, data: DataRecipe, verifier: VerifierRecipe, num_prompts: int) -> list[str]:
    """A sentence ``problem; way out`` for each key that does not go with ``task``; [eval] has ``num_prompts``."""
    problems: list[str] = []
    if task != "verifier" and verifier != VerifierRecipe.model_validate({}):
        problems.append(f"[verifier] goes with the task verifier, and `task` is {task!r}; remove it")
    if task != "classify" and data.text_template != WHOLE_TEXT:
        problems.append(f"`data.text_template` goes with the task classify, and `task` is {task!r}; remove it")
    if task not in SCORED_TASKS:
        return problems
    if data.packing is True:
        problems.append(f"`data.packing` = true with task {task!r}: every row is scored alone; remove `packing`")
    if data.truncation == "split":
        problems.append(
            f"`data.truncation` = 'split' with task {task!r}: a piece of a row has no score; write \"drop\" or "
            '"keep-end"'
        )
    if not data.mask_prompt:
        problems.append(f"`data.mask_prompt` = false with task {task!r}: what is scored is fixed; remove `mask_prompt`")
    if num_prompts and task != "verifier":
        problems.append(
            f"`eval.prompts` has {num_prompts} entries, and a model of task {task!r} answers none; remove `prompts`"
        )
    return problems
