"""ROUGE-1, 2, L and Lsum through the package ``rouge-score``, Porter stemmer on.

For ASCII the same figures as ``rouge-score``'s own words. That package drops every other letter, so Greek or Chinese
would score 0 whatever the answer: here letters of all scripts are kept (NFC), and each Chinese or Japanese character
is a word. Lsum takes lines as sentences, as the package does by default. ROUGE-L takes time in words squared, so only
the first 2,000 words of a text are read (at most about 2 s a pair).
"""

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlx_finetune.scoring.text import nfc, words

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

MAX_WORDS = 2_000

_NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True)
class Rouge:
    """F-measures, each 0 to 1."""

    rouge1: float
    rouge2: float
    rouge_l: float
    rouge_lsum: float


def rouge(expected: str, got: str) -> Rouge:
    """ROUGE of ``got`` against one reference; all 0 where either has no word."""
    scores = _scorer().score(_first_words(expected), _first_words(got))
    return Rouge(*(float(scores[name].fmeasure) for name in _NAMES))


class _Words:
    """The tokenizer for rouge-score: letters and digits in lower case, its stems of ASCII words above 3."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self._stem = functools.lru_cache(maxsize=50_000)(PorterStemmer().stem)

    def tokenize(self, text: str) -> list[str]:
        found = words(" ".join(_WORD.findall(text.lower())))
        return [self._stem(word) if len(word) > 3 and word.isascii() else word for word in found]


@functools.cache
def _scorer() -> "RougeScorer":
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(_NAMES), tokenizer=_Words())


def _first_words(text: str) -> str:
    """The text in NFC, cut after the 2,000th word."""
    text = nfc(text)
    starts = re.finditer(r"[^\W_\u3040-\u9fff]+|[\u3040-\u9fff]", text)
    for count, found in enumerate(starts, start=1):
        if count > MAX_WORDS:
            return text[: found.start()]
    return text
