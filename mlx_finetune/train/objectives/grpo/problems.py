"""The problems of a run: a question with its reference answer, from a row of tokens; rows that no reward can judge."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

from mlx_finetune.dataset.token_rows import TokenRows
from mlx_finetune.dataset.tokens import Tokenizer, Tokens, last_answer
from mlx_finetune.errors import DataError
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.scoring.rules import Rule, found
from mlx_finetune.units import counted

_SAYS = {"number": "no number", "text": "no word", "exact": "nothing"}


@dataclass(frozen=True, slots=True)
class Problem:
    """The tokens of a question, what a right answer to it says, and ``file:line`` of both."""

    prompt: tuple[int, ...]
    reference: str
    where: str


def problem_of(row: Tokens, tokenizer: Tokenizer) -> Problem:
    """The question of a row of sft and its last answer."""
    start, end = last_answer(row.loss_mask)
    reference = tokenizer.decode(row.ids[start:end].tolist(), skip_special_tokens=True)
    return Problem(tuple(row.ids[:start].tolist()), reference, f"{row.source}:{row.line}")


def check_references(recipe: Recipe, train: TokenRows, valid: TokenRows, tokenizer: Tokenizer) -> None:
    """Raise ``DataError`` where a reward compares with references of which some say nothing that it could compare."""
    rewards = recipe.grpo.rewards if recipe.task == "grpo" else ()
    rules: list[Rule] = [rule for rule in get_args(Rule) if rule in rewards]
    if not rules:
        return
    references = [problem_of(part[number], tokenizer) for part in (train, valid) for number in range(len(part))]
    for name in rules:
        silent = list(_silent(name, references))
        if not silent:
            continue
        others = " and ".join(f'"{other}"' for other in get_args(Rule) if other != name)
        many = f"{len(silent)} of {counted(len(references), 'row')}"
        raise DataError(
            f"{silent[0].where}: the answer says {_SAYS[name]}, which the reward {name} compares with: {many} like it",
            f"put the right answer behind each question (`completion`, `output` or the last assistant turn), or choose "
            f"another of grpo.rewards: {others} compare otherwise, regex:PATTERN looks at the model's answer alone",
        )


def _silent(name: Rule, problems: list[Problem]) -> Iterator[Problem]:
    return (one for one in problems if found(name, one.reference) is None)
