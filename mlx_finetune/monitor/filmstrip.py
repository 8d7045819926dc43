"""The user's own prompts as they were answered before training and at every evaluation, and what changed in between."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise

from mlx_finetune.monitor.summary import Summary

#: Chinese and Japanese are written without blanks: there a character is a word.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_STOPS = ".,;:!?"
_PARTS = re.compile(rf"\s+|[{_UNSPACED}]|[{_STOPS}]+|[^\s{_UNSPACED}{_STOPS}]+")

#: Pairs of equal words beyond which no diff is made: an answer that repeats one word would take minutes.
_MOST_PAIRS = 50_000


@dataclass(frozen=True, slots=True)
class Frame:
    """All answers at one step, by prompt, in the order of the prompts."""

    step: int
    answers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer; ``is_changed`` where the answer before did not say it there."""

    text: str
    is_changed: bool


def frames(summary: Summary) -> list[Frame]:
    """One frame for each step at which prompts were answered, rising: step 0, the base model, first."""
    found: dict[int, dict[str, str]] = {}
    for one in summary.samples:
        found.setdefault(one.step, {})[one.prompt] = one.answer
    return [Frame(step, found[step]) for step in sorted(found)]


def changed_words(before: str, after: str) -> list[Piece]:
    """The pieces of ``after``, which joined give it again; blanks between two changed words are changed too."""
    parts: list[str] = _PARTS.findall(after)
    places = [place for place, part in enumerate(parts) if not part.isspace()]
    changed = _changed_places(
        [part for part in _PARTS.findall(before) if not part.isspace()], [parts[place] for place in places]
    )
    marks = [False] * len(parts)
    for place, is_changed in zip(places, changed, strict=True):
        marks[place] = is_changed
    for left, right in pairwise(places):
        if right - left == 2:
            marks[left + 1] = marks[left] and marks[right]
    pieces: list[Piece] = []
    for part, is_changed in zip(parts, marks, strict=True):
        if pieces and pieces[-1].is_changed == is_changed:
            pieces[-1] = Piece(pieces[-1].text + part, is_changed)
        else:
            pieces.append(Piece(part, is_changed))
    return pieces


def _changed_places(old: Sequence[str], new: Sequence[str]) -> list[bool]:
    """For each word of ``new``, whether it is changed. What is equal at both ends needs no diff."""
    start, shorter = 0, min(len(old), len(new))
    while start < shorter and old[start] == new[start]:
        start += 1
    end = 0
    while end < shorter - start and old[-1 - end] == new[-1 - end]:
        end += 1
    stop = len(new) - end
    marks = [start <= place < stop for place in range(len(new))]
    inner_old, inner_new = old[start : len(old) - end], new[start:stop]
    counts = Counter(inner_new)
    if sum(counts[word] for word in inner_old) > _MOST_PAIRS:
        return marks
    for block in SequenceMatcher(None, inner_old, inner_new, autojunk=False).get_matching_blocks():
        for place in range(start + block.b, start + block.b + block.size):
            marks[place] = False
    return marks
