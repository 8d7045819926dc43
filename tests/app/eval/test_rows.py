"""Which rows are evaluated, what belongs to each, and what is refused."""

import json
from pathlib import Path

import pytest
from eval_runs import write_rows

from mlx_finetune.app.eval.drawn import draw_shots, smallest
from mlx_finetune.app.eval.rows import choose_rows
from mlx_finetune.dataset.corpus import load_splits
from mlx_finetune.dataset.formats import Labelled, Text
from mlx_finetune.dataset.split import content_key
from mlx_finetune.errors import DataError
from mlx_finetune.recipe.data import DataRecipe


def choose(folder: Path, *, max_rows: int = 200, category: str | None = None, shots: int = 0, given=None, **data):
    recipe = DataRecipe.model_validate({"path": "rows.jsonl"} | data)
    return choose_rows(
        recipe,
        base=folder,
        training_base=folder,
        given=given,
        max_rows=max_rows,
        category=category,
        shots=shots,
        seed=3,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_rows(tmp_path / "rows.jsonl")
    return tmp_path


def test_the_test_split_of_the_run_is_taken_and_nothing_of_the_others(folder: Path) -> None:
    found = choose(folder)
    splits = load_splits(DataRecipe.model_validate({"path": "rows.jsonl"}), base=folder)
    assert found.split == "test"
    assert [row.where for row in found.rows] == [f"{one.source}:{one.line}" for one in splits.test]
    assert found.sha256 == splits.content_hash
    row = found.rows[0]
    assert row.question.startswith("What colour is box ")
    assert row.reference in ("red", "blue", "green")


def test_without_test_rows_the_validation_rows_are_and_without_those_nothing(folder: Path) -> None:
    assert choose(folder, test_split=0.0).split == "validation"
    with pytest.raises(DataError, match="nothing is held out") as caught:
        choose(folder, test_split=0.0, val_split=0.0)
    assert "--data" in caught.value.hint


@pytest.mark.parametrize(
    ("named", "split", "source"),
    [
        ({"valid": "valid.jsonl"}, "validation", "valid.jsonl"),
        ({"valid": "valid.jsonl", "test": "test.jsonl"}, "test", "test.jsonl"),
        ({}, "test", "rows.jsonl"),  # a share of the training rows
    ],
)
def test_the_file_that_is_named_is_the_one_the_rows_are_from(folder: Path, named, split: str, source: str) -> None:
    for file in named.values():
        write_rows(folder / file, 9)
    found = choose(folder, path=None, train="rows.jsonl", **named)
    assert (found.split, found.source) == (split, source)
    assert all(row.where.startswith(f"{source}:") for row in found.rows)
    sources = [{"path": "rows.jsonl"}, {"path": "other.jsonl"}]
    write_rows(folder / "other.jsonl", 7)
    found = choose(folder, path=None, sources=sources, **named)
    assert found.source == (source if named else "rows.jsonl, other.jsonl")


def test_data_that_is_given_is_taken_whole(folder: Path) -> None:
    write_rows(folder / "mine.jsonl", 7)
    found = choose(folder, given="mine.jsonl")
    assert (found.split, len(found.rows), found.source) == ("all", 7, "mine.jsonl")


def test_of_too_many_rows_always_the_same_ones_are_taken_whatever_their_order(folder: Path) -> None:
    rows = load_splits(DataRecipe.model_validate({"path": "rows.jsonl"}), base=folder).train
    chosen, _ = smallest(rows, 9)
    again, _ = smallest(list(reversed(rows)), 9)
    assert [row.line for row in chosen] == sorted(row.line for row in again)
    assert {row.line for row in smallest(rows, 5)[0]} <= {row.line for row in chosen}
    assert smallest(rows, 1000) == (list(rows), 0)


@pytest.mark.parametrize("count", [1, 4, 7, 20])
def test_copies_take_no_place_among_the_rows_and_are_counted(count: int) -> None:
    rows = [Labelled(f"text  {number % 7}", "good", "rows", number) for number in range(20)]
    chosen, num_copies = smallest(rows, count)
    assert chosen == [row for row in rows[:7] if row in chosen]
    assert len(chosen) == min(count, 7)
    taken = {content_key(row) for row in chosen}
    assert num_copies == sum(content_key(row) in taken for row in rows) - len(chosen)
    stretches = [Text("ha", "text", 1, continues=True), Text("ha", "text", 1, follows=True), Text("ha", "text", 9)]
    assert smallest([*stretches, stretches[-1]], 9) == (stretches, 1)


def test_a_row_that_stands_there_several_times_is_measured_once_and_said_to_be(folder: Path) -> None:
    write_rows(folder / "mine.jsonl", 7)
    lines = (folder / "mine.jsonl").read_text().splitlines(keepends=True)
    (folder / "mine.jsonl").write_text("".join([*lines, lines[0]]))
    found = choose(folder, given="mine.jsonl")
    assert (found.described, found.num_copies) == ("7 different of 8 rows", 1)
    assert [row.where for row in found.rows] == [f"mine.jsonl:{line}" for line in range(1, 8)]
    said = [(problem.where, problem.message) for problem in found.notices]
    assert said == [("mine.jsonl", "1 further row is a copy of one that is measured: each counts once")]
    named = choose(folder, path=None, train="rows.jsonl", valid="mine.jsonl")
    assert named.notices[-1].message.startswith("1 further validation row is a copy")


def test_a_category_is_any_column_of_the_row(folder: Path) -> None:
    found = choose(folder, category="topic")
    for row in found.rows:
        line = json.loads((folder / "rows.jsonl").read_text().splitlines()[row.example.line - 1])
        assert row.category == line["topic"]


def test_categories_of_rows_on_one_line_are_told_apart(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "completion": f"a{n}", "kind": ["x", "y"]} for n in range(4)]
    rows[1]["kind"] = "z"
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    found = choose(tmp_path, path="rows.json", given="rows.json", category="kind")
    assert [row.category for row in found.rows] == ["x, y", "z", "x, y", "x, y"]


def test_a_missing_column_and_too_many_categories_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:\d+: the row has no `kind`"):
        choose(folder, category="kind")
    write_rows(folder / "many.jsonl", 70)
    with pytest.raises(DataError, match="has 70 different values"):
        choose(folder, given="many.jsonl", category="note")


def test_examples_are_training_rows_drawn_by_the_seed_alone(folder: Path) -> None:
    train = load_splits(DataRecipe.model_validate({"path": "rows.jsonl"}), base=folder).train
    found = choose(folder, shots=3)
    assert found.shots == draw_shots(train, 3, 3) == choose(folder, shots=3, max_rows=1).shots
    assert all(shot in train for shot in found.shots)
    assert draw_shots(train, 3, 4) != found.shots
    write_rows(folder / "mine.jsonl", 7)
    assert choose(folder, shots=3, given="mine.jsonl").shots == found.shots
    with pytest.raises(DataError, match="there are 2 training rows"):
        draw_shots(train[:2], 3, 0)
