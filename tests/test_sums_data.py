"""data/sums is what its README says: made by its script, splits apart, every answer right."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT

FOLDER = ROOT / "data" / "sums"
SPLITS = ("train", "valid", "sample", "test")


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_sums", FOLDER / "make_sums.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_sums"] = module
    spec.loader.exec_module(module)
    return module


def rows(folder: Path, split: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text("utf-8").splitlines()]


def terms(prompt: str) -> tuple[int, ...]:
    return tuple(sorted(int(term) for term in re.findall(r"[+-]?\d+", prompt.removesuffix("="))))


def test_the_committed_files_are_what_the_script_writes(maker: ModuleType, tmp_path: Path) -> None:
    maker.write(tmp_path, maker.SIZES, **maker.DEFAULTS)
    for split in SPLITS:
        name = f"{split}.jsonl"
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()


def test_no_problem_stands_in_two_splits_in_whatever_order(maker: ModuleType) -> None:
    keys = [terms(row["prompt"]) for split in SPLITS for row in rows(FOLDER, split)]
    assert len(keys) == len(set(keys)) == sum(maker.SIZES.values())


def test_every_answer_is_right() -> None:
    for split in SPLITS:
        for row in rows(FOLDER, split):
            assert int(row["completion"]) == sum(terms(row["prompt"]))


def test_harder_sums_with_steps_end_with_the_answer(maker: ModuleType, tmp_path: Path) -> None:
    sizes = {"train": 30, "test": 10}
    maker.write(tmp_path, sizes, **(maker.DEFAULTS | {"terms": 4, "minus": True, "steps": True, "seed": 1}))
    for row in rows(tmp_path, "train") + rows(tmp_path, "test"):
        numbers = terms(row["prompt"])
        *steps, last = row["completion"].splitlines()
        assert len(numbers) == 4
        assert len(steps) == 3
        assert last == f"#### {sum(numbers)}"
        assert all(sum(terms(step.partition("=")[0])) == int(step.partition("=")[2]) for step in steps)


def test_more_sums_than_there_are_is_an_error(maker: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="there are not 100 different sums"):
        maker.write(tmp_path, {"train": 100}, **(maker.DEFAULTS | {"largest": 5}))
