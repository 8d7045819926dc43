"""The general set: twelve plain paragraphs and forty short questions of our own, the same for every model.

It is there to notice forgetting, not to rank models: what it asks is easy, and its intervals are wide. A question is
answered right where one of its answers stands in the reply, word for word; a long reply that names many things may be
right by chance, on both sides alike.
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources

from mlx_finetune.scoring.text import normalise, words

#: Longest reply to one of the questions, in tokens.
ANSWER_TOKENS = 32
_FOLDER = "mlx_finetune.app.eval.general"


@dataclass(frozen=True, slots=True)
class Question:
    """A question and every answer that counts."""

    question: str
    answers: tuple[str, ...]

    def is_right(self, reply: str) -> bool:
        """Whether one of the answers stands in ``reply`` as whole words."""
        found = words(normalise(reply))
        return any(_stands_in(words(normalise(answer)), found) for answer in self.answers)


@cache
def questions() -> tuple[Question, ...]:
    """The questions, in their order."""
    rows = [json.loads(line) for line in _read("questions.jsonl").splitlines()]
    return tuple(Question(row["question"], tuple(row["answers"])) for row in rows)


@cache
def paragraphs() -> tuple[str, ...]:
    """The paragraphs, in their order."""
    return tuple(part.strip() for part in _read("text.txt").split("\n\n"))


def _read(name: str) -> str:
    return (resources.files(_FOLDER) / name).read_text(encoding="utf-8")


def _stands_in(part: list[str], whole: list[str]) -> bool:
    return any(whole[start : start + len(part)] == part for start in range(len(whole) - len(part) + 1))
