"""How long a row is before it has tokens: what a plan guesses from where the model is not on this machine."""

from collections.abc import Sequence

from mlx_finetune.dataset.formats import Example, Instruction, Labelled, Messages, Preference, Text
from mlx_finetune.dataset.turns import Turn


def num_characters(example: Example) -> int:
    """Characters of what is said in an example, without the template around it."""
    match example:
        case Text():
            return len(example.text)
        case Instruction():
            return len(example.instruction) + len(example.input) + len(example.output)
        case Messages():
            return _said(example.messages)
        case Labelled():
            return len(example.text)
        case Preference():
            answers = max(_said(example.chosen or ()), _said(example.rejected or ()))
            return _said(example.prompt) + answers


def _said(turns: Sequence[Turn]) -> int:
    return sum(len(str(value)) for turn in turns for value in turn.values())
