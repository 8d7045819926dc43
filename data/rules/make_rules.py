"""Pairs of answers to a request with a rule that can be checked: one keeps it, one breaks it; standard library only.

    python data/rules/make_rules.py                 # the files of this folder, to the byte
    python data/rules/make_rules.py --pairs 20000   # more training pairs of the same kinds, in data/rules-20000

A row has ``prompt``, ``chosen``, ``rejected``, ``kind`` and ``rule``, by which ``keeps`` checks an answer. The eight
kinds are equally frequent. Of what requests are about, every fourth thing stands in validation and test rows only, so
no request and no answer of theirs is a training row. Neither answer is longer as a rule: over each kind the mean
lengths differ by less than a fifth, and the longer one is as often the chosen as the rejected.
"""

# ruff: noqa: SIM905 - lists of these would be pages

import argparse
import json
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

HERE = Path(__file__).resolve().parent
SIZES = {"train": 1200, "valid": 48, "test": 400}

T = TypeVar("T")
Rule = Mapping[str, object]
Pair = tuple[str, str, str, Rule]

NAMES = (
    "Anna Ben Clara David Emma Felix Grace Hugo Irene Jonas Karen Leo Maria Nils Olga Peter Rosa Simon Tina Victor "
    "Wanda Yusuf Zoe Amir Bella Carlos Dina Erik Fiona Georg Hana Igor"
).split()
PLACES = (
    "library|town hall|harbour|old mill|school|train station|market|museum|garden centre|swimming pool|bakery|theatre|"
    "sports hall|post office|clinic|castle|lighthouse|cinema|bus depot|town park|concert hall|fire station|hotel|farm"
).split("|")
MATTERS = (
    "parcel|invoice|refund|password|appointment|ticket|order|subscription|contract|delivery|booking|repair|receipt|"
    "warranty|account|claim|passport|permit|deposit|licence|reservation|certificate|payment|application"
).split("|")
OBJECTS = (
    "bridge|tower|tunnel|fence|wall|path|river|ship|garden|field|street|pier|canal|hall|stage|platform|hedge|runway|"
    "track|ladder|cable|rope|ramp|trench"
).split("|")
FRUITS = (
    "apple banana cherry date elderberry fig grape kiwi lemon mango nectarine orange papaya quince raspberry "
    "strawberry tomato apricot blueberry coconut guava lime melon olive peach pear plum pomegranate"
).split()
ANIMALS = (
    "ant bear cat dog eagle fox goat horse ibis jackal koala lion mouse newt otter panda quail rabbit seal tiger "
    "vulture wolf yak zebra badger camel deer ferret"
).split()
TRADES = (
    "cook|gardener|painter|teacher|nurse|carpenter|sailor|farmer|tailor|baker|mechanic|plumber|librarian|postman|"
    "barber|fisherman|mason|butcher|florist|dentist|miner|potter|weaver|shepherd"
).split("|")
TOOLS = (
    "a sharp knife|a clean apron|a good lamp|a long ladder|a warm coat|a notebook|strong boots|a bucket|a pair of "
    "scissors|a reliable van|a steady hand|much patience|a brush|a stool|a measuring tape|some string|gloves|a clock|a "
    "radio|a basket"
).split("|")
SCENES = (
    "a morning at the sea|a walk in the forest|a rainy afternoon|a winter evening|a visit to the market|a long train "
    "ride|a night in the desert|a day on a farm|a storm in the mountains|a summer in the city|a quiet village|an old "
    "harbour|a busy kitchen|a small island|a snowy road|a field in spring|a crowded station|an empty beach|a lake at "
    "dawn|a street at midnight|a garden in June|a wedding in the country|a fair in autumn|a tent by the river"
).split("|")
HABITS = (
    "sleep better|save money|learn a language|drink more water|keep a plant alive|read more books|cook at home|walk "
    "every day|wake up early|stay calm|write a diary|eat less sugar|tidy a desk|remember names|run a first mile|grow "
    "tomatoes|bake bread|fix a bicycle|meet new people|paint a wall|pack a suitcase|train a dog|sing in tune|swim well"
).split("|")
ADVICE = (
    "begin with small steps|do a little every day|ask a friend to join|choose a fixed hour|note what works|be patient "
    "with yourself|start on a Monday|keep it simple|rest when you are tired|plan the evening before"
).split("|")
TIMES = "at home|on a journey|in winter|in summer|on a Sunday|at night".split("|")
LIMITS = (
    "this winter|with little time|with small children|after work|on a small budget|in a small flat|without help|at "
    "my age"
).split("|")
LENGTHS = ("in two sentences", "in two short sentences")
NOUNS = "light air wind water sky ground noise silence people colour".split()
SENTENCES = (
    "The light is soft and pale.|The air is cold and fresh.|The wind moves the leaves.|The water is calm and dark.|The "
    "sky is grey and wide.|The ground is soft and wet.|The noise fades very slowly.|The silence is deep and long.|The "
    "people walk slowly by.|The colour is warm and strong."
).split("|")
OTHERS = (
    "A door opens somewhere.|Time seems to stand still.|A bell rings far away.|Someone laughs behind a wall.|It smells "
    "of bread and smoke.|A dog sleeps under a bench.|Nothing happens for a while."
).split("|")
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()


class Draw:
    """Random choices by ``random()`` alone, the one method whose values Python promises to keep."""

    def __init__(self, *seed: object) -> None:
        self.share = random.Random("/".join(map(str, seed))).random

    def below(self, limit: int) -> int:
        """A whole number from 0 to ``limit - 1``."""
        return int(self.share() * limit)

    def one(self, values: Sequence[T]) -> T:
        """One of them."""
        return values[self.below(len(values))]

    def some(self, values: Sequence[T], count: int) -> list[T]:
        """``count`` different ones in random order."""
        left = list(values)
        return [left.pop(self.below(len(left))) for _ in range(count)]


class Things:
    """What requests are about: those of training rows, or those of the others."""

    def __init__(self, *, is_training: bool) -> None:
        self._is_training = is_training

    def of(self, values: Sequence[str]) -> list[str]:
        """Every fourth is held out."""
        return [value for number, value in enumerate(values) if (number % 4 == 3) != self._is_training]


def metric(draw: Draw, things: Things) -> Pair:
    """A length in metres where metres are asked for, else in feet."""
    what, feet = draw.one(things.of(OBJECTS)), 10 * (2 + draw.below(90))
    metres, wants_metres = round(feet * 0.3048), draw.share() < 0.5
    unit, other = ("metres", "feet") if wants_metres else ("feet", "metres")
    numbers = {"metres": metres, "feet": feet}
    how = draw.one(("The {w} is {n} {u} long.", "It is {n} {u} long.", "That {w} measures {n} {u}."))
    prompt = f"The {what} is {feet} feet long, which is {metres} metres. How long is it? Answer in {unit}."
    kept, broken = (how.format(w=what, n=numbers[one], u=one) for one in (unit, other))
    return prompt, kept, broken, {"unit": unit, "other": other}


def alphabetical(draw: Draw, things: Things) -> Pair:
    """Three words in the order of the alphabet."""
    words = draw.some(things.of(draw.one((FRUITS, ANIMALS))), 3)
    kept = sorted(words)
    broken = [kept[1], kept[0], kept[2]] if draw.share() < 0.5 else [kept[0], kept[2], kept[1]]
    if draw.share() < 0.34:
        broken = [kept[2], kept[1], kept[0]]
    prompt = f"Put these in alphabetical order: {', '.join(words)}."
    return prompt, ", ".join(kept), ", ".join(broken), {"words": kept}


def count(draw: Draw, things: Things) -> Pair:
    """As many things as asked for, one a line; not one more or less."""
    trade, time, number = draw.one(things.of(TRADES)), draw.one(TIMES), 2 + draw.below(3)
    wrong = number + (1 if number == 2 or (number == 3 and draw.share() < 0.5) else -1)
    kept, broken = draw.some(TOOLS, number), draw.some(TOOLS, wrong)
    words = {2: "two", 3: "three", 4: "four"}
    prompt = f"Name exactly {words[number]} things that a {trade} needs {time}, one on each line."
    listed = ["\n".join(f"- {one}" for one in its) for its in (kept, broken)]
    return prompt, listed[0], listed[1], {"items": number}


def without_word(draw: Draw, things: Things) -> Pair:
    """A description in two sentences without one word."""
    scene, (broken, kept), other = draw.one(things.of(SCENES)), draw.some(range(len(NOUNS)), 2), draw.one(OTHERS)
    first, noun = draw.share() < 0.5, NOUNS[broken]
    texts = [f"{one} {other}" if first else f"{other} {one}" for one in (SENTENCES[kept], SENTENCES[broken])]
    return f'Describe {scene} {draw.one(LENGTHS)} without the word "{noun}".', texts[0], texts[1], {"without": noun}


def question(draw: Draw, things: Things) -> Pair:
    """Advice that ends with a question, or with none."""
    habit, (first, second) = draw.one(things.of(HABITS)), draw.some(ADVICE, 2)
    asks, limit = draw.share() < 0.5, draw.one(LIMITS)
    start = f"To {habit}, {first}."
    asking, telling = f"{start} Could you {second}?", f"{start} You should {second}."
    end = "End with a question." if asks else "Do not ask me anything."
    kept, broken = (asking, telling) if asks else (telling, asking)
    return f"How can I {habit} {limit}? {end}", kept, broken, {"asks": asks}


def letters(draw: Draw, things: Things) -> Pair:
    """Capital letters only, or small ones only."""
    place, day = draw.one(things.of(PLACES)), draw.one(DAYS)
    is_upper = draw.share() < 0.5
    text = draw.one(("the {p} is closed on {d}.", "on {d} you can visit the {p}.", "we meet at the {p} on {d}."))
    text = text.format(p=place, d=day)
    wanted = "capital letters" if is_upper else "small letters"
    kept, broken = (text.upper(), text.lower()) if is_upper else (text.lower(), text.upper())
    prompt = f"Write a notice about the {place} for {day}. Use {wanted} only."
    return prompt, kept, broken, {"upper": is_upper}


def name_first(draw: Draw, things: Things) -> Pair:
    """A reply that begins with the customer's name, or ends with it."""
    name, matter = draw.one(things.of(NAMES)), draw.one(things.of(MATTERS))
    is_first = draw.share() < 0.5
    text = draw.one(
        ("we are looking into your {m}", "your {m} will be ready soon", "thank you for asking about the {m}")
    )
    text = text.format(m=matter)
    first, last = f"{name}, {text}.", f"{text[0].upper()}{text[1:]}, {name}."
    where = "Begin" if is_first else "End"
    kept, broken = (first, last) if is_first else (last, first)
    prompt = f"{name} asks about a {matter}. Reply in one sentence. {where} with the name."
    return prompt, kept, broken, {"name": name, "first": is_first}


def table_row(draw: Draw, things: Things) -> Pair:
    """Day, place and person in the form and order that is asked for."""
    day, place, name = draw.one(DAYS), draw.one(things.of(PLACES)), draw.one(things.of(NAMES))
    mark, other = draw.some(("|", ";", "/"), 2)
    order, swapped = [day, place, name], [place, day, name]
    is_form = draw.share() < 0.5
    broken = f" {other} ".join(order) if is_form else f" {mark} ".join(swapped)
    prompt = f"{name} is at the {place} on {day}. Write day, place and name on one line, separated by {mark}"
    return prompt, f" {mark} ".join(order), broken, {"line": f" {mark} ".join(order)}


KINDS: Mapping[str, Callable[[Draw, Things], Pair]] = {
    "unit": metric,
    "order": alphabetical,
    "count": count,
    "without": without_word,
    "question": question,
    "letters": letters,
    "name": name_first,
    "form": table_row,
}


def keeps(kind: str, rule: Rule, answer: str) -> bool:
    """Does ``answer`` keep the rule of its request?"""
    if kind == "unit":
        return f" {rule['unit']}" in answer and f" {rule['other']}" not in answer
    if kind == "order":
        return answer.split(", ") == rule["words"]
    if kind == "count":
        return len(answer.splitlines()) == rule["items"] and all(line.startswith("- ") for line in answer.splitlines())
    if kind == "without":
        return str(rule["without"]) not in answer.lower().replace(".", "").split()
    if kind == "question":
        return answer.endswith("?") == rule["asks"]
    if kind == "letters":
        return answer == (answer.upper() if rule["upper"] else answer.lower())
    if kind == "name":
        name = str(rule["name"])
        return answer.startswith(f"{name},") == rule["first"] and answer.endswith(f"{name}.") != rule["first"]
    return answer == rule["line"]


def make_rows(split: str, num_rows: int, seed: int) -> list[dict[str, object]]:
    """``num_rows`` rows, the kinds in turn; no request twice."""
    things = Things(is_training=split == "train")
    rows: list[dict[str, object]] = []
    seen: set[str] = set()
    attempt = 0
    names = list(KINDS)
    while len(rows) < num_rows:
        kind = names[len(rows) % len(names)]
        prompt, chosen, rejected, rule = KINDS[kind](Draw(seed, split, attempt), things)
        attempt += 1
        if attempt > 200 * num_rows:
            sys.exit(f"no more than {len(rows)} different rows for {split}")
        if prompt in seen or chosen == rejected:
            continue
        seen.add(prompt)
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected, "kind": kind, "rule": rule})
    return rows


def write(folder: Path, sizes: Mapping[str, int], seed: int) -> None:
    """Write the splits; validation rows are no test rows."""
    held_out = make_rows("test", sizes["test"] + sizes["valid"], seed)
    splits = {
        "train": make_rows("train", sizes["train"], seed),
        "valid": held_out[sizes["test"] :],
        "test": held_out[: sizes["test"]],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        lines = "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines, "ascii", newline="\n")


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=SIZES["train"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    folder = given.out or (HERE if given.pairs == SIZES["train"] else HERE.with_name(f"rules-{given.pairs}"))
    write(folder, {**SIZES, "train": given.pairs}, given.seed)


if __name__ == "__main__":
    main()
