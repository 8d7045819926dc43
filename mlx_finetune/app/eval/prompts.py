"""Rows to tokens: as they were trained, for their loss; as a prompt, with examples in front or without, for an answer.

The same template code as in training. Examples in front are turns of their own where the model has a chat template;
elsewhere each is prompt and answer in one text, a blank line after it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlx_finetune.app.eval.rows import EvalRow
from mlx_finetune.dataset.control import ControlMarkers
from mlx_finetune.dataset.conversation import prompt_and_reference, single_exchange
from mlx_finetune.dataset.formats import Example, Instruction, Messages, Preference
from mlx_finetune.dataset.pairs import TokenSequence, fitted_sequences
from mlx_finetune.dataset.prompts import template_of
from mlx_finetune.dataset.tokens import Message, Tokenizer, Tokens
from mlx_finetune.dataset.walk import Walk
from mlx_finetune.errors import DataError
from mlx_finetune.model.likelihoods import Ids
from mlx_finetune.recipe.data import DataRecipe
from mlx_finetune.recipe.heads import SCORED_TASKS

NO_LIMIT = 1_048_576
_EXTRA_TOKENS, _MAX_AUTO_TOKENS = 16, 1024
_BETWEEN = "\n\n"


@dataclass(frozen=True, slots=True)
class Continuation:
    """Tokens whose last ``num_targets`` are the answer with its end mark, the rest the prompt."""

    ids: NDArray[np.int32]
    num_targets: int


class Prompter:
    """What makes tokens of rows for one model and recipe."""

    def __init__(self, tokenizer: Tokenizer, data: DataRecipe, *, task: str, base: Path | None) -> None:
        self._tokenizer, self._data = tokenizer, data
        self._walk = Walk(tokenizer, data, task=task, base=base)
        self._pairs = Walk(tokenizer, data, task="dpo", base=base)
        longest = NO_LIMIT if task in SCORED_TASKS else data.max_seq_length  # a question about a row is longer than it
        answers = data.model_copy(update={"mask_prompt": True, "max_seq_length": longest})
        self._answers = Walk(tokenizer, answers, task="sft", base=base)
        self._markers = ControlMarkers(tokenizer)
        self._template = template_of(tokenizer, data, base=base)

    def trained(self, example: Example) -> list[Tokens]:
        """The row as training sees it, often one sequence. Raises ``DataError`` where nothing of it can be used."""
        return self._walk.tokenized(example)

    def scored(self, example: Example) -> list[Ids]:
        """What a score head is given of a row, up to the token that is scored: of a pair both answers, the chosen one
        first. Raises ``DataError`` where nothing of it can be used."""
        if not isinstance(example, Preference) or example.chosen is None or example.rejected is None:
            return [self.trained(example)[-1].ids[:-1]]
        return [ids for ids, _ in self.answers(example).values()]

    def answers(self, example: Preference) -> dict[str, TokenSequence]:
        """Ids and mask of the chosen and the rejected answer by name, those there are, cut as in training. Raises
        ``DataError``."""
        return fitted_sequences(self._pairs, example, self._data, self._tokenizer.bos_token_id)

    def prompt(self, messages: Sequence[Message], *, example: Example | None = None) -> list[int]:
        """The tokens of a question without examples in front. Raises ``DataError``."""
        if self._template is None:
            tools = example.tools if isinstance(example, Messages) else None
            return self._walk.prompt_ids(messages, tools)
        instruction, context = _instruction(messages, example)
        return self._encoded(self._template.prompt(instruction, context))

    def row_prompt(self, row: EvalRow, shots: Sequence[Example] = ()) -> list[int]:
        """The tokens of a row's prompt with ``shots`` in front of it. Raises ``DataError``."""
        if not row.prompt:
            raise DataError("the row has no question with an answer")
        if not shots:
            return self.prompt(row.prompt, example=row.example)
        if self._template is None:
            return self.prompt(_with_shots(row.prompt, shots), example=row.example)
        texts = [self._whole(shot) for shot in shots]
        instruction, context = _instruction(row.prompt, row.example)
        return self._encoded(_BETWEEN.join([*texts, self._template.prompt(instruction, context)]))

    def continuation(self, row: EvalRow, answer: str, shots: Sequence[Example] = ()) -> Continuation:
        """The row's prompt followed by ``answer`` and its end mark. Raises ``DataError``."""
        alone = self.prompt(row.prompt, example=row.example)
        (tokens,) = self._answers.tokenized(_answered(row.example, answer))[-1:]
        start = int(np.flatnonzero(tokens.loss_mask)[-1]) + 1
        whole = tokens.ids[:start]  # what some templates write after the end mark is nobody's choice
        if list(whole[: len(alone)]) != alone:
            raise DataError("the answer changes how its prompt is read, so it has no probability of its own")
        front = self.row_prompt(row, shots) if shots else alone
        targets = whole[len(alone) :]
        return Continuation(np.concatenate([np.array(front, np.int32), targets]), len(targets))

    def _whole(self, shot: Example) -> str:
        assert self._template is not None
        prompt, answer = prompt_and_reference(shot)
        instruction, context = _instruction(prompt, shot)
        text = self._template.prompt(instruction, context) + answer + self._template.ending(instruction, context)
        return text.rstrip()

    def _encoded(self, text: str) -> list[int]:
        marker = self._markers.find(text)
        if marker:
            raise DataError(f"the prompt holds the control marker {marker!r}", "write it in other words")
        begins = self._walk.edge_texts()[0] and self._tokenizer.bos_token_id is not None
        head = [self._tokenizer.bos_token_id] if begins else []
        return [id_ for id_ in head if id_ is not None] + self._tokenizer.encode(text).ids + self._walk.behind_prompt


def enough_tokens(tokenizer: Tokenizer, references: Sequence[str]) -> int:
    """Twice the tokens of the longest reference and a few more, so that no good answer is cut."""
    longest = max((len(encoding.ids) for encoding in tokenizer.encode_batch(references)), default=0)
    return min(2 * longest + _EXTRA_TOKENS, max(_MAX_AUTO_TOKENS, longest + _EXTRA_TOKENS))


def _instruction(messages: Sequence[Message], example: Example | None) -> tuple[str, str]:
    """Instruction and input for a prompt template."""
    if isinstance(example, Instruction):
        return example.instruction, example.input
    instruction, context, _ = single_exchange([*messages, {"role": "assistant", "content": ""}])
    return instruction, context


def _with_shots(prompt: Sequence[Message], shots: Sequence[Example]) -> list[Message]:
    """The examples as turns between the system turn of the prompt and the rest of it."""
    turns: list[Message] = [turn for turn in prompt if turn["role"] == "system"]
    for shot in shots:
        asked, answer = prompt_and_reference(shot)
        turns += [turn for turn in asked if turn["role"] != "system"]
        turns.append({"role": "assistant", "content": answer})
    return turns + [turn for turn in prompt if turn["role"] != "system"]


def _answered(example: Example, answer: str) -> Example:
    """The row with another last answer."""
    if isinstance(example, Instruction):
        return replace(example, output=answer)
    assert isinstance(example, Messages)
    last = max(place for place, turn in enumerate(example.messages) if turn["role"] == "assistant")
    return replace(example, messages=(*example.messages[:last], {"role": "assistant", "content": answer}))
