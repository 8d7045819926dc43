"""Parquet, load_from_disk folders and the hub: through the library where installed, a sentence where not."""

import importlib.util
import logging
import shlex
import sys
import types
from pathlib import Path

import pytest
from reports import no_problem

from mlx_finetune.dataset.corpus import load_splits
from mlx_finetune.dataset.read import read_rows
from mlx_finetune.dataset.sources import columnar
from mlx_finetune.errors import DataError, Problem
from mlx_finetune.recipe.data import DataRecipe

is_installed = importlib.util.find_spec("datasets") is not None
needs_library = pytest.mark.skipif(not is_installed, reason="needs the extra `datasets`")

ROWS = [
    {"messages": [{"role": "user", "content": f"question {n}"}, {"role": "assistant", "content": f"answer {n}"}]}
    for n in range(1200)
]


def recipe(path: Path | str) -> DataRecipe:
    return DataRecipe.model_validate({"path": str(path)})


def test_a_missing_library_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(columnar.importlib, "import_module", refuse)
    install = f"{shlex.quote(sys.executable)} -m pip install 'datasets>=4' 'pyarrow>=18'"
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    problems: list[Problem] = []
    assert list(read_rows(tmp_path / "a.parquet", report=problems.append)) == []
    assert [(problem.message, problem.hint) for problem in problems] == [
        ("Parquet needs the library `datasets`, which is not installed", install)
    ]
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    for path in ("saved", "nobody/nothing"):
        with pytest.raises(DataError, match="needs the library `datasets`, which is not installed") as caught:
            load_splits(recipe(path), base=tmp_path)
        assert caught.value.hint == install


@needs_library
def test_parquet_rows_are_those_written(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")

    datasets.Dataset.from_list(ROWS).to_parquet(str(tmp_path / "a.parquet"))
    rows = list(read_rows(tmp_path / "a.parquet", source="a.parquet", report=no_problem))
    assert [row.fields for row in rows] == ROWS
    assert rows[1100].where == "a.parquet:1101"


@needs_library
def test_a_damaged_parquet_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and nothing more PAR1")
    problems: list[Problem] = []
    assert list(read_rows(tmp_path / "a.parquet", report=problems.append)) == []
    assert problems[0].message.startswith("is not a Parquet file that can be read: ")


@needs_library
def test_a_saved_folder_keeps_its_splits_and_validation_is_a_name_for_valid(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")

    table = datasets.Dataset.from_list(ROWS)
    parts = {"train": table.select(range(900)), "validation": table.select(range(900, 1100))}
    datasets.DatasetDict(parts | {"test": table.select(range(1100, 1200))}).save_to_disk(str(tmp_path / "saved"))
    splits = load_splits(recipe("saved"), base=tmp_path)
    assert splits.counts == {"train": 900, "valid": 200, "test": 100}
    assert (splits.valid[3].source, splits.valid[3].line) == ("saved/validation", 4)
    assert load_splits(recipe("saved"), base=tmp_path).content_hash == splits.content_hash


@needs_library
def test_a_saved_table_without_splits_is_split_by_content_like_the_same_rows_in_a_file(tmp_path: Path) -> None:
    import json

    datasets = pytest.importorskip("datasets")

    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert load_splits(recipe("saved"), base=tmp_path).counts == load_splits(recipe("a.jsonl"), base=tmp_path).counts


@needs_library
def test_a_hub_id_without_a_network_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nobody/nothing is no file or folder here, and the hub says: ") as caught:
        load_splits(recipe("nobody/nothing"), base=tmp_path)
    assert caught.value.hint == "offline mode is on (HF_HUB_OFFLINE)"


def test_the_retries_of_the_hub_are_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    logger = logging.getLogger("huggingface_hub.utils._http")
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "level", logging.WARNING)

    def load_dataset(name: str) -> None:
        logger.warning("Retrying in 1s [Retry 1/5].")
        raise ConnectionError(f"{name} cannot be reached")

    library = types.SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setattr(columnar, "_library", lambda what: library)
    with pytest.raises(DataError, match="the hub says: nobody/silent cannot be reached"):
        columnar.locate_hub("nobody/silent")
    assert told == []
    logger.warning("afterwards")
    assert told == ["afterwards"]
