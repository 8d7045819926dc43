"""The rows of recipes/pipeline-scratch.toml: made again to the byte, right, and kept apart where they must be."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
from conftest import ROOT

DATA = ROOT / "data" / "pipeline"
FILES = sorted(path.relative_to(DATA) for path in DATA.rglob("*.jsonl"))


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (DATA / name).read_text("utf-8").splitlines()]


def sums_in(row: dict[str, str]) -> set[str]:
    """The sums of six numbers that a row is about."""
    return set(re.findall(r"(?<![\d+])\d(?:\+\d){5}(?!\d)", " ".join(row.values())))


def test_the_script_makes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["make", "--out", str(tmp_path)])
    runpy.run_path(str(DATA / "make_pipeline_data.py"), run_name="__main__")
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.jsonl")) == FILES
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes(), name


def test_every_sum_that_is_called_right_is_right():
    for name in ("text/train.jsonl", "text/valid.jsonl", "sft/train.jsonl", "sft/valid.jsonl", "dpo/train.jsonl"):
        for row in rows(name):
            row.pop("rejected", None)
            for a, b, total in re.findall(r"(\d+)\+(\d+)=(\d+)", " ".join(row.values())):
                assert int(a) + int(b) == int(total)
    for name in ("problems.jsonl", "test.jsonl"):
        for row in rows(name):
            assert sum(map(int, re.findall(r"\d+", row["prompt"]))) == int(row["completion"])


def test_steps_add_up_the_numbers_of_their_sum():
    in_steps = 0
    for name in ("text/train.jsonl", "sft/train.jsonl", "dpo/train.jsonl"):
        for row in rows(name):
            row.pop("rejected", None)
            for asked, steps in re.findall(r"(\d(?:\+\d){5})\D+?((?:\d+\+\d+=\d+ ?){5})", " ".join(row.values())):
                terms, lines = [int(one) for one in asked.split("+")], re.findall(r"(\d+)\+(\d+)=(\d+)", steps)
                assert [int(lines[0][0]), *(int(line[1]) for line in lines)] == terms
                assert [line[0] for line in lines[1:]] == [line[2] for line in lines[:-1]]
                assert int(lines[-1][2]) == sum(terms)
                in_steps += 1
    assert in_steps > 5000


def test_sums_set_aside_stand_in_no_other_file():
    known = {one for name in ("text", "sft", "dpo") for row in rows(f"{name}/train.jsonl") for one in sums_in(row)}
    aside = [
        {one for row in rows(name) for one in sums_in(row)}
        for name in ("problems.jsonl", "test.jsonl", "sft/valid.jsonl", "dpo/valid.jsonl")
    ]
    assert [len(one) for one in aside[:2]] == [600, 400]
    for index, one in enumerate(aside):
        assert one
        assert not one & known
        assert not any(one & other for other in aside[index + 1 :])


def test_a_pair_prefers_the_sum_in_steps_or_the_right_one():
    pairs = rows("dpo/train.jsonl")
    kinds = [row["rejected"].isdigit() for row in pairs]
    assert 0.6 < sum(kinds) / len(kinds) < 0.75
    assert all(row["chosen"] != row["rejected"] for row in pairs)
    ends = [row["rejected"].rpartition("=")[2] for row in pairs if not row["rejected"].isdigit()]
    rights = [row["chosen"].rpartition("=")[2] for row in pairs if not row["rejected"].isdigit()]
    assert all(abs(int(end) - int(right)) == 1 for end, right in zip(ends, rights, strict=True))
