"""data/quickstart is what its README says: one form in every answer, nothing twice, short."""

import json
import re
import tomllib
from pathlib import Path

from conftest import ROOT

FORM = re.compile(r"Aye\. [^\n]+[.!?]\nLog: wind [^\n,]+, [^\n]+\.")


def turns(split: str) -> list[list[dict[str, str]]]:
    lines = Path(ROOT, "data", "quickstart", f"{split}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["messages"] for line in lines]


def every(role: str) -> list[str]:
    rows = [*turns("train"), *turns("valid"), *turns("test")]
    return [turn["content"] for row in rows for turn in row if turn["role"] == role]


def test_the_splits_have_the_sizes_of_the_readme() -> None:
    sizes = [len(turns(split)) for split in ("train", "valid", "test")]
    assert sizes == [257, 24, 16]
    readme = (ROOT / "data" / "quickstart" / "README.md").read_text("utf-8")
    assert re.findall(r"^\| \w+\.jsonl \| (\d+) ", readme, re.MULTILINE) == [str(size) for size in sizes]


def test_every_answer_has_the_form_of_the_readme() -> None:
    assert [answer for answer in every("assistant") if not FORM.fullmatch(answer)] == []


def test_roles_alternate_and_no_row_has_a_system_turn() -> None:
    for split in ("train", "valid", "test"):
        for row in turns(split):
            assert [turn["role"] for turn in row] == ["user", "assistant"] * (len(row) // 2)


def test_no_question_answer_or_log_entry_occurs_twice_in_any_split() -> None:
    questions = [re.sub(r"\W+", " ", text.lower()).strip() for text in every("user")]
    assert len(set(questions)) == len(questions)
    answers = every("assistant")
    assert len({answer.split("\n")[0] for answer in answers}) == len(answers)
    assert len({answer.rsplit(", ", 1)[1] for answer in answers}) == len(answers)


def test_answers_stay_short_enough_for_two_cores() -> None:
    assert max(len(answer) for answer in every("assistant")) <= 140


def test_the_prompts_of_the_recipe_are_in_no_file() -> None:
    prompts = tomllib.loads((ROOT / "recipes" / "quickstart.toml").read_text("utf-8"))["eval"]["prompts"]
    assert prompts
    assert set(prompts).isdisjoint(every("user"))
