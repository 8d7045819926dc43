"""Labels, marks and preferences that contradict one another, are all of one kind, or judge nothing: said by a check and
by a training alike."""

import json
from pathlib import Path

import pytest

from mlx_finetune.dataset.check import check_files
from mlx_finetune.dataset.corpus import Splits, load_splits
from mlx_finetune.dataset.formats import Preference
from mlx_finetune.dataset.sources.locate import locate
from mlx_finetune.recipe.data import DataRecipe


def said(folder: Path, task: str, *rows: object) -> list[str]:
    """What a check says of the rows, which a training says too."""
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = check_files([locate("a.jsonl", base=folder)], task=task)
    assert not report.errors
    assert report.num_warnings == len(report.warnings)
    assert splits_of(folder, task).problems == report.warnings
    return [f"{problem.where}: {problem.message}" for problem in report.warnings]


def splits_of(folder: Path, task: str, *, is_given: bool = False, **keys: object) -> Splits:
    data = DataRecipe.model_validate({"path": "a.jsonl", "val_split": 0.0, "test_split": 0.0} | keys)
    return load_splits(data, base=folder, task=task, is_given=is_given)


def pair(chosen: str, rejected: str, prompt: str = "q") -> dict[str, object]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def marked(answer: str, label: bool, prompt: str = "q") -> dict[str, object]:
    return {"prompt": prompt, "completion": answer, "label": label}


@pytest.mark.parametrize("task", ["dpo", "simpo", "reward"])
def test_two_answers_are_not_better_than_each_other(tmp_path: Path, task: str) -> None:
    rows = [pair("a", "b"), pair("b", "a", "other"), pair("b", "c"), pair("b ", "a")]
    assert said(tmp_path, task, *rows) == ['a.jsonl:4: the same answers stand at "a.jsonl:1" the other way round']


@pytest.mark.parametrize("task", ["kto", "verifier"])
def test_an_answer_is_not_good_and_bad(tmp_path: Path, task: str) -> None:
    rows = [marked("a", True), marked("b", False), marked("b", True, "other"), marked("a", False)]
    assert said(tmp_path, task, *rows) == ['a.jsonl:4: the answer stands at "a.jsonl:1" with the other label']


def test_a_text_has_not_two_labels(tmp_path: Path) -> None:
    rows = [{"text": text, "label": label} for text, label in (("a", "x"), ("b", "y"), ("a", "y"))]
    assert said(tmp_path, "classify", *rows) == ['a.jsonl:3: the text stands at "a.jsonl:1" with another label']


@pytest.mark.parametrize("task", ["kto", "verifier"])
@pytest.mark.parametrize(("label", "words"), [(True, ("good", "bad")), (False, ("bad", "good"))])
def test_answers_of_one_kind_alone_have_nothing_to_be_compared_with(
    tmp_path: Path, task: str, label: bool, words: tuple[str, str]
) -> None:
    rows = [marked(f"a{number}", label) for number in range(9)]
    expected = f"a.jsonl: every training row is marked {words[0]}, so nothing shows what a {words[1]} answer is"
    assert said(tmp_path, task, *rows) == [expected]
    for other in "bcdefghijk":  # none of them is held out
        assert said(tmp_path, task, *rows, marked(other, not label)) == []
        trained = splits_of(tmp_path, task, val_split=0.3, test_split=0.3).train
        assert {isinstance(row, Preference) and row.chosen is None for row in trained} == {True, False}


def test_empty_answers_are_warned_of_by_what_they_teach(tmp_path: Path) -> None:
    assert said(tmp_path, "dpo", pair("a", " "), pair("", "b")) == [
        "a.jsonl:1: the rejected answer is empty",
        "a.jsonl:2: the chosen answer is empty",
    ]
    (warning,) = check_files([locate("a.jsonl", base=tmp_path)]).warnings[:1]
    assert warning.hint == "the model learns not to end at once; is that meant?"
    assert said(tmp_path, "kto", marked("", True), marked("b", False), marked("c", True)) == [
        "a.jsonl:1: the answer is empty"
    ]
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    assert said(tmp_path, "dpo", {"prompt": "q", "chosen": [call], "rejected": "b"}) == []


def test_rows_named_on_a_command_line_are_not_the_training_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(marked("a", True)) + "\n")
    assert splits_of(tmp_path, "kto").problems
    assert not splits_of(tmp_path, "kto", is_given=True).problems
