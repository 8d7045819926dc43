"""data/rules is what its README says: made by its script, chosen answers keep their rule, rejected ones break it."""

import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import ROOT

FOLDER = ROOT / "data" / "rules"
SPLITS = {"train": 1200, "valid": 48, "test": 400}


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_rules", FOLDER / "make_rules.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_rules"] = module
    spec.loader.exec_module(module)
    return module


def rows(split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / f"{split}.jsonl").read_text("ascii").splitlines()]


def test_the_committed_files_are_what_the_script_writes(maker: ModuleType, tmp_path: Path) -> None:
    maker.write(tmp_path, maker.SIZES, 1)
    for split in SPLITS:
        assert (tmp_path / f"{split}.jsonl").read_bytes() == (FOLDER / f"{split}.jsonl").read_bytes()


@pytest.mark.parametrize("split", SPLITS)
def test_chosen_answers_keep_the_rule_and_rejected_ones_break_it(maker: ModuleType, split: str) -> None:
    found = rows(split)
    assert len(found) == SPLITS[split]
    for row in found:
        assert maker.keeps(row["kind"], row["rule"], row["chosen"]), row
        assert not maker.keeps(row["kind"], row["rule"], row["rejected"]), row
    assert len(set(Counter(row["kind"] for row in found).values())) == 1


def test_no_request_is_in_two_splits_and_none_twice() -> None:
    prompts = [row["prompt"] for split in SPLITS for row in rows(split)]
    assert len(prompts) == len(set(prompts))


def test_length_tells_nothing(maker: ModuleType) -> None:
    for kind in maker.KINDS:
        own = [(len(row["chosen"]), len(row["rejected"])) for row in rows("train") if row["kind"] == kind]
        chosen, rejected = (sum(lengths) / len(own) for lengths in zip(*own, strict=True))
        assert abs(chosen / rejected - 1) < 0.2, kind
        longer = sum(one > other for one, other in own)
        shorter = sum(one < other for one, other in own)
        assert abs(longer - shorter) <= 0.25 * len(own), kind
