"""Which of several answers to one problem is taken, and what share of problems is right then.

A problem is a list of answers, each right or wrong. Figures are numbers a problem, so that intervals are over problems
(``intervals``): the answers to one problem depend on each other.
"""

import math
from collections.abc import Sequence
from typing import Protocol, Self, TypeVar


class Sign(Protocol):
    """-1, 0 or 1, or an array of these."""

    def __add__(self, other: int, /) -> Self: ...

    def __truediv__(self, other: int, /) -> Self: ...


SignT = TypeVar("SignT", bound=Sign)

_VERIFIER = "verifier"


def pass_at_k(num_answers: int, num_right: int, k: int) -> float:
    """Chance that at least one of ``k`` answers is right, drawn without replacement from those that are there.

    ``1 - C(n - c, k) / C(n, k)`` with ``n = num_answers``, ``c = num_right`` (2107.03374, eq. 1): unbiased, unlike
    ``1 - (1 - c / n)^k``. n 10, c 3, k 5: 0.916667.
    """
    assert 0 <= num_right <= num_answers
    assert 1 <= k <= num_answers
    return 1.0 - math.comb(num_answers - num_right, k) / math.comb(num_answers, k)


def majority(votes: Sequence[str | None]) -> int | None:
    """The number of the first answer that says what most say (2203.11171); None where none says anything.

    Of several that as many say the one that was said first wins: answers are drawn alike, so this looks at nothing that
    tells right from wrong, and it is the same every time.
    """
    counts: dict[str, int] = {}
    for vote in votes:
        if vote is not None:
            counts[vote] = counts.get(vote, 0) + 1
    if not counts:
        return None
    most = max(counts.values())
    return votes.index(next(vote for vote, count in counts.items() if count == most))


def ranked(scores: Sequence[float]) -> list[int]:
    """Numbers of the answers, the highest score first, of equal ones the first. A score is no NaN."""
    assert not any(math.isnan(score) for score in scores), "a score that is not a number"
    return sorted(range(len(scores)), key=lambda number: (-scores[number], number))


def best_of(scores: Sequence[float], is_right: Sequence[bool], n: int) -> float:
    """Chance that the best-scored of ``n`` answers is right, over all ways to take ``n`` of those that are there.

    The answer of rank ``r`` (from 0) is the best of ``C(N - 1 - r, n - 1)`` of the ``C(N, n)`` ways. ``n`` 1 is a
    random pick, ``n`` N the pick itself.
    """
    total = len(scores)
    assert len(is_right) == total
    assert 1 <= n <= total
    ways = sum(math.comb(total - 1 - rank, n - 1) for rank, number in enumerate(ranked(scores)) if is_right[number])
    return ways / math.comb(total, n)


def share_right(sign: SignT) -> SignT:
    """How right a pair is, by the sign of what the right answer has over the wrong one: 1 ahead, 0 behind.

    One half for a tie: equal answers are a coin's toss. For numbers and arrays alike.
    """
    return (sign + 1) / 2


def scorer_of(task: str) -> str:
    """What the model of a ``task`` is called that gives scores to pick by; it is the name of its way to pick too."""
    return {"reward": "reward model"}.get(task, _VERIFIER)


def way_title(way: str, scorer: str) -> str:
    """A way to pick one of several answers, for a person; ``scorer`` is what gave the scores."""
    titles = {
        "greedy": "greedy answer",
        "random": "random pick",
        "majority": "majority vote",
        scorer: f"{scorer}'s pick",
        "oracle": "oracle (any right)",
    }
    way = _way(way, scorer)
    return titles.get(way, way)


def pair_title(first: str, second: str, scorer: str) -> str:
    """``verifier - random``: two ways that are compared."""
    return " - ".join(_way(way, scorer) for way in (first, second))


def _way(way: str, scorer: str) -> str:
    """In comparisons that were kept before, the pick of every scorer is called a verifier's."""
    return scorer if way == _VERIFIER else way
