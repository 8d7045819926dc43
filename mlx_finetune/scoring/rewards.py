"""The reward of an answer by rules: a weighted sum of checks, each 0 or 1.

``number``, ``text`` and ``exact`` compare with the reference (``rules``); ``json`` asks for an object that parses, and
that fits the schema where there is one; ``max_length:N``, ``contains:TEXT`` and ``regex:PATTERN`` look at the answer
alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mlx_finetune.scoring.json_schema import Validator
from mlx_finetune.scoring.json_text import NotJsonError, first_object, parse
from mlx_finetune.scoring.rules import is_right
from mlx_finetune.scoring.text import contains, is_within, matches


@dataclass(frozen=True, slots=True)
class Rewards:
    """``checks`` with the weight of each."""

    checks: Sequence[str]
    weights: Sequence[float]
    validator: Validator | None = None

    def __call__(self, reference: str, answer: str) -> float:
        """The reward. Raises ``MlxftError`` for a pattern that takes too long."""
        return sum(
            weight * self._holds(check, reference, answer)
            for check, weight in zip(self.checks, self.weights, strict=True)
        )

    def _holds(self, check: str, reference: str, answer: str) -> bool:
        name, _, argument = check.partition(":")
        match name:
            case "number" | "text" | "exact":
                return is_right(name, reference, answer)
            case "json":
                return self._is_json(answer)
            case "max_length":
                return is_within(answer, int(argument))
            case "contains":
                return contains(answer, argument)
            case _:
                return matches(argument, answer)

    def _is_json(self, answer: str) -> bool:
        piece = first_object(answer)
        if piece is None:
            return False
        try:
            value = parse(piece)
        except NotJsonError:
            return False
        return self.validator is None or self.validator.is_valid(value)
