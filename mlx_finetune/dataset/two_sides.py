"""Rows of encoder-decoder models: the prompt with its end mark, the start token, the answer with its end mark.

Both are one sequence, so that everything that reads rows goes on as it does; the model divides it at the start token.
Prompt and answer are tokenised apart, because the model reads them apart. Each has a limit of its own.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mlx_finetune.dataset.edges import Edges
from mlx_finetune.dataset.tokens import Tokenizer
from mlx_finetune.errors import ModelError
from mlx_finetune.recipe.data import DataRecipe

_WRITE = 'write task = "seq2seq"'

Row = tuple[NDArray[np.int32], NDArray[np.bool_]]


def two_sided(prompt: NDArray[np.int32], answer: NDArray[np.int32], edges: Edges) -> Row:
    """The whole row, however long, whose targets are the answer and its end mark."""
    ids = np.concatenate([prompt, [edges.end, edges.start], answer, [edges.end]]).astype(np.int32)
    return ids, np.arange(len(ids)) >= len(prompt) + 2


def fit(
    ids: NDArray[np.int32], mask: NDArray[np.bool_], data: DataRecipe, note: Callable[[str, str, str], None]
) -> list[Row]:
    """The row within both limits; none where it is left out. ``note`` is told what was too long or cut.

    An answer is never cut: the model would learn to stop in the middle. Of a prompt that is too long the end is kept
    where ``truncation`` says so.
    """
    num_source, num_target, limit = source_length(mask), int(np.count_nonzero(mask)), data.max_seq_length
    if num_target > data.max_target_length:
        longest = f"max_target_length = {data.max_target_length}"
        note(
            "too_long",
            f"the answer's {num_target} tokens are more than {longest}: dropped",
            "raise data.max_target_length",
        )
        return []
    if num_source <= limit:
        return [(ids, mask)]
    problem = f"the prompt's {num_source} tokens are more than max_seq_length = {limit}"
    if data.truncation == "drop":
        note("too_long", f"{problem}: dropped", "")
        return []
    note("cut", f"{problem}: cut at the front", "")
    return [(ids[num_source - limit :], mask[num_source - limit :])]


def source_length(mask: NDArray[np.bool_]) -> int:
    """Tokens of the prompt with its end mark; the start token stands between them and the targets."""
    return int(mask.argmax()) - 1


def check_task(task: str, tokenizer: Tokenizer, model: str) -> None:
    """Raise ``ModelError`` where ``task`` and the kind of ``model`` do not go together."""
    is_two_sided = tokenizer.start_token_id is not None
    if task == "seq2seq" and not is_two_sided:
        raise ModelError(
            f'{model} has no encoder, which task = "seq2seq" trains',
            'write task = "sft", or choose a T5, such as model = "flan-t5-small"',
        )
    if is_two_sided and task != "seq2seq":
        raise ModelError(f"{model} is an encoder-decoder model, which task = {task!r} cannot train", _WRITE)
