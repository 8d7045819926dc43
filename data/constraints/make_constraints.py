"""Constraint corpora with one right answer each: simple mappings and spatial relations, made by rule from a seed.

    python data/constraints/make_constraints.py                   # the JSON Lines and Arrow folders here, to the byte
    python data/constraints/make_constraints.py --rows 20000      # more of each kind, in data/constraints-20000
    python data/constraints/make_constraints.py --convert FOLDER  # bAbI (qaN_*.txt) and StepGame files as such rows

A row has ``category`` (its kind), ``prompt``, ``completion`` (the right answer) and ``wrong``, other answers of the
same kind: a probe asks whether the right one is more probable than each of those. What is true is decided first (a
table of names, a world with coordinates) and the text is written from it.

mappings: ``colour`` and ``number`` give invented names a value; no rule says which, so a test row asks for a name that
was trained, in a phrasing that this name was never asked in. ``symbols`` replaces syllables by words, and a test row
has a sequence that was never trained. spatial: places of things on a line, in a column or on a plane, one step apart
(``horizontal``, ``vertical``), two or three steps (``chain``), or both ways at once (``diagonal``); a test row has a
story that was never trained. Every row is drawn from a generator of its own, seeded by (seed, kind, number).

The folders under ``saved`` are what ``datasets.load_from_disk`` reads, in the layout that save_to_disk writes, with a
fingerprint of the content in the place of a random one; ``--no-saved`` leaves them out, for they need pyarrow.
"""

import argparse
import hashlib
import json
import random
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import permutations, product
from pathlib import Path
from typing import Any, TypeVar

HERE = Path(__file__).resolve().parent
DEFAULT_ROWS, MOST_ROWS, SEED = 576, 20_000, 8
SPLITS = ("train", "valid", "test")
#: Of 36 rows of a kind 27 are trained, 3 validate, 6 test.
SHARES = (27, 3, 6)

NAMES = ("blen", "cruv", "dask", "fimo", "gorp", "hult", "jivo", "kemp", "lurt", "moxa", "nerb", "pilk", "quon", "rasp",
         "sylt", "tovi")  # fmt: skip
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "pink", "brown")
NUMBERS = tuple(map(str, range(2, 10)))
SYLLABLES = ("ka", "mo", "ri", "tu", "pe", "lo", "na", "si")
WORDS = ("river", "stone", "bird", "lamp", "bread", "cloud", "horse", "glass")
OPENINGS = ("", "Please answer. ", "Question: ", "Tell me: ", "Think back. ", "One word. ")
COLOUR_QUESTIONS = (
    "What colour is a {name}?",
    "Which colour does a {name} have?",
    "A {name} has which colour?",
    "Name the colour of a {name}.",
    "If you see a {name}, what colour is it?",
    "The colour of every {name} is what?",
)
NUMBER_QUESTIONS = (
    "How many legs does a {name} have?",
    "A {name} has how many legs?",
    "Count the legs of a {name}.",
    "On how many legs does a {name} walk?",
    "If you see a {name}, how many legs does it have?",
    "The number of legs of every {name} is what?",
)
THINGS = ("box", "cup", "lamp", "book", "chair", "plate", "clock", "vase", "phone", "shoe", "apple", "key",
          "coin", "bowl", "spoon", "hat")  # fmt: skip
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
STEPS = {"left": (-1, 0), "right": (1, 0), "above": (0, 1), "below": (0, -1)}
RELATIONS = {"left": "left of", "right": "right of", "above": "above", "below": "below"}
#: The answer for the signs of (x, y).
ANSWERS = {
    (-1, 0): "left", (1, 0): "right", (0, 1): "above", (0, -1): "below",
    (-1, 1): "above left", (1, 1): "above right", (-1, -1): "below left", (1, -1): "below right",
}  # fmt: skip
STRAIGHT = ("left", "right", "above", "below")
DIAGONAL = ("above left", "above right", "below left", "below right")

Row = dict[str, Any]
T = TypeVar("T")


class Draw:
    """Random choices by ``random()`` alone, the one method whose values Python promises to keep."""

    def __init__(self, *seed: object) -> None:
        self.share = random.Random("/".join(map(str, seed))).random

    def below(self, limit: int) -> int:
        """A whole number from 0 to ``limit`` - 1."""
        return int(self.share() * limit)

    def shuffled(self, values: Iterable[T]) -> list[T]:
        """``values`` in random order."""
        listed = list(values)
        return [listed[number] for _, number in sorted((self.share(), number) for number in range(len(listed)))]


def lookup_table(kind: str, values: Sequence[str], seed: int) -> dict[str, str]:
    """Name -> value; every value as often as every other."""
    draw = Draw(seed, kind, "table")
    wanted = [values[number % len(values)] for number in range(len(NAMES))]
    return dict(zip(NAMES, draw.shuffled(wanted), strict=True))


def lookup_rows(kind: str, values: Sequence[str], questions: Sequence[str], count: int, seed: int) -> list[list[Row]]:
    """``count`` rows of a mapping without a rule, by split: each name in other phrasings in each split."""
    table = lookup_table(kind, values, seed)
    splits: list[list[Row]] = [[], [], []]
    for place, name in enumerate(NAMES):
        each = count // len(NAMES) + (place < count % len(NAMES))
        phrasings = Draw(seed, kind, name).shuffled(product(_openings(each), questions))[:each]
        for number, (opening, question) in enumerate(phrasings):
            draw = Draw(seed, kind, name, number)
            wrong = draw.shuffled(value for value in values if value != table[name])[:3]
            row = _row(kind, opening + question.format(name=name), table[name], wrong)
            splits[_side(number, each)].append(row)
    return splits


def _openings(each: int) -> list[str]:
    """The openings; for more rows than they make there are numbered ones."""
    more = max(0, -(-each // len(COLOUR_QUESTIONS)) - len(OPENINGS))
    return [*OPENINGS, *(f"Question {number}: " for number in range(2, 2 + more))]


def symbol_table(seed: int) -> dict[str, str]:
    """Syllable -> word."""
    return dict(zip(SYLLABLES, Draw(seed, "symbols", "table").shuffled(WORDS), strict=True))


def symbol_rows(count: int, seed: int) -> list[list[Row]]:
    """Sequences of two to four (for large sets up to six) syllables, each once; wrong ones differ in one word."""
    table = symbol_table(seed)
    sequences: list[tuple[str, ...]] = [sequence for length in (2, 3) for sequence in permutations(SYLLABLES, length)]
    for length in (4, 5, 6):
        if len(sequences) < count:
            sequences += permutations(SYLLABLES, length)
    splits: list[list[Row]] = [[], [], []]
    for number, sequence in enumerate(Draw(seed, "symbols").shuffled(sequences)[:count]):
        draw = Draw(seed, "symbols", number)
        words = [table[syllable] for syllable in sequence]
        wrong: list[str] = []
        while len(wrong) < 3:
            place, word = draw.below(len(words)), WORDS[draw.below(len(WORDS))]
            other = " ".join([*words[:place], word, *words[place + 1 :]])
            if word not in words and other not in wrong:
                wrong.append(other)
        splits[_side(number, count)].append(_row("symbols", f"Translate: {' '.join(sequence)}", " ".join(words), wrong))
    return splits


def spatial_rows(kind: str, count: int, seed: int) -> list[list[Row]]:
    """Stories about things with places; each story once. Large sets tell of things with colours."""
    few = len(THINGS) * (len(THINGS) - 1) * 4  # stories of one step
    things = THINGS if count <= few * 3 // 4 else [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]
    splits: list[list[Row]] = [[], [], []]
    seen: set[str] = set()
    number = 0
    while len(seen) < count:
        row = _spatial_row(kind, things, Draw(seed, kind, number))
        number += 1
        if row["prompt"] not in seen:
            splits[_side(len(seen), count)].append(row)
            seen.add(row["prompt"])
    return splits


def _spatial_row(kind: str, known: Sequence[str], draw: Draw) -> Row:
    """One story, what is asked about it, and the answer by coordinates."""
    if kind == "diagonal":
        directions = [draw.shuffled(("left", "right"))[0], draw.shuffled(("above", "below"))[0]]
        directions = draw.shuffled(directions)
    elif kind == "chain":
        axis = draw.shuffled((("left", "right"), ("above", "below")))[0]
        directions = [draw.shuffled(axis)[0]] * (2 + draw.below(2))
    else:
        axis = ("left", "right") if kind == "horizontal" else ("above", "below")
        directions = [draw.shuffled(axis)[0]]
    things = draw.shuffled(known)[: len(directions) + 1]
    places, sentences = {things[0]: (0, 0)}, list[str]()
    for first, second, direction in zip(things, things[1:], directions, strict=False):
        (x, y), (dx, dy) = places[first], STEPS[direction]
        places[second] = (x + dx, y + dy)
        is_told_backwards = draw.below(2)  # "the box is left of the cup" for "the cup is right of the box"
        told = (first, OPPOSITE[direction], second) if is_told_backwards else (second, direction, first)
        sentences.append(f"The {told[0]} is {RELATIONS[told[1]]} the {told[2]}.")
    asked, other = draw.shuffled((things[0], things[-1]))
    signs = tuple(_sign(places[asked][axis] - places[other][axis]) for axis in (0, 1))
    answer = ANSWERS[signs[0], signs[1]]
    same = DIAGONAL if answer in DIAGONAL else STRAIGHT
    question = f"Where is the {asked}, seen from the {other}?"
    wrong = draw.shuffled(value for value in same if value != answer)
    return _row(kind, " ".join([*draw.shuffled(sentences), question]), answer, wrong)


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)


def _row(kind: str, prompt: str, completion: str, wrong: Sequence[str]) -> Row:
    return {"category": kind, "prompt": prompt, "completion": completion, "wrong": list(wrong)}


def _side(number: int, count: int) -> int:
    """The split of row ``number`` of ``count``: the first part trains, the next validates, the last tests."""
    place = number * sum(SHARES) // count
    return 0 if place < SHARES[0] else 1 if place < SHARES[0] + SHARES[1] else 2


Maker = Callable[[int, int], list[list[Row]]]
CORPORA: dict[str, dict[str, Maker]] = {
    "mappings": {
        "colour": lambda count, seed: lookup_rows("colour", COLOURS, COLOUR_QUESTIONS, count, seed),
        "number": lambda count, seed: lookup_rows("number", NUMBERS, NUMBER_QUESTIONS, count, seed),
        "symbols": symbol_rows,
    },
    "spatial": {
        kind: (lambda count, seed, kind=kind: spatial_rows(kind, count, seed))
        for kind in ("horizontal", "vertical", "chain", "diagonal")
    },
}


def corpus(name: str, count: int = DEFAULT_ROWS, seed: int = SEED) -> dict[str, list[Row]]:
    """The rows of ``mappings`` or ``spatial`` by split, the kinds mixed; ``count`` of each kind."""
    made = [maker(count, seed) for maker in CORPORA[name].values()]
    return {
        split: Draw(seed, name, split).shuffled(row for kind in made for row in kind[place])
        for place, split in enumerate(SPLITS)
    }


def read_babi(path: Path) -> list[Row]:
    """The questions of a bAbI file (numbered lines, ``question TAB answer TAB support``) with the story before each."""
    rows: list[Row] = []
    story: list[str] = []
    for line in path.read_text("utf-8").splitlines():
        number, _, text = line.partition(" ")
        if number == "1":
            story = []
        question, tab, rest = text.partition("\t")
        if tab:
            answer = rest.partition("\t")[0]
            rows.append(_row(path.name.partition("_")[0], " ".join([*story, question.strip()]), answer, []))
        else:
            story.append(text.strip())
    return _with_wrong(rows)


def read_stepgame(path: Path) -> list[Row]:
    """Stories (a list), questions and labels of a StepGame file in JSON Lines."""
    category = re.sub(r"_(train|valid|test)$", "", path.stem)
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return _with_wrong(
        [_row(category, " ".join([*row["story"], row["question"]]), str(row["label"]), []) for row in rows]
    )


def _with_wrong(rows: list[Row]) -> list[Row]:
    """Three other answers of the same kind for each row, as many as there are."""
    answers = sorted({row["completion"] for row in rows})
    for number, row in enumerate(rows):
        others = [answer for answer in answers if answer != row["completion"]]
        row["wrong"] = Draw("wrong", number).shuffled(others)[:3]
    return rows


def convert(folder: Path) -> dict[str, list[Row]]:
    """The bAbI and StepGame files of ``folder`` and below by split.

    Files named test are tests; of the others about every tenth question validates, and another tenth tests where its
    kind has no test file. No question is in two splits, which the files do not see to.
    """
    splits: dict[str, list[Row]] = {split: [] for split in SPLITS}
    files = sorted([*folder.rglob("qa*_*.txt"), *folder.rglob("stepgame_*.jsonl")])
    kinds_with_test = {file.name.partition("_")[0] for file in files if "_test" in file.name}
    for file in files:
        for number, row in enumerate(read_babi(file) if file.suffix == ".txt" else read_stepgame(file)):
            place = int(hashlib.sha256(row["prompt"].encode()).hexdigest()[:8], 16) % 10
            has_test = file.name.partition("_")[0] in kinds_with_test
            side = (
                "test" if "_test" in file.name or (place == 9 and not has_test) else "valid" if place == 0 else "train"
            )
            splits[side].append(row | {"source": f"{file.name}:{number + 1}"})
    taken = set[str]()
    for split in ("train", "test", "valid"):  # the files repeat stories
        splits[split] = [row for row in splits[split] if row["prompt"] not in taken]
        taken |= {row["prompt"] for row in splits[split]}
    return splits


def write_jsonl(folder: Path, splits: Mapping[str, Sequence[Row]]) -> None:
    """``train.jsonl``, ``valid.jsonl``, ``test.jsonl``."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines, "utf-8")


def write_saved(folder: Path, splits: Mapping[str, Sequence[Row]]) -> None:
    """The layout of ``DatasetDict.save_to_disk``: one Arrow stream a split. Needs pyarrow."""
    import pyarrow as arrow  # not needed for the rows themselves

    names = {"train": "train", "valid": "validation", "test": "test"}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": [names[split] for split in splits]}), "utf-8")
    text = {"dtype": "string", "_type": "Value"}
    for split, rows in splits.items():
        keys = list(rows[0])
        schema = arrow.schema(
            [(key, arrow.list_(arrow.string()) if key == "wrong" else arrow.string()) for key in keys]
        )
        features = {key: {"feature": text, "_type": "List"} if key == "wrong" else text for key in keys}
        table = arrow.table({key: [row[key] for row in rows] for key in keys}, schema=schema)
        place = folder / names[split]
        place.mkdir(exist_ok=True)
        file = "data-00000-of-00001.arrow"
        with arrow.OSFile(str(place / file), "wb") as sink, arrow.ipc.new_stream(sink, schema) as writer:
            writer.write_table(table)
        info = {"citation": "", "description": "", "features": features, "homepage": "", "license": ""}
        state = {
            "_data_files": [{"filename": file}],
            "_fingerprint": hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": names[split],
        }
        (place / "dataset_info.json").write_text(json.dumps(info, indent=2), "utf-8")
        (place / "state.json").write_text(json.dumps(state, indent=2), "utf-8")


def main() -> None:
    """Write what the command line asks for, and say how much it is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=DEFAULT_ROWS, help=f"rows of each kind, 500 to {MOST_ROWS}")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, help="folder to write to")
    parser.add_argument("--convert", type=Path, metavar="FOLDER", help="bAbI and StepGame files instead")
    parser.add_argument("--no-saved", action="store_true", help="JSON Lines only; the Arrow folders need pyarrow")
    given = parser.parse_args()
    if not 500 <= given.rows <= MOST_ROWS:
        sys.exit(f"error: --rows must be from 500 to {MOST_ROWS}")
    if given.convert:
        splits = convert(given.convert)
        if not any(splits.values()):
            sys.exit(f"error: there is no qaN_*.txt and no stepgame_*.jsonl in {given.convert}")
        corpora, out = {"relations": splits}, given.out or HERE.with_name("relations")
    else:
        out = given.out or (HERE if given.rows == DEFAULT_ROWS else HERE.with_name(f"constraints-{given.rows}"))
        corpora = {name: corpus(name, given.rows, given.seed) for name in CORPORA}
    for name, splits in corpora.items():
        write_jsonl(out / name, splits)
        if not given.no_saved:
            write_saved(out / "saved" / name, splits)
        counts = ", ".join(f"{len(rows)} {split}" for split, rows in splits.items())
        sys.stdout.write(f"{out / name}: {counts}\n")


if __name__ == "__main__":
    main()
