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


def pairs_in(row: dict[str, str]) -> set[tuple[int, int]]:
    """The sums of a row, the smaller number first."""
    found = re.findall(r"(\d+)(?: \+ | and )(\d+)", " ".join(row.values()))
    return {(min(int(a), int(b)), max(int(a), int(b))) for a, b in found}


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
            for a, b, total in re.findall(r"(\d+) \+ (\d+) = (\d+)", " ".join(row.values())):
                assert int(a) + int(b) == int(total)
    for name in ("problems.jsonl", "test.jsonl"):
        for row in rows(name):
            assert sum(map(int, re.findall(r"\d+", row["prompt"]))) == int(row["completion"])


def test_sums_set_aside_stand_in_no_other_file():
    known = {pair for name in ("text", "sft", "dpo") for row in rows(f"{name}/train.jsonl") for pair in pairs_in(row)}
    aside = [
        {pair for row in rows(name) for pair in pairs_in(row)}
        for name in ("problems.jsonl", "test.jsonl", "sft/valid.jsonl", "dpo/valid.jsonl")
    ]
    for index, one in enumerate(aside):
        assert one
        assert not one & known
        assert not any(one & other for other in aside[index + 1 :])


def test_a_pair_prefers_the_sum_written_out_or_the_right_one():
    kinds = [row["rejected"].isdigit() for row in rows("dpo/train.jsonl")]
    assert 0.6 < sum(kinds) / len(kinds) < 0.75
    assert all(row["chosen"] != row["rejected"] for row in rows("dpo/train.jsonl"))
