"""Files of the sides of one file."""

import json
from pathlib import Path

import pytest

from mlx_finetune.dataset.corpus import load_splits
from mlx_finetune.dataset.divide import divide_file
from mlx_finetune.dataset.formats import Labelled
from mlx_finetune.dataset.row import DataFile
from mlx_finetune.errors import DataError
from mlx_finetune.recipe.data import DataRecipe


def data_file(path: Path, content: bytes) -> DataFile:
    path.write_bytes(content)
    return DataFile(path, path.name)


LINES = [b'{ "text":\t"row %d", "x": 1.50 }' % number for number in range(300)]


def test_lines_are_kept_byte_for_byte_and_none_is_lost(tmp_path: Path) -> None:
    file = data_file(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + b"\n\n".join(LINES))
    counts = divide_file(file, tmp_path / "out", val_split=0.1, test_split=0.1)
    written = {name: (tmp_path / "out" / name).read_bytes().split(b"\n")[:-1] for name in counts}
    assert list(written) == ["train.jsonl", "valid.jsonl", "test.jsonl"]
    assert sorted(line for lines in written.values() for line in lines) == sorted(LINES)
    assert {name: len(lines) for name, lines in written.items()} == counts


def test_the_sides_are_those_a_training_would_choose(tmp_path: Path) -> None:
    file = data_file(tmp_path / "a.jsonl", b"\n".join(LINES))
    direct = load_splits(DataRecipe.model_validate({"path": "a.jsonl"}), base=tmp_path)
    divide_file(file, tmp_path / "out", val_split=0.1, test_split=0.1)
    divided = load_splits(DataRecipe.model_validate({"path": "out"}), base=tmp_path)
    assert divided.counts == direct.counts
    assert [example.line for example in direct.valid] == [
        LINES.index(line) + 1 for line in (tmp_path / "out" / "valid.jsonl").read_bytes().split(b"\n")[:-1]
    ]


def test_a_training_and_its_files_keep_a_row_of_every_label(tmp_path: Path) -> None:
    rows = [{"text": f"row {number}", "label": "abc"[number % 3]} for number in range(12)]
    file = data_file(tmp_path / "a.jsonl", b"\n".join(json.dumps(row).encode() for row in rows))
    data = {"path": "a.jsonl", "val_split": 0.95, "test_split": 0.0}
    direct = load_splits(DataRecipe.model_validate(data), base=tmp_path, task="classify")
    assert {example.label for example in direct.train if isinstance(example, Labelled)} == {"a", "b", "c"}
    assert divide_file(file, tmp_path / "out", val_split=0.95, test_split=0.0) == {
        "train.jsonl": direct.counts["train"],
        "valid.jsonl": direct.counts["valid"],
    }


def test_a_seed_draws_other_sides(tmp_path: Path) -> None:
    file = data_file(tmp_path / "a.jsonl", b"\n".join(LINES))
    for seed in (None, 1, 2):
        divide_file(file, tmp_path / str(seed), val_split=0.2, test_split=0.0, seed=seed)
    assert len({(tmp_path / str(seed) / "valid.jsonl").read_bytes() for seed in (None, 1, 2)}) == 3


def test_rows_of_other_files_become_jsonl_even_from_one_line(tmp_path: Path) -> None:
    rows = [{"text": f"caf\u00e9 {number}"} for number in range(40)]
    file = data_file(tmp_path / "a.json", json.dumps(rows).encode())
    counts = divide_file(file, tmp_path / "out", val_split=0.2, test_split=0.0)
    written = [
        json.loads(line) for name in counts for line in (tmp_path / "out" / name).read_text("utf-8").splitlines()
    ]
    assert sorted(row["text"] for row in written) == sorted(row["text"] for row in rows)
    assert sum(counts.values()) == 40


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    file = data_file(tmp_path / "a.jsonl", b"\n".join(LINES))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "test.jsonl").write_text("mine")
    with pytest.raises(DataError, match=r"test\.jsonl exists already"):
        divide_file(file, tmp_path / "out", val_split=0.1, test_split=0.1)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["test.jsonl"]
    assert (tmp_path / "out" / "test.jsonl").read_text() == "mine"


def test_malformed_rows_stop_it_before_anything_is_written(tmp_path: Path) -> None:
    file = data_file(tmp_path / "a.jsonl", b'{"text": "a"}\n{bad\n{"text": 3}\n')
    with pytest.raises(DataError, match=r"a\.jsonl: 2 problems in the data") as caught:
        divide_file(file, tmp_path / "out", val_split=0.1, test_split=0.1)
    assert [problem.where for problem in caught.value.problems] == ["a.jsonl:2", "a.jsonl:3"]
    assert not (tmp_path / "out").exists()
