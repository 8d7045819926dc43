"""data/constraints is what its README says: made by its script, right by another way of working it out, held out."""

import importlib.util
import json
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import ROOT

from mlx_finetune.dataset.corpus import load_splits
from mlx_finetune.recipe.data import DataRecipe

FOLDER = ROOT / "data" / "constraints"
SPATIAL = ROOT.parent / "shared" / "data" / "spatial"
SPLITS = ("train", "valid", "test")
KINDS = {"mappings": {"colour", "number", "symbols"}, "spatial": {"horizontal", "vertical", "chain", "diagonal"}}


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_constraints", FOLDER / "make_constraints.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_constraints"] = module
    spec.loader.exec_module(module)
    return module


def rows(corpus: str, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / corpus / f"{split}.jsonl").read_text("utf-8").splitlines()]


def every(corpus: str) -> list[dict[str, Any]]:
    return [row for split in SPLITS for row in rows(corpus, split)]


def test_the_committed_files_are_what_the_script_writes(maker: ModuleType, tmp_path: Path) -> None:
    for corpus in KINDS:
        made = maker.corpus(corpus)
        maker.write_jsonl(tmp_path / corpus, made)
        for split in SPLITS:
            name = f"{corpus}/{split}.jsonl"
            assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes(), name


@pytest.mark.parametrize("corpus", KINDS)
def test_every_kind_has_500_rows_and_each_row_its_wrong_answers(corpus: str) -> None:
    counts = Counter(row["category"] for row in every(corpus))
    assert set(counts) == KINDS[corpus]
    assert min(counts.values()) >= 500
    for row in every(corpus):
        assert list(row) == ["category", "prompt", "completion", "wrong"]
        assert len(set(row["wrong"])) == 3
        assert row["completion"] not in row["wrong"]
    answers = defaultdict(set)
    for row in every(corpus):
        answers[row["category"]].add(row["completion"])
    lookups = [row for row in every(corpus) if row["category"] in ("colour", "number", "diagonal")]
    assert all(set(row["wrong"]) <= answers[row["category"]] for row in lookups)  # of the same kind


@pytest.mark.parametrize("corpus", KINDS)
def test_no_question_stands_in_two_splits_and_the_splits_are_kept(corpus: str) -> None:
    prompts = [{row["prompt"] for row in rows(corpus, split)} for split in SPLITS]
    assert sum(map(len, prompts)) == len(set.union(*prompts)) == len(every(corpus))
    splits = load_splits(DataRecipe.model_validate({"path": corpus}), base=FOLDER)
    assert splits.counts == {split: len(rows(corpus, split)) for split in SPLITS}


def test_a_mapping_has_one_value_for_a_name_and_every_name_is_trained() -> None:
    for kind in ("colour", "number"):
        values = defaultdict(set)
        trained = set()
        for split in SPLITS:
            for row in (row for row in rows("mappings", split) if row["category"] == kind):
                (name,) = set(re.findall(r"\w+", row["prompt"])) & set(NAMES)
                values[name].add(row["completion"])
                trained |= {name} if split == "train" else set()
        assert trained == set(values) == set(NAMES)
        assert all(len(found) == 1 for found in values.values())
        assert set(Counter(next(iter(found)) for found in values.values()).values()) == {2}  # none is the safe guess


NAMES = ["blen", "cruv", "dask", "fimo", "gorp", "hult", "jivo", "kemp", "lurt", "moxa", "nerb", "pilk", "quon",
         "rasp", "sylt", "tovi"]  # fmt: skip


def test_symbols_are_replaced_one_by_one_the_same_way_everywhere() -> None:
    table: dict[str, str] = {}
    for row in (row for row in every("mappings") if row["category"] == "symbols"):
        syllables, words = row["prompt"].removeprefix("Translate: ").split(), row["completion"].split()
        for syllable, word in zip(syllables, words, strict=True):
            assert table.setdefault(syllable, word) == word
    assert len(table) == len(set(table.values())) == 8


def test_every_spatial_answer_follows_from_its_story() -> None:
    """By another way than the script's: relations as sums along paths, read from the text alone."""
    steps = {"left of": (-1, 0), "right of": (1, 0), "above": (0, 1), "below": (0, -1)}
    for row in every("spatial"):
        story, _, question = row["prompt"].rpartition(". ")
        known: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
        told = re.findall(r"The (\w+) is (left of|right of|above|below) the (\w+)", story)
        assert len(told) == story.count(" is ")
        for first, relation, second in told:
            dx, dy = steps[relation]
            known[second][first] = (dx, dy)
            known[first][second] = (-dx, -dy)
        found = re.fullmatch(r"Where is the (\w+), seen from the (\w+)\?", question)
        assert found is not None
        places, waiting = {found[2]: (0, 0)}, [found[2]]
        while waiting:
            here = waiting.pop()
            for other, (dx, dy) in known[here].items():
                if other not in places:
                    places[other] = (places[here][0] + dx, places[here][1] + dy)
                    waiting.append(other)
        x, y = places[found[1]]
        words = [
            word for word, holds in (("above", y > 0), ("below", y < 0), ("left", x < 0), ("right", x > 0)) if holds
        ]
        assert row["completion"] == " ".join(words), row["prompt"]


def test_the_saved_folders_hold_the_same_rows_for_load_from_disk(maker: ModuleType, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")

    maker.write_saved(tmp_path / "again", maker.corpus("mappings"))
    for corpus in KINDS:
        saved = datasets.load_from_disk(str(FOLDER / "saved" / corpus))
        names = {"train": "train", "valid": "validation", "test": "test"}
        assert set(saved) == set(names.values())
        for split, name in names.items():
            assert saved[name].to_list() == rows(corpus, split)
    again = datasets.load_from_disk(str(tmp_path / "again"))["test"]
    assert again.to_list() == rows("mappings", "test")
    data = DataRecipe.model_validate({"path": "saved/mappings"})
    assert load_splits(data, base=FOLDER).counts == {"train": 1296, "valid": 144, "test": 288}


def test_more_rows_begin_with_the_same_table_and_hold_no_question_twice(maker: ModuleType) -> None:
    for corpus in KINDS:
        made = maker.corpus(corpus, 1500)
        prompts = [row["prompt"] for split in SPLITS for row in made[split]]
        assert len(prompts) == len(set(prompts))
        assert set(Counter(row["category"] for split in SPLITS for row in made[split]).values()) == {1500}
    assert maker.lookup_table("colour", maker.COLOURS, 8) != maker.lookup_table("colour", maker.COLOURS, 9)


@pytest.mark.skipif(not SPATIAL.is_dir(), reason="needs ../shared/data/spatial")
def test_real_stories_become_rows_with_their_splits(maker: ModuleType, tmp_path: Path) -> None:
    made = maker.convert(SPATIAL)
    maker.write_jsonl(tmp_path / "relations", made)
    splits = load_splits(DataRecipe.model_validate({"path": "relations"}), base=tmp_path)
    assert splits.counts["train"] > 5000
    assert min(splits.counts.values()) > 300
    by_source = {row["source"]: row for split in SPLITS for row in made[split]}
    row = by_source["qa17_positional-reasoning_train.txt:1"]
    assert row["prompt"].startswith("The triangle is above the pink rectangle. The blue square is to the left of")
    assert (row["completion"], row["wrong"]) == ("yes", ["no"])
    row = by_source["stepgame_qa1_train.jsonl:2"]
    assert row["completion"] == "above"
    assert len(row["wrong"]) == 3
    prompts = [{row["prompt"] for row in made[split]} for split in SPLITS]
    assert sum(map(len, prompts)) == len(set.union(*prompts))
