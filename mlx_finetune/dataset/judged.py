"""Rows that judge, as labels, preferences and marks do: what they say against each other, or leave unsaid.

28 bytes a row are kept, of rows of these kinds alone.
"""

from array import array
from collections import Counter
from collections.abc import Sequence

from mlx_finetune.dataset.formats import Example, Labelled, Preference
from mlx_finetune.dataset.problems import SHOWN_PER_KIND, Findings
from mlx_finetune.dataset.split import judgement_of, key_of
from mlx_finetune.dataset.turns import Turn
from mlx_finetune.errors import Problem

_CORRECT = "correct or remove one of them"
_LEARNS = {True: "the model learns to answer nothing", False: "the model learns not to end at once; is that meant?"}
#: Is the only kind of answers the good ones? -> problem and hint.
_ONE_KIND = {
    True: (
        "every training row is marked good, so nothing shows what a bad answer is",
        'add answers with the label false, or learn the good ones with task = "sft"',
    ),
    False: (
        "every training row is marked bad, so nothing shows what a good answer is",
        "add answers with the label true; with bad ones alone a model soon unlearns more than these, so take a low "
        "training.learning_rate",
    ),
}


class JudgedScan:
    """Adds warnings to ``warnings``: of empty answers as rows come, of what only all rows together show at the end."""

    def __init__(self, warnings: Findings) -> None:
        self._warnings = warnings
        self._marks: Counter[bool] = Counter()
        self._sources: list[str] = []
        self._source_numbers = array("I")
        self._lines, self._subjects, self._verdicts = array("Q"), array("Q"), array("Q")
        self._words = ""

    def add(self, example: Example, content: str, split: str) -> None:
        """Take an example, whose content is ``content``; one that judges nothing is passed by."""
        if isinstance(example, Preference):
            self._add_marks(example, split)
        judgement = judgement_of(example, content)
        if judgement is None:
            return
        self._words = _words(example)
        if self._sources[-1:] != [example.source]:
            self._sources.append(example.source)
        self._source_numbers.append(len(self._sources) - 1)
        self._lines.append(example.line)
        self._subjects.append(key_of(judgement[0]))
        self._verdicts.append(key_of(judgement[1]))

    def finish(self) -> None:
        """Warn of training answers of one kind alone, and of rows that say the opposite of an earlier one."""
        if len(self._marks) == 1:
            (is_good,) = self._marks
            self._warnings(Problem(self._sources[0], *_ONE_KIND[is_good]))
        again, first = self._contradictions()
        shown = [
            Problem(self._place(later), self._words.format(f'"{self._place(earlier)}"'), _CORRECT)
            for later, earlier in zip(again[:SHOWN_PER_KIND], first, strict=False)
        ]
        self._warnings.add_counted(shown, len(again))

    def _add_marks(self, example: Preference, split: str) -> None:
        is_pair = example.chosen is not None and example.rejected is not None
        if not is_pair and split == "train":
            self._marks[example.chosen is not None] += 1
        for name, answer in (("chosen", example.chosen), ("rejected", example.rejected)):
            if answer is not None and _is_empty(answer):
                message = f"the {name} answer is empty" if is_pair else "the answer is empty"
                self._warnings(Problem(f"{example.source}:{example.line}", message, _LEARNS[name == "chosen"]))

    def _place(self, row: int) -> str:
        return f"{self._sources[self._source_numbers[row]]}:{self._lines[row]}"

    def _contradictions(self) -> tuple[Sequence[int], Sequence[int]]:
        """Rows whose verdict is another one than where their subject stands first, and these first rows."""
        import numpy as np  # a check of recipes alone needs none

        subjects, verdicts = (np.frombuffer(one, dtype=np.uint64) for one in (self._subjects, self._verdicts))
        if not len(subjects):
            return (), ()
        order = np.argsort(subjects, kind="stable")
        ordered = subjects[order]
        is_again = np.concatenate(([False], ordered[1:] == ordered[:-1]))
        first = order[np.maximum.accumulate(np.where(is_again, 0, np.arange(len(order))))]
        differs = verdicts[order] != verdicts[first]
        pairs = sorted(zip(order[differs].tolist(), first[differs].tolist(), strict=True))
        return [later for later, _ in pairs], [earlier for _, earlier in pairs]


def _words(example: Example) -> str:
    """What is said of a row that contradicts the one at ``{}``."""
    if isinstance(example, Labelled):
        return "the text stands at {} with another label"
    is_pair = isinstance(example, Preference) and example.chosen is not None and example.rejected is not None
    return (
        "the same answers stand at {} the other way round"
        if is_pair
        else "the answer stands at {} with the other label"
    )


def _is_empty(answer: Sequence[Turn]) -> bool:
    return all(not str(turn["content"]).strip() and "tool_calls" not in turn for turn in answer)
