"""Sums with one right answer each, for sampling, checking and verifiers; standard library only.

    python data/sums/make_sums.py                               # the files of this folder, to the byte
    python data/sums/make_sums.py --terms 3 --minus --out data/other-sums

A row has ``prompt`` ("28+17=", or "12-30=") and ``completion``: the answer alone, or with ``--steps`` one line for each
operation and the answer behind ####. Difficulty is the number of terms, the largest of them and ``--minus`` (with
subtractions): choose it so that the generator is right 10 to 60 times of 100, or a verifier has little to tell apart.
No problem stands in two splits, and no problem is another's with its terms in another order. Every problem comes from a
generator of its own, seeded by (seed, number), and is the same in every version of Python.
"""

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

HERE = Path(__file__).resolve().parent
#: Split -> its rows. The generator learns from train; answers to sample.jsonl teach a verifier; test is for the end.
SIZES = {"train": 3500, "valid": 100, "sample": 400, "test": 400}
#: What the files of this folder are made with.
DEFAULTS = {"seed": 7, "terms": 2, "largest": 99, "minus": False, "steps": False}
_MOST_TRIES = 50  # draws for each problem, where most were drawn before


@dataclass(frozen=True)
class Sum:
    """``first`` and what is added to it; a number below 0 is taken away."""

    first: int
    others: tuple[int, ...]

    @property
    def key(self) -> tuple[int, ...]:
        """Equal for problems that differ in the order of their terms alone."""
        return tuple(sorted((self.first, *self.others)))

    @property
    def question(self) -> str:
        """The problem as it is written."""
        return "".join([str(self.first), *(f"{other:+}" for other in self.others)]) + "="

    def answer(self, *, steps: bool) -> str:
        """The answer, with its steps where they are wanted."""
        if not steps:
            return str(self.first + sum(self.others))
        lines: list[str] = []
        total = self.first
        for other in self.others:
            lines.append(f"{total}{other:+}={total + other}")
            total += other
        return "\n".join([*lines, f"#### {total}"])


def draw(number: int, *, seed: int, terms: int, largest: int, minus: bool) -> Sum:
    """Problem ``number`` of a set; by ``random()`` alone, the one method whose values Python promises to keep."""
    share = random.Random(f"sums/{seed}/{number}").random

    def term() -> int:
        return 1 + int(share() * largest)

    others = [term() for _ in range(terms - 1)]
    signs = [-1 if minus and share() < 0.5 else 1 for _ in others]
    return Sum(term(), tuple(sign * other for sign, other in zip(signs, others, strict=True)))


def problems(count: int, *, seed: int, terms: int, largest: int, minus: bool) -> Iterator[Sum]:
    """``count`` different problems. Raises ``SystemExit`` where there are not so many."""
    seen: set[tuple[int, ...]] = set()
    for number in range(_MOST_TRIES * count):
        drawn = draw(number, seed=seed, terms=terms, largest=largest, minus=minus)
        if drawn.key in seen:
            continue
        seen.add(drawn.key)
        yield drawn
        if len(seen) == count:
            return
    raise SystemExit(f"there are not {count} different sums of {terms} terms up to {largest}; allow larger ones")


def write(out: Path, sizes: dict[str, int], *, seed: int, terms: int, largest: int, minus: bool, steps: bool) -> None:
    """One file for each split."""
    out.mkdir(parents=True, exist_ok=True)
    drawn = problems(sum(sizes.values()), seed=seed, terms=terms, largest=largest, minus=minus)
    for split, size in sizes.items():
        rows = [
            json.dumps({"prompt": one.question, "completion": one.answer(steps=steps)}) + "\n"
            for one in islice(drawn, size)
        ]
        (out / f"{split}.jsonl").write_text("".join(rows), encoding="utf-8", newline="\n")


def main() -> None:
    """Read the options and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--seed", type=int, default=DEFAULTS["seed"])
    parser.add_argument("--terms", type=int, default=DEFAULTS["terms"])
    parser.add_argument("--largest", type=int, default=DEFAULTS["largest"])
    parser.add_argument("--minus", action="store_true", help="subtractions too")
    parser.add_argument("--steps", action="store_true")
    for split, size in SIZES.items():
        parser.add_argument(f"--{split}", type=int, default=size, help=f"rows of {split}.jsonl")
    given = parser.parse_args()
    if given.terms < 2 or given.largest < 1:
        parser.error("a sum has at least 2 terms of at least 1")
    sizes = {split: getattr(given, split) for split in SIZES}
    form = {"terms": given.terms, "largest": given.largest, "minus": given.minus, "steps": given.steps}
    write(given.out, sizes, seed=given.seed, **form)


if __name__ == "__main__":
    main()
