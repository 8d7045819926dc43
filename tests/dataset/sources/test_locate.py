"""Which files hold which split."""

from pathlib import Path

import pytest

from mlx_finetune.dataset.sources.locate import locate
from mlx_finetune.errors import DataError


def make(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text('{"text": "a"}\n')
    return folder


def names(folder: Path) -> dict[str, list[str]]:
    return {
        split: [file.path.name for file in files] for split, files in locate(folder.name, base=folder.parent).items()
    }


@pytest.mark.parametrize("valid", ["valid", "validation", "val", "dev"])
@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet", "jsonl.gz", "txt"])
def test_a_folder_has_train_valid_and_test(tmp_path: Path, valid: str, ending: str) -> None:
    folder = make(tmp_path / "d", f"train.{ending}", f"{valid}.{ending}", f"test.{ending}", "README.md", ".train.jsonl")
    assert names(folder) == {"train": [f"train.{ending}"], "valid": [f"{valid}.{ending}"], "test": [f"test.{ending}"]}


def test_parts_of_a_split_belong_together_in_order(tmp_path: Path) -> None:
    folder = make(tmp_path / "d", "train-00001-of-00002.parquet", "train-00000-of-00002.parquet")
    assert names(folder) == {"train": ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]}


def test_two_files_of_one_split_are_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "d", "train.jsonl", "valid.jsonl", "val.json")
    with pytest.raises(DataError, match=r"more than one valid file: val\.json and valid\.jsonl"):
        locate("d", base=folder.parent)


def test_a_folder_without_a_train_file_says_what_it_has(tmp_path: Path) -> None:
    make(tmp_path / "d", "mine.jsonl", "notes.docx")
    with pytest.raises(DataError) as caught:
        locate("d", base=tmp_path)
    assert caught.value.message == "d: the folder has no train file; it has mine.jsonl"
    assert caught.value.hint == 'name one of them in the place of the folder: "d/mine.jsonl"'
    make(tmp_path / "e")
    with pytest.raises(DataError, match="e: the folder has no train file"):
        locate("e", base=tmp_path)


def test_a_file_is_named_as_written_and_found_from_the_base(tmp_path: Path) -> None:
    make(tmp_path / "d", "mine.jsonl")
    (file,) = locate("d/mine.jsonl", base=tmp_path)["train"]
    assert (file.path, file.source) == (tmp_path / "d" / "mine.jsonl", "d/mine.jsonl")


def test_a_mistyped_path_in_a_folder_that_exists_is_no_hub_id(tmp_path: Path) -> None:
    make(tmp_path / "data", "quickstart.jsonl")
    (file,) = locate("data/quickstrt", base=tmp_path)["train"]
    assert file.path == tmp_path / "data" / "quickstrt"


def test_odd_paths_are_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="NUL"):
        locate("a\0b", base=tmp_path)
    with pytest.raises(DataError, match="cannot be opened"):
        locate("x" * 5000, base=tmp_path)
