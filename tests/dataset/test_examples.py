import json
from pathlib import Path

import pytest

from mlx_finetune.dataset.corpus import Splits, load_splits
from mlx_finetune.dataset.examples import FileExamples
from mlx_finetune.errors import DataError
from mlx_finetune.recipe.data import DataRecipe


def write(path: Path, *numbers: int, name: str = "text") -> None:
    path.write_text("".join(json.dumps({name: f"row {number}"}) + "\n" for number in numbers))


def sides(splits: Splits) -> list[object]:
    return [list(splits.train), list(splits.valid), list(splits.test), splits.counts, splits.problems, splits.format]


@pytest.mark.parametrize("given", [False, True])
def test_examples_read_again_are_those_that_would_have_been_kept(tmp_path: Path, given: bool) -> None:
    write(tmp_path / "train.jsonl", *range(300))
    if given:
        write(tmp_path / "valid.jsonl", *range(290, 320))
    data = DataRecipe.model_validate({"path": "."})
    kept, again = load_splits(data, base=tmp_path), load_splits(data, base=tmp_path, kept_rows=10)
    assert isinstance(kept.train, tuple)
    assert isinstance(again.train, FileExamples)
    assert sides(again) == sides(kept)
    assert list(again.train) == list(again.train)
    assert again.content_hash == kept.content_hash


def test_weights_of_several_sources_are_kept(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", *range(40))
    write(tmp_path / "b.jsonl", *range(40, 70))
    sources = [{"path": "a.jsonl", "weight": 0.5}, {"path": "b.jsonl", "weight": 2.0}]
    data = DataRecipe.model_validate({"sources": sources})
    kept, again = load_splits(data, base=tmp_path), load_splits(data, base=tmp_path, kept_rows=0)
    assert sides(again) == sides(kept)
    assert {example.weight for example in again.train} == {0.5, 2.0}


def test_single_examples_and_slices_are_found(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", *range(60))
    data = DataRecipe.model_validate({"path": "a.jsonl"})
    kept, again = load_splits(data, base=tmp_path).train, load_splits(data, base=tmp_path, kept_rows=0).train
    assert again[3] == kept[3]
    assert again[-1] == kept[-1]
    assert list(again[2:9:3]) == list(kept[2:9:3])
    assert list(again[5:5]) == []
    with pytest.raises(IndexError):
        again[len(kept)]


@pytest.mark.parametrize("change", ["longer", "shorter", "same size", "other columns", "damaged", "gone"])
def test_a_file_that_changes_between_two_readings_is_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / "a.jsonl"
    write(path, *range(10, 60))
    data = DataRecipe.model_validate({"path": "a.jsonl", "val_split": 0.0, "test_split": 0.0})
    train = load_splits(data, base=tmp_path, kept_rows=0).train
    if change == "gone":
        path.unlink()
    elif change == "damaged":
        path.write_text(path.read_text() + "{")
    else:
        numbers = {"longer": range(10, 61), "shorter": range(10, 59), "same size": range(11, 61)}.get(change)
        write(path, *(numbers or range(10, 60)), name="nothing" if change == "other columns" else "text")
    with pytest.raises(DataError, match="changed while it was read"):
        list(train)
