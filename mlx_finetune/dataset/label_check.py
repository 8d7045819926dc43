"""What a user should know about the labels of a classification: how many rows have each, and what looks like a slip."""

import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from mlx_finetune.dataset.formats import Labelled
from mlx_finetune.dataset.labels import MOST_LABELS
from mlx_finetune.dataset.problems import SHOWN_PER_KIND, Findings, show
from mlx_finetune.dataset.split import key_of
from mlx_finetune.errors import Problem

_NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?")
_ALIKE = "write them alike, unless they are meant to be different"
_GROUPED = "give rows a few classes instead, for instance low, middle and high"


class LabelScan:
    """The labels of one pass: rows of each among the training rows, and what text has which label (24 bytes a row)."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._texts = array("Q")
        self._labels = array("Q")
        self._rows = array("Q")

    def add(self, example: Labelled, content: str, split: str, row: int) -> None:
        """Take an example, whose content is ``content``; ``row`` is its number in the pass.

        One label more than classes may have is counted, and no further ones.
        """
        label = str(example.label)
        if split == "train" and (label in self.counts or len(self.counts) <= MOST_LABELS):
            self.counts[label] += 1
        self._texts.append(key_of(content[: -len(label) - 1]))
        self._labels.append(key_of(label))
        self._rows.append(row)

    def warn(self, warnings: Findings, source: str, place: Callable[[int], str]) -> None:
        """Add what looks like a slip; ``source`` is where the labels are, ``place`` where a row of the pass is."""
        for alike in _alike(self.counts):
            names = f"{', '.join(show(label) for label in alike[:-1])} and {show(alike[-1])}"
            warnings(
                Problem(source, f"the labels {names} differ in case or spaces only, and are classes apart", _ALIKE)
            )
        if len(self.counts) > 1 and _are_decimals(self.counts):
            message = f"the labels are decimal numbers, and each of the {len(self.counts)} is a class of its own"
            warnings(Problem(source, message, _GROUPED))
        again, first = self._contradictions()
        shown = [
            Problem(
                place(later),
                f'the text stands at "{place(earlier)}" with another label',
                "correct or remove one of them",
            )
            for later, earlier in zip(again[:SHOWN_PER_KIND], first, strict=False)
        ]
        warnings.add_counted(shown, len(again))

    def _contradictions(self) -> tuple[Sequence[int], Sequence[int]]:
        """Rows whose text has another label than where it stands first, and these first rows."""
        texts, labels, rows = (np.frombuffer(one, dtype=np.uint64) for one in (self._texts, self._labels, self._rows))
        if not len(texts):
            return (), ()
        order = np.argsort(texts, kind="stable")
        ordered = texts[order]
        is_again = np.concatenate(([False], ordered[1:] == ordered[:-1]))
        first = order[np.maximum.accumulate(np.where(is_again, 0, np.arange(len(order))))]
        differs = labels[order] != labels[first]
        pairs = sorted(zip(rows[order[differs]].tolist(), rows[first[differs]].tolist(), strict=True))
        return [later for later, _ in pairs], [earlier for _, earlier in pairs]


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
