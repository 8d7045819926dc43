"""One answer as a verifier or a reward model was trained on such, up to the token whose state is scored.

A verifier learned at the tokens of the answer, so the last of them is scored; a reward model at the last token of the
conversation, which may be one that the template writes behind the answer.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlx_finetune.dataset.formats import Preference
from mlx_finetune.dataset.pairs import fitted_sequences
from mlx_finetune.dataset.tokens import Tokenizer
from mlx_finetune.dataset.turns import Turn
from mlx_finetune.dataset.walk import Walk
from mlx_finetune.recipe.data import DataRecipe


class AnswerRows:
    """What makes tokens of answers for one scoring run; ``data`` and ``task`` are those of its recipe."""

    def __init__(self, tokenizer: Tokenizer, data: DataRecipe, *, task: str, base: Path | None) -> None:
        self._data, self._bos = data, tokenizer.bos_token_id
        self._walk = Walk(tokenizer, data, task=task, base=base)
        self._is_reward = task == "reward"

    def ids(self, prompt: Sequence[Turn], answer: str) -> NDArray[np.int32]:
        """Prompt and answer, (n,). Raises ``DataError`` where the template or max_seq_length cannot hold them."""
        example = Preference(tuple(prompt), ({"role": "assistant", "content": answer},), None, None, "", 0)
        if not self._is_reward:
            row = self._walk.tokenized(example)[-1]
            return row.ids[: int(np.flatnonzero(row.loss_mask)[-1]) + 1]
        return fitted_sequences(self._walk, example, self._data, self._bos)["chosen"][0]
