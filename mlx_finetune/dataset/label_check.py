"""What a user should know about the labels of a classification: how many rows have each, and what looks like a slip."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from mlx_finetune.dataset.formats import Labelled
from mlx_finetune.dataset.labels import MOST_LABELS
from mlx_finetune.dataset.problems import Findings, show
from mlx_finetune.errors import Problem

_NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?")
_ALIKE = "write them alike, unless they are meant to be different"
_GROUPED = "give rows a few classes instead, for instance low, middle and high"


class LabelScan:
    """The labels of one pass: how many training rows have each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, example: Labelled, split: str) -> None:
        """Take an example. One label more than classes may have is counted, and no further ones."""
        label = str(example.label)
        if split == "train" and (label in self.counts or len(self.counts) <= MOST_LABELS):
            self.counts[label] += 1

    def warn(self, warnings: Findings, source: str) -> None:
        """Add what looks like a slip; ``source`` is where the labels are."""
        for alike in _alike(self.counts):
            names = f"{', '.join(show(label) for label in alike[:-1])} and {show(alike[-1])}"
            warnings(
                Problem(source, f"the labels {names} differ in case or spaces only, and are classes apart", _ALIKE)
            )
        if len(self.counts) > 1 and _are_decimals(self.counts):
            message = f"the labels are decimal numbers, and each of the {len(self.counts)} is a class of its own"
            warnings(Problem(source, message, _GROUPED))


def _alike(labels: Mapping[str, int]) -> Iterator[Sequence[str]]:
    """Labels that are the same but for case and spaces, where there are several of them."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for label in sorted(labels):
        groups[" ".join(label.split()).casefold()].append(label)
    yield from (group for group in groups.values() if len(group) > 1)


def _are_decimals(labels: Mapping[str, int]) -> bool:
    """Are all labels numbers, and not all of them whole?"""
    return all(_NUMBER.fullmatch(label.strip()) for label in labels) and not all(
        label.strip().lstrip("+-").isdecimal() for label in labels
    )
