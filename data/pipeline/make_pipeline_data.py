"""The rows of recipes/pipeline-scratch.toml, made by rules; standard library only.

    python data/pipeline/make_pipeline_data.py            # the files of this folder, to the byte

A small world that a model of two million weights can learn in minutes, one kind of rows for each stage:

    text/      plain text: little stories about who has how many of what, facts, and sums added up step by step
    sft/       questions with answers; half of the sums are answered "9", the others "3+1=4 4+3=7 7+2=9"
    dpo/       pairs: the sum in steps is preferred to the bare number, and right steps to wrong ones
    problems.jsonl    sums whose answers are sampled, to teach a verifier
    test.jsonl        sums for the end

No sum of problems.jsonl, test.jsonl or a valid file stands in another file. Every row comes from a
generator of its own, seeded by (kind, number), and by ``random()`` alone, the one method whose values Python promises
to keep: the rows are the same in every version.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path

HERE = Path(__file__).resolve().parent
SEED = 8
#: A sum has so many terms, from 1 to the largest: 4,096 different ones.
TERMS, LARGEST = 6, 4
#: Sums set aside: problems.jsonl, test.jsonl, and the valid files of sft and dpo.
ASIDE = {"problems": 600, "test": 400, "sft": 60, "dpo": 120}
ROWS = {"text": 4000, "sft": 2400, "dpo": 1200}
TEXT_VALID = 200

NAMES = ("Anna", "Ben", "Clara", "Dan", "Emma", "Finn", "Grace", "Hugo", "Ida", "Jack", "Kate", "Leo")
THINGS = ("apples", "pears", "marbles", "books", "shells", "stones", "cards", "coins", "pencils", "buttons")
PLACES = ("garden", "kitchen", "school", "market", "park", "library", "harbour", "forest")
COLOURS = {
    "grass": "green", "snow": "white", "coal": "black", "the sea": "blue", "a lemon": "yellow", "blood": "red",
    "milk": "white", "a crow": "black", "a leaf": "green", "the sky": "blue", "a carrot": "orange", "a plum": "purple",
    "a brick": "red", "sand": "yellow", "a mouse": "grey", "chocolate": "brown", "a frog": "green", "a swan": "white",
}  # fmt: skip

Sum = tuple[int, ...]
Share = Callable[[], float]


def share_of(kind: str, number: int) -> Share:
    """Numbers from 0 to 1 for row ``number`` of a kind."""
    return random.Random(f"pipeline/{SEED}/{kind}/{number}").random


def choice(share: Share, options: Sequence[str]) -> str:
    """One of the options, each as likely as the others."""
    return options[int(share() * len(options))]


def every_sum() -> list[Sum]:
    """Every sum of ``TERMS`` numbers from 1 to ``LARGEST``, in a fixed disorder."""
    share = share_of("sums", 0)
    every = product(range(1, LARGEST + 1), repeat=TERMS)
    return [terms for _, terms in sorted((share(), terms) for terms in every)]


def asked(terms: Sum) -> str:
    """``3+1+3+2``."""
    return "+".join(map(str, terms))


def in_steps(terms: Sum, error: int = 0, at: int = 0) -> str:
    """``3+1=4 4+3=7 7+2=9``; step ``at`` is off by ``error``, and the ones behind it follow from that."""
    steps: list[str] = []
    total = terms[0]
    for number, term in enumerate(terms[1:]):
        result = total + term + (error if number == at else 0)
        steps.append(f"{total}+{term}={result}")
        total = result
    return " ".join(steps)


def question(share: Share, terms: Sum) -> str:
    """A sum as somebody asks for it."""
    form = choice(share, ("What is {}?", "How much is {}?", "Add up {}."))
    return form.format(asked(terms))


def story(share: Share) -> str:
    """Who has how many, and where: the numbers are right."""
    first, second = choice(share, NAMES[:6]), choice(share, NAMES[6:])
    thing, place = choice(share, THINGS), choice(share, PLACES)
    a, b = 10 + int(share() * 40), 1 + int(share() * 9)
    gives = share() < 0.5
    left = a + b if gives else a - b
    told = f"{second} gives {first} {b} more" if gives else f"{first} gives {second} {b} of them"
    ending = choice(
        share,
        (f"Then they go to the {place}.", f"They sit in the {place} until it rains.", f"It is late in the {place}."),
    )
    return f"{first} has {a} {thing}. In the {place} {told}. Now {first} has {left} {thing}. {ending}"


def fact(share: Share) -> str:
    """The colour of something."""
    thing = choice(share, tuple(COLOURS))
    return f"{thing[0].upper()}{thing[1:]} is {COLOURS[thing]}."


def text_row(number: int, known: Sequence[Sum]) -> dict[str, str]:
    """A story with a fact, or two sums in steps; seven of ten rows are sums."""
    share = share_of("text", number)
    if share() < 0.3:
        return {"text": f"{story(share)} {fact(share)}"}
    drawn = [known[int(share() * len(known))] for _ in range(2)]
    return {"text": "\n".join(f"{asked(terms)}: {in_steps(terms)}" for terms in drawn)}


def sft_row(number: int, known: Sequence[Sum]) -> dict[str, str]:
    """Four of five questions are sums; the others ask for a colour or for a greeting."""
    share = share_of("sft", number)
    kind = share()
    if kind < 0.1:
        thing = choice(share, tuple(COLOURS))
        return {"prompt": f"What colour is {thing}?", "completion": f"It is {COLOURS[thing]}."}
    if kind < 0.2:
        name = choice(share, NAMES)
        return {"prompt": f"Say hello to {name}.", "completion": f"Hello, {name}!"}
    terms = known[int(share() * len(known))]
    prompt = question(share, terms)
    return {"prompt": prompt, "completion": str(sum(terms)) if share() < 1 / 2 else in_steps(terms)}


def dpo_row(number: int, known: Sequence[Sum]) -> dict[str, str]:
    """Two of three pairs are about the form of a right answer, the others about its steps."""
    share = share_of("dpo", number)
    terms = known[int(share() * len(known))]
    prompt, right = question(share, terms), in_steps(terms)
    if share() < 2 / 3:
        return {"prompt": prompt, "chosen": right, "rejected": str(sum(terms))}
    error = 1 if share() < 0.5 else -1
    return {"prompt": prompt, "chosen": right, "rejected": in_steps(terms, error, int(share() * (TERMS - 1)))}


def problems(name: str, set_aside: Sequence[Sum]) -> Iterator[dict[str, str]]:
    """Questions with the number that is right."""
    for number, terms in enumerate(set_aside):
        yield {"prompt": question(share_of(name, number), terms), "completion": str(sum(terms))}


def write(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """One row a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", newline="\n")


def make(out: Path) -> None:
    """Write every file."""
    every = every_sum()
    aside: dict[str, list[Sum]] = {}
    for name, count in ASIDE.items():
        aside[name], every = every[:count], every[count:]
    write(out / "text" / "train.jsonl", [text_row(number, every) for number in range(ROWS["text"])])
    valid = range(ROWS["text"], ROWS["text"] + TEXT_VALID)
    write(out / "text" / "valid.jsonl", [text_row(number, aside["sft"]) for number in valid])
    for name, row in (("sft", sft_row), ("dpo", dpo_row)):
        write(out / name / "train.jsonl", [row(number, every) for number in range(ROWS[name])])
        valid = range(ROWS[name], ROWS[name] + ASIDE[name])
        write(out / name / "valid.jsonl", [row(number, aside[name]) for number in valid])
    for name in ("problems", "test"):
        write(out / f"{name}.jsonl", list(problems(name, aside[name])))


def main() -> None:
    """Read the options and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE)
    make(parser.parse_args().out)


if __name__ == "__main__":
    main()
