"""The rows of recipes/pipeline-scratch.toml, made by rules; standard library only.

    python data/pipeline/make_pipeline_data.py            # the files of this folder, to the byte

A small world that a model of two million weights can learn in minutes, one kind of rows for each stage:

    text/      plain text: little stories about who has how many of what, facts, and sums written out
    sft/       questions with answers; sums are answered in two ways, "52" twice as often as "34 + 18 = 52"
    dpo/       pairs: the sum written out is preferred to the bare number, and a right sum to a wrong one
    problems.jsonl    sums whose answers are sampled, to teach a verifier
    test.jsonl        sums for the end

No sum of problems.jsonl, test.jsonl or a valid file stands in another file, in either order. Every row comes from a
generator of its own, seeded by (kind, number), and by ``random()`` alone, the one method whose values Python promises
to keep: the rows are the same in every version.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
SEED = 7
LARGEST, LARGEST_ADDED = 99, 30
#: Sums set aside: problems.jsonl, test.jsonl, and the valid files of sft and dpo.
ASIDE = {"problems": 400, "test": 200, "sft": 60, "dpo": 120}
ROWS = {"text": 6000, "sft": 2400, "dpo": 1200}
TEXT_VALID = 200

NAMES = ("Anna", "Ben", "Clara", "Dan", "Emma", "Finn", "Grace", "Hugo", "Ida", "Jack", "Kate", "Leo")
THINGS = ("apples", "pears", "marbles", "books", "shells", "stones", "cards", "coins", "pencils", "buttons")
PLACES = ("garden", "kitchen", "school", "market", "park", "library", "harbour", "forest")
COLOURS = {
    "grass": "green", "snow": "white", "coal": "black", "the sea": "blue", "a lemon": "yellow", "blood": "red",
    "milk": "white", "a crow": "black", "a leaf": "green", "the sky": "blue", "a carrot": "orange", "a plum": "purple",
    "a brick": "red", "sand": "yellow", "a mouse": "grey", "chocolate": "brown", "a frog": "green", "a swan": "white",
}  # fmt: skip

Pair = tuple[int, int]
Share = Callable[[], float]


def share_of(kind: str, number: int) -> Share:
    """Numbers from 0 to 1 for row ``number`` of a kind."""
    return random.Random(f"pipeline/{SEED}/{kind}/{number}").random


def choice(share: Share, options: Sequence[str]) -> str:
    """One of the options, each as likely as the others."""
    return options[int(share() * len(options))]


def pairs() -> list[Pair]:
    """Every sum of a number from 10 to 99 and one from 2 to 30, the smaller first, in a fixed disorder."""
    share = share_of("pairs", 0)
    every = sorted(
        {(min(a, b), max(a, b)) for a in range(10, LARGEST + 1) for b in range(2, LARGEST_ADDED + 1)},
    )
    return [pair for _, pair in sorted((share(), pair) for pair in every)]


def turned(share: Share, pair: Pair) -> Pair:
    """Half of the time the other way round."""
    return pair if share() < 0.5 else (pair[1], pair[0])


def written_out(pair: Pair) -> str:
    """``34 + 18 = 52``."""
    return f"{pair[0]} + {pair[1]} = {sum(pair)}"


def question(share: Share, pair: Pair) -> str:
    """A sum as somebody asks for it."""
    form = choice(share, ("What is {} + {}?", "How much is {} + {}?", "Add {} and {}."))
    return form.format(*pair)


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


def text_row(number: int, known: Sequence[Pair]) -> dict[str, str]:
    """A story with a fact, or a column of sums; two of three rows are sums."""
    share = share_of("text", number)
    if share() < 0.3:
        return {"text": f"{story(share)} {fact(share)}"}
    lines = [written_out(turned(share, known[int(share() * len(known))])) for _ in range(6)]
    return {"text": "\n".join(lines)}


def sft_row(number: int, known: Sequence[Pair]) -> dict[str, str]:
    """Four of five questions are sums; the others ask for a colour or for a greeting."""
    share = share_of("sft", number)
    kind = share()
    if kind < 0.1:
        thing = choice(share, tuple(COLOURS))
        return {"prompt": f"What colour is {thing}?", "completion": f"It is {COLOURS[thing]}."}
    if kind < 0.2:
        name = choice(share, NAMES)
        return {"prompt": f"Say hello to {name}.", "completion": f"Hello, {name}!"}
    pair = turned(share, known[int(share() * len(known))])
    asked = question(share, pair)
    return {"prompt": asked, "completion": str(sum(pair)) if share() < 2 / 3 else written_out(pair)}


def dpo_row(number: int, known: Sequence[Pair]) -> dict[str, str]:
    """Two of three pairs are about the form of a right answer, the others about its number."""
    share = share_of("dpo", number)
    pair = turned(share, known[int(share() * len(known))])
    asked, right = question(share, pair), written_out(pair)
    if share() < 2 / 3:
        return {"prompt": asked, "chosen": right, "rejected": str(sum(pair))}
    wrong = sum(pair) + (1 if share() < 0.5 else -1) * choice_of_error(share)
    return {"prompt": asked, "chosen": right, "rejected": f"{pair[0]} + {pair[1]} = {wrong}"}


def choice_of_error(share: Share) -> int:
    """What beginners are off by: one, ten, or a few."""
    return (1, 10, 10, 1 + int(share() * 9))[int(share() * 4)]


def sums(name: str, set_aside: Sequence[Pair]) -> Iterator[dict[str, str]]:
    """Questions with the number that is right."""
    for number, pair in enumerate(set_aside):
        share = share_of(name, number)
        asked = turned(share, pair)
        yield {"prompt": question(share, asked), "completion": str(sum(asked))}


def write(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """One row a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", newline="\n")


def make(out: Path) -> None:
    """Write every file."""
    every = pairs()
    aside: dict[str, list[Pair]] = {}
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
        write(out / f"{name}.jsonl", list(sums(name, aside[name])))


def main() -> None:
    """Read the options and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE)
    make(parser.parse_args().out)


if __name__ == "__main__":
    main()
