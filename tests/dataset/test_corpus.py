"""A recipe's data: all rows or every problem, split as asked."""

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from mlx_finetune.dataset.corpus import find_format, load_splits
from mlx_finetune.dataset.formats import Example, Instruction, Text
from mlx_finetune.errors import DataError, further_problems
from mlx_finetune.recipe.data import DataRecipe
from mlx_finetune.recipe.schema import Recipe

TURN, REPLY = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}


def recipe(**fields: object) -> DataRecipe:
    return DataRecipe.model_validate(fields)


def write(path: Path, *texts: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def texts(examples: Sequence[Example]) -> set[str]:
    return {example.text for example in examples if isinstance(example, Text)}


def test_one_file_is_split_80_10_10_and_no_row_is_lost(tmp_path: Path) -> None:
    rows = [f"row {number}" for number in range(1000)]
    write(tmp_path / "a.jsonl", *rows)
    splits = load_splits(recipe(path="a.jsonl"), base=tmp_path)
    assert sum(splits.counts.values()) == 1000
    assert splits.counts["train"] == pytest.approx(800, abs=50)
    assert texts([*splits.train, *splits.valid, *splits.test]) == set(rows)
    assert (splits.format, splits.problems) == ("text", ())


def test_given_files_win_over_the_shares(tmp_path: Path) -> None:
    for name in ("train", "valid", "test"):
        write(tmp_path / "d" / f"{name}.jsonl", *(f"{name} {number}" for number in range(20)))
    splits = load_splits(recipe(path="d"), base=tmp_path)
    assert splits.counts == {"train": 20, "valid": 20, "test": 20}
    assert texts(splits.valid) == {f"valid {number}" for number in range(20)}
    assert [file.name for file in splits.files] == ["train.jsonl", "valid.jsonl", "test.jsonl"]


def test_files_named_one_by_one(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", *(f"a {number}" for number in range(50)))
    write(tmp_path / "b.jsonl", "b")
    splits = load_splits(recipe(train="a.jsonl", valid="b.jsonl"), base=tmp_path)
    assert splits.counts == {"train": 50, "valid": 1, "test": 0}


def test_rows_of_the_test_file_are_nobody_elses(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", *(f"a {number}" for number in range(50)))
    write(tmp_path / "t.jsonl", "t 1", "t 2")
    splits = load_splits(recipe(train="a.jsonl", test="t.jsonl"), base=tmp_path)
    assert texts(splits.test) == {"t 1", "t 2"}
    assert texts([*splits.train, *splits.valid]) == {f"a {number}" for number in range(50)}
    without = load_splits(recipe(train="a.jsonl"), base=tmp_path)
    assert without.counts["test"] > 0
    assert texts(without.test).isdisjoint(texts(splits.test))


def test_appending_and_reordering_moves_no_row(tmp_path: Path) -> None:
    rows = [f"row {number}" for number in range(300)]
    write(tmp_path / "a.jsonl", *rows)
    before = load_splits(recipe(path="a.jsonl"), base=tmp_path)
    random.Random(0).shuffle(rows)
    write(tmp_path / "a.jsonl", *rows, *(f"new {number}" for number in range(100)))
    after = load_splits(recipe(path="a.jsonl"), base=tmp_path)
    assert texts(before.valid) <= texts(after.valid)
    assert texts(before.test) <= texts(after.test)
    assert texts(before.train) <= texts(after.train)


def test_repeated_rows_never_stand_on_two_sides(tmp_path: Path) -> None:
    rows = [f"row  {number}" for number in range(200)] + [f"row {number} " for number in range(200)]
    write(tmp_path / "a.jsonl", *rows)
    splits = load_splits(recipe(path="a.jsonl", val_split=0.3, test_split=0.3), base=tmp_path)
    sides = [
        {" ".join(text.split()) for text in texts(list(side))} for side in (splits.train, splits.valid, splits.test)
    ]
    assert sum(map(len, sides)) == 200
    assert sum(splits.counts.values()) == 400


def test_a_tiny_set_keeps_training_rows_and_says_what_is_missing(tmp_path: Path) -> None:
    counts = {}
    for number in range(1, 5):
        write(tmp_path / "a.jsonl", *map(str, range(number)))
        splits = load_splits(recipe(path="a.jsonl"), base=tmp_path)
        counts[number] = (*splits.counts.values(), len(splits.problems))
    assert counts == {1: (1, 0, 0, 1), 2: (1, 1, 0, 0), 3: (1, 1, 1, 0), 4: (2, 1, 1, 0)}


def test_sources_bring_their_weights_for_training_only(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", *(f"a {number}" for number in range(50)))
    (tmp_path / "b.csv").write_text("prompt,completion\n" + "".join(f"p{n},c{n}\n" for n in range(50)))
    sources = [{"path": "a.jsonl", "weight": 0.5}, {"path": "b.csv"}]
    splits = load_splits(recipe(sources=sources, val_split=0.0, test_split=0.0), base=tmp_path)
    assert {(type(example).__name__, example.weight) for example in splits.train} == {
        ("Text", 0.5),
        ("Instruction", 1.0),
    }
    assert splits.counts["train"] == 100


def test_columns_reach_the_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("Customer,Agent\nhow much?,ten euros\n")
    columns = {"prompt": "Customer", "completion": "Agent"}
    splits = load_splits(recipe(path="a.csv", columns=columns), base=tmp_path)
    assert splits.train == (Instruction("how much?", "", "ten euros", "a.csv", 2),)


def test_the_content_hash_is_that_of_the_bytes_of_all_files_in_order(tmp_path: Path) -> None:
    paths = [write(tmp_path / "d" / f"{name}.jsonl", name) for name in ("train", "valid")]
    splits = load_splits(recipe(path="d", test_split=0.0), base=tmp_path)
    assert splits.content_hash == hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def test_malformed_rows_stop_the_training_and_all_kinds_are_listed(tmp_path: Path) -> None:
    lines = ['{"text": "a"}', "{bad", '{"text": null}', '{"prompt": "p", "completion": "c"}', '{"x": 1}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError) as caught:
        load_splits(recipe(path="a.jsonl"), base=tmp_path)
    assert caught.value.message == "a.jsonl: 4 problems in the data"
    assert caught.value.hint == "mlxft data check a.jsonl"
    assert [problem.where for problem in caught.value.problems] == ["a.jsonl:2", "a.jsonl:3", "a.jsonl:5", "a.jsonl:4"]


def test_many_problems_of_one_kind_are_counted_not_listed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": 1}\n' * 300 + '{"text": "a"}\n')
    with pytest.raises(DataError) as caught:
        load_splits(recipe(path="a.jsonl"), base=tmp_path)
    assert caught.value.message == "a.jsonl: 300 problems in the data"
    assert len(caught.value.problems) == 5
    assert caught.value.problems[-1].message == "`text` must be a text; this is 1 (and 295 more like it)"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "q", "chosen": "a", "rejected": "b"}', "the rows are preference pairs (chosen and rejected)"),
        ('{"sentence": "q", "label": 1}', "the rows are texts with labels, which are for a classifier"),
        ('{"prompt": "q", "completion": "a", "label": true}', "the rows are answers marked good or bad"),
    ],
)
def test_formats_of_other_tasks_are_recognised_and_refused(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(line)
    with pytest.raises(DataError) as caught:
        load_splits(recipe(path="a.jsonl"), base=tmp_path)
    (problem,) = caught.value.problems
    assert problem.message.startswith(message)


@pytest.mark.parametrize(
    ("line", "columns"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": "prompt", "completion": "chosen"}),
        (
            {"conversations": [TURN], "chosen": REPLY, "rejected": REPLY},
            {"prompt": "conversations", "completion": "chosen"},
        ),
        ({"chosen": [TURN, REPLY], "rejected": [TURN, REPLY]}, {"messages": "chosen"}),
        ({"sentence": "q", "label": "1"}, {"prompt": "sentence", "completion": "label"}),
    ],
)
def test_the_way_out_of_another_tasks_rows_names_their_columns_and_works(
    tmp_path: Path, line: dict[str, object], columns: dict[str, str]
) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({**line, "weight": number}) + "\n" for number in (1, 2)))
    with pytest.raises(DataError) as caught:
        load_splits(recipe(path="a.jsonl"), base=tmp_path)
    written = ", ".join(f'{name} = "{column}"' for name, column in columns.items())
    assert f"[data.columns] {written}" in caught.value.problems[0].hint
    assert load_splits(recipe(path="a.jsonl", columns=columns, val_split=0.0), base=tmp_path).train


@pytest.mark.parametrize("task", ["sft", "pretrain"])
def test_the_way_to_learn_only_the_texts_of_rows_with_labels_works(tmp_path: Path, task: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"sentence": "q", "label": 1}\n{"sentence": "r", "label": 0}\n')
    with pytest.raises(DataError) as caught:
        load_splits(recipe(path="a.jsonl"), base=tmp_path, task=task)
    way = 'only the texts: [data.columns] text = "sentence"'
    assert way in caught.value.problems[0].hint
    assert caught.value.problems[0].hint.startswith(way) == (task == "pretrain")
    whole = {"model": "m", "output_dir": "x", "task": task}
    whole |= {"data": {"path": "a.jsonl", "columns": {"text": "sentence"}}}
    data = Recipe.model_validate(whole).data
    assert load_splits(data, base=tmp_path, task=task).format == "text"
    assert find_format(data, tmp_path) == "text"
    classified = Recipe.model_validate(whole | {"task": "classify", "lora": {}}).data
    assert load_splits(classified, base=tmp_path, task="classify").format == "labels"


def test_what_rows_lack_is_said_by_what_the_task_learns_from(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "q"}\n{"prompt": "p"}\n')
    (tmp_path / "t.jsonl").write_text('{"text": "q"}\n')
    said = {
        ("a.jsonl", "sft"): "a.jsonl:1: one problem in the data: no known format has these columns: `prompt`: "
        "a question without an answer (and 1 more like it)",
        ("a.jsonl", "classify"): "a.jsonl:1: one problem in the data: no known format has these columns: `prompt`: "
        "a text without a label (and 1 more like it)",
        ("t.jsonl", "classify"): "t.jsonl: one problem in the data: the rows are texts without a label; "
        "task classify learns from texts with labels",
    }
    for (name, task), message in said.items():
        with pytest.raises(DataError) as caught:
            load_splits(recipe(path=name), base=tmp_path, task=task)
        assert caught.value.message == message


def test_training_rows_in_a_given_validation_file_are_warned_of(tmp_path: Path) -> None:
    write(tmp_path / "d" / "train.jsonl", "a", "b", "c")
    write(tmp_path / "d" / "valid.jsonl", "x", "b ")
    splits = load_splits(recipe(path="d", test_split=0.0), base=tmp_path)
    (problem,) = splits.problems
    assert problem.where == "d/valid.jsonl:2"
    assert problem.message == "1 of 2 validation rows are training rows too: their loss says little"


def test_an_empty_validation_file_is_an_error_like_an_empty_training_file(tmp_path: Path) -> None:
    write(tmp_path / "d" / "train.jsonl", "a")
    write(tmp_path / "d" / "valid.jsonl")
    with pytest.raises(DataError) as caught:
        load_splits(recipe(path="d"), base=tmp_path)
    assert [(problem.where, problem.message) for problem in caught.value.problems] == [
        ("d/valid.jsonl", "the file is empty")
    ]


def test_one_problem_is_said_at_once_and_the_command_can_be_copied(tmp_path: Path) -> None:
    path = tmp_path / "my data" / "$(rows).jsonl"
    path.parent.mkdir()
    path.write_text("{bad\n")
    with pytest.raises(DataError) as caught:
        load_splits(recipe(path="my data/$(rows).jsonl"), base=tmp_path)
    assert caught.value.message.startswith("my data/$(rows).jsonl:1: one problem in the data: ")
    path.write_text('{bad\n{"text": null}\n')
    with pytest.raises(DataError) as caught:
        load_splits(recipe(path="my data/$(rows).jsonl"), base=tmp_path)
    assert caught.value.hint == "mlxft data check 'my data/$(rows).jsonl'"


@pytest.mark.parametrize(
    ("rows", "task", "said", "hint"),
    [
        ("review,stars\nfine,pos\n", "classify", "no known format", 'text = "review", label = "stars"'),
        ("prompt,completion,label\np,c,true\n", "dpo", "answers marked good or bad", 'task = "kto"'),
        ("text\nfine\n", "classify", "the rows are text", 'label = "COLUMN"'),
        ("text\nfine\n", "grpo", "texts without a question and its answer", 'completion = "COLUMN"'),
        ("text,label\nfine,pos\nbad,\nawful, \n", "classify", "2 problems", "data check RECIPE"),
        ("text,label\nfine,pos\nbad,\n", "classify", "`label` is empty", "write the row's label"),
    ],
)
def test_rows_that_a_task_cannot_learn_from_are_said_with_the_way_out(
    tmp_path: Path, rows: str, task: str, said: str, hint: str
) -> None:
    (tmp_path / "a.csv").write_text(rows)
    with pytest.raises(DataError) as caught:
        load_splits(recipe(path="a.csv"), base=tmp_path, task=task)
    assert said in caught.value.message
    assert hint in caught.value.hint
    if said != "2 problems":
        assert further_problems(caught.value) == ()


@pytest.mark.parametrize(
    ("row", "task", "hint"),
    [
        ('{"question": "a"}', "sft", 'rows are {"messages": [...]}, {"prompt": ..., "completion": ...}'),
        ('{"strange": "a", "other": "b"}', "classify", 'rows are {"text": ..., "label": ...}: rename the columns'),
        ('{"prompt": "a", "completion": "b"}', "classify", 'rows are {"text": ..., "label": ...}: rename the columns'),
        ('{"promt": "a", "completion": "b"}', "sft", 'did you mean "prompt" by "promt"?'),
        ('{"text": 1, "label": "a"}\n{"text": 2, "label": "b"}', "classify", "mlxft data check 'my rows.jsonl'"),
    ],
)
def test_rows_of_a_file_named_on_a_command_line_are_mended_without_a_recipe(
    tmp_path: Path, row: str, task: str, hint: str
) -> None:
    (tmp_path / "my rows.jsonl").write_text(f"{row}\n")
    data = DataRecipe.model_validate({"path": "my rows.jsonl", "val_split": 0, "test_split": 0})
    with pytest.raises(DataError) as caught:
        load_splits(data, base=tmp_path, task=task, is_given=True)
    assert caught.value.hint.startswith(hint)
    assert not any("[data" in problem.hint for problem in caught.value.problems)
