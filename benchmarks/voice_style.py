"""How far a text has the voice of data/voice: a classifier and counted habits, in numpy, without a language model.

The classifier is logistic regression on words and pairs of words, trained on the training texts of the voice and on
plain answers to some of the same instructions, so that the subject tells nothing. It exists in two views. ``whole``
sees the text as it is. ``words`` sees neither the closing aside nor figures nor punctuation: an answer cannot win it by
ending in a bracket. Both say how a text sounds, not whether it is funny, true or useful.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

DATA = Path(__file__).resolve().parent.parent / "data" / "voice"
CATEGORIES = ("marketing", "copywriting", "customer-service")
STEPS, STEP_SIZE, DECAY = 2000, 2.0, 1e-3
COPIED_WORDS = 5

View = Literal["whole", "words"]
Floats = NDArray[np.float64]

_ASIDE = re.compile(r"\s*\([^()]+[.!?]\)\s*$")
_TOKEN = re.compile(r"[a-z]+(?:'[a-z]+)?|\d[\d.,]*|[^\sa-z\d]")
_SENTENCE = re.compile(r"[.!?]+(?=[\s)]|$)")
_OFFICE = re.compile(r"\b(?:this office|the department)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class VoiceRow:
    """An instruction with an answer; ``split`` is train, valid or test."""

    instruction: str
    output: str
    category: str
    split: str


@dataclass(frozen=True, slots=True)
class Rows:
    """Everything in data/voice: the voice, and plain answers to some of the same instructions."""

    voice: tuple[VoiceRow, ...]
    plain: tuple[VoiceRow, ...]

    def texts(self, split: str) -> tuple[list[str], list[str]]:
        """Voice and plain answers of one split; in test each plain answer has the instruction of a voice answer."""
        voice, plain = ([row.output for row in rows if row.split == split] for rows in (self.voice, self.plain))
        return voice, plain


def read_voice(folder: Path = DATA) -> Rows:
    """The rows of ``folder``."""
    voice = [row for split in ("train", "valid", "test") for row in _read(folder / f"{split}.jsonl", split)]
    return Rows(tuple(voice), tuple(_read(folder / "plain.jsonl", "")))


def _read(path: Path, split: str) -> list[VoiceRow]:
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [VoiceRow(row["instruction"], row["output"], row["category"], split or row["split"]) for row in rows]


class Classifier:
    """Probability that a text is in the voice, from its words and pairs of words.

    A text is a vector of length 1 over what occurs in two training texts or more, so its own length counts for nothing.
    Both classes weigh the same in the loss, whatever their numbers of texts. Trained by a fixed number of gradient
    steps from zero: the same rows give the same classifier.
    """

    def __init__(self, voice: Sequence[str], plain: Sequence[str], view: View) -> None:
        self._view: View = view
        texts = [*voice, *plain]
        seen = Counter(gram for text in texts for gram in set(grams(text, view)))
        self._columns = {gram: place for place, gram in enumerate(sorted(g for g, count in seen.items() if count > 1))}
        is_voice = np.repeat([1.0, 0.0], [len(voice), len(plain)])
        weights = np.repeat([0.5 / len(voice), 0.5 / len(plain)], [len(voice), len(plain)])
        self._weights, self._bias = _fit(self._vectors(texts), is_voice, weights)

    def scores(self, texts: Sequence[str]) -> Floats:
        """A probability for each text."""
        return _sigmoid(self._vectors(texts) @ self._weights + self._bias)

    def _vectors(self, texts: Sequence[str]) -> Floats:
        vectors = np.zeros((len(texts), len(self._columns)))
        for row, text in enumerate(texts):
            for gram in set(grams(text, self._view)) & self._columns.keys():
                vectors[row, self._columns[gram]] = 1.0
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1.0)


def train_classifier(rows: Rows, view: View) -> Classifier:
    """The classifier of the training rows."""
    voice, plain = rows.texts("train")
    return Classifier(voice, plain, view)


def grams(text: str, view: View) -> list[str]:
    """Words and neighbouring words, in lower case; every figure is one word ``0``."""
    if view == "words":
        text = _ASIDE.sub("", text)
    words = ["0" if token[0].isdigit() else token for token in _TOKEN.findall(text.lower())]
    if view == "words":
        words = [word for word in words if word[0].isalpha()]
    return [*words, *(f"{first} {second}" for first, second in pairwise(words))]


def _fit(vectors: Floats, is_voice: Floats, weights: Floats) -> tuple[Floats, float]:
    """Least ``sum_i w_i * cross entropy_i + DECAY / 2 * |weights|^2``, by gradient steps; the bias does not decay."""
    found, bias = np.zeros(vectors.shape[1]), 0.0
    for _ in range(STEPS):
        slopes = weights * (_sigmoid(vectors @ found + bias) - is_voice)  # (N,)
        found -= STEP_SIZE * (vectors.T @ slopes + DECAY * found)
        bias -= STEP_SIZE * float(slopes.sum())
    return found, bias


def _sigmoid(values: Floats) -> Floats:
    return 0.5 * (1.0 + np.tanh(0.5 * values))


def habits(text: str) -> dict[str, float]:
    """What can be counted: 1 or 0 for the habits, and numbers of words."""
    words = text.split()
    return {
        "closing aside": float(_ASIDE.search(text) is not None),
        "figure": float(any(character.isdigit() for character in text)),
        "names the office": float(_OFFICE.search(text) is not None),
        "words": float(len(words)),
        "words a sentence": len(words) / max(1, len(_SENTENCE.findall(text))),
    }


def copied_share(text: str, known: frozenset[tuple[str, ...]]) -> float:
    """Share of the runs of five words in ``text`` that are in ``known``: what is quoted, not written."""
    runs = word_runs(text)
    return sum(run in known for run in runs) / max(1, len(runs))


def all_runs(texts: Iterable[str]) -> frozenset[tuple[str, ...]]:
    """The runs of five words of all ``texts``."""
    return frozenset(run for text in texts for run in word_runs(text))


def word_runs(text: str) -> list[tuple[str, ...]]:
    """Each run of five neighbouring words, in lower case, without punctuation."""
    words = re.findall(r"[a-z\d']+", text.lower())
    return list(zip(*(words[start:] for start in range(COPIED_WORDS)), strict=False))


@dataclass(frozen=True, slots=True)
class HeldOut:
    """How well a classifier tells held-out written rows apart: right answers of each kind, of how many."""

    voice_right: int
    plain_right: int
    num_each: int
    by_category: Mapping[str, tuple[int, int]]

    @property
    def right(self) -> int:
        """All right answers."""
        return self.voice_right + self.plain_right

    @property
    def total(self) -> int:
        """All rows."""
        return 2 * self.num_each


def check(rows: Rows, classifier: Classifier) -> HeldOut:
    """The classifier on the test rows, of which it saw neither texts nor instructions."""
    voice = [row for row in rows.voice if row.split == "test"]
    plain = [row for row in rows.plain if row.split == "test"]
    assert [row.instruction for row in voice] == [row.instruction for row in plain]
    is_right = {
        True: classifier.scores([row.output for row in voice]) > 0.5,
        False: classifier.scores([row.output for row in plain]) <= 0.5,
    }
    by_category: dict[str, tuple[int, int]] = {}
    for category in CATEGORIES:
        chosen = np.array([row.category == category for row in voice])
        right = sum(int(found[chosen].sum()) for found in is_right.values())
        by_category[category] = (right, 2 * int(chosen.sum()))
    return HeldOut(int(is_right[True].sum()), int(is_right[False].sum()), len(voice), by_category)
