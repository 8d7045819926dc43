"""data/voice is what its README says: balanced, nothing twice, one voice with habits that can be counted."""

import json
import re
import tomllib
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
from conftest import ROOT

FOLDER = ROOT / "data" / "voice"
SPLITS = ("train", "valid", "test")
SIZES = {"train": 270, "valid": 30, "test": 45}
CATEGORIES = ("marketing", "copywriting", "customer-service")
#: Words that the shortest of two answers may share with the other: most of them are "the" and "and".
MOST_SHARED_WORDS = 0.5


def read(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in Path(FOLDER, f"{name}.jsonl").read_text("utf-8").splitlines()]


def every_row() -> list[dict[str, str]]:
    return [row for split in SPLITS for row in read(split)]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


@pytest.mark.parametrize("split", SPLITS)
def test_each_split_has_its_size_and_a_third_of_each_category(split: str) -> None:
    rows = read(split)
    assert all(row.keys() == {"instruction", "output", "category"} for row in rows)
    assert Counter(row["category"] for row in rows) == dict.fromkeys(CATEGORIES, SIZES[split] // 3)


def test_the_readme_gives_the_sizes() -> None:
    readme = (FOLDER / "README.md").read_text("utf-8")
    sizes = re.findall(r"^\| (\w+)\.jsonl \| (\d+) ", readme, re.MULTILINE)
    assert sizes == [(name, str(len(read(name)))) for name in (*SPLITS, "plain")]


def test_no_instruction_and_no_answer_occurs_twice_in_any_split() -> None:
    rows = every_row()
    for field in ("instruction", "output"):
        assert len({" ".join(words(row[field])) for row in rows}) == len(rows)


def test_no_two_answers_share_eight_words_in_a_row() -> None:
    outputs = [words(row["output"]) for row in every_row()]
    runs = [set(zip(*(output[start:] for start in range(8)), strict=False)) for output in outputs]
    assert [(a, b) for a, b in combinations(range(len(runs)), 2) if runs[a] & runs[b]] == []


def test_no_two_answers_have_half_their_words_in_common() -> None:
    outputs = [set(words(row["output"])) for row in every_row()]
    shares = [len(a & b) / min(len(a), len(b)) for a, b in combinations(outputs, 2)]
    assert max(shares) < MOST_SHARED_WORDS


def test_answers_have_the_length_and_the_habits_of_the_readme() -> None:
    outputs = [row["output"] for row in every_row()]
    lengths = [len(output.split()) for output in outputs]
    assert (min(lengths), round(sum(lengths) / len(lengths)), max(lengths)) == (35, 48, 64)
    assert [output for output in outputs if not re.search(r"[^(]+ \([^()]+[.!?]\)$", output)] == []
    assert [output for output in outputs if not re.search(r"\d", output)] == []
    assert sum(bool(re.search(r"\b(this office|the department)\b", output, re.IGNORECASE)) for output in outputs) == 123


def test_all_text_is_ascii_on_one_line() -> None:
    for name in (*SPLITS, "plain"):
        for row in read(name):
            assert all(value.isascii() and value == " ".join(value.split()) for value in row.values())


def test_plain_answers_have_the_instructions_of_voice_answers_of_their_split() -> None:
    plain = read("plain")
    for split, each in (("train", 30), ("test", 15)):
        rows = [row for row in plain if row["split"] == split]
        voice = {row["instruction"]: row["category"] for row in read(split)}
        assert all(voice[row["instruction"]] == row["category"] for row in rows)
        assert Counter(row["category"] for row in rows) == dict.fromkeys(CATEGORIES, each)
    assert len({row["output"] for row in plain}) == len(plain)
    assert {row["output"] for row in plain}.isdisjoint(row["output"] for row in every_row())


def test_test_instructions_are_in_no_plain_answer_of_training() -> None:
    held_out = {row["instruction"] for row in read("test")}
    assert held_out.isdisjoint(row["instruction"] for row in read("plain") if row["split"] == "train")


@pytest.mark.parametrize("name", ["voice-smollm2", "voice-pythia-1.4b"])
def test_the_prompts_of_the_recipes_are_in_no_file(name: str) -> None:
    recipe = tomllib.loads((ROOT / "recipes" / f"{name}.toml").read_text("utf-8"))
    assert recipe["data"]["path"] == "data/voice"
    assert recipe["eval"]["prompts"]
    assert set(recipe["eval"]["prompts"]).isdisjoint(row["instruction"] for row in every_row())
