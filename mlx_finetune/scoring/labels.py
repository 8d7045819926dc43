"""Classification: accuracy, macro F1, and which label a generated text names.

Unicode: labels and texts are compared after NFC and ``casefold``, with single spaces.
"""

import functools
import re
from collections.abc import Sequence

from mlx_finetune.errors import UsageError
from mlx_finetune.scoring.text import nfc

#: (the right label, the label predicted or None where the answer names no label)
Pairs = Sequence[tuple[str, str | None]]


def accuracy(pairs: Pairs) -> float:
    """Share of pairs whose label was predicted; an answer without a label is wrong."""
    assert pairs
    return sum(gold == predicted for gold, predicted in pairs) / len(pairs)


def macro_f1(pairs: Pairs) -> float:
    """Mean over classes of ``2 tp / (2 tp + fp + fn)``; classes are all labels that are right or predicted somewhere.

    An answer without a label counts as missed in its class and is no class of its own. As scikit-learn's, with 0 for 0
    / 0.
    """
    assert pairs
    classes = {label for pair in pairs for label in pair if label is not None}
    return sum(_f1(pairs, label) for label in classes) / len(classes)


def named_label(text: str, labels: Sequence[str]) -> str | None:
    """The one label that the text names, as given in ``labels``, or None.

    The first line that names any label decides, so what a model rambles on about does not count; a line that names
    several names none. Labels are found as whole words, the longest first (``very good`` is not ``good``). "not
    positive" names ``positive``: this reads words, not meaning; the likelihood of each label is the better measure.
    Raises ``UsageError`` for labels that cannot be told apart.
    """
    pattern, given = _compile(tuple(labels))
    for line in text.splitlines():
        named = {given[found[0]] for found in pattern.finditer(_fold(line))}
        if named:
            return named.pop() if len(named) == 1 else None
    return None


def _f1(pairs: Pairs, label: str) -> float:
    hits = sum(gold == predicted == label for gold, predicted in pairs)
    return 2 * hits / sum((gold == label) + (predicted == label) for gold, predicted in pairs)


@functools.lru_cache(maxsize=16)
def _compile(labels: tuple[str, ...]) -> tuple["re.Pattern[str]", dict[str, str]]:
    """One expression for all labels, longest first, and what each match was given as."""
    if not labels:
        raise UsageError("no label is given", "name the labels, or let them be taken from the rows")
    given: dict[str, str] = {}
    for label in labels:
        folded = _fold(label)
        if not folded:
            raise UsageError("a label is empty", "every label needs at least one character that can be seen")
        if given.setdefault(folded, label) != label:
            raise UsageError(
                f"the labels {given[folded]!r} and {label!r} differ only in case, spaces or the form of an accent",
                "write the label the same way in every row",
            )
    longest_first = sorted(given, key=len, reverse=True)
    return re.compile("|".join(_whole_word(folded) for folded in longest_first)), given


def _fold(text: str) -> str:
    return " ".join(nfc(nfc(text).casefold()).split())


def _whole_word(folded: str) -> str:
    """Not inside a longer word, where the label's own end is a letter of a script that separates words."""
    before = r"(?<![^\W\u0e00-\u0eff\u3040-\u9fff])" if _separates(folded[0]) else ""
    after = r"(?![^\W\u0e00-\u0eff\u3040-\u9fff])" if _separates(folded[-1]) else ""
    return before + re.escape(folded) + after


def _separates(letter: str) -> bool:
    return letter.isalnum() and not "\u0e00" <= letter <= "\u0eff" and not "\u3040" <= letter <= "\u9fff"
