"""One answer beside its reference, task by task."""

import pytest

from mlx_finetune.app.eval.score import AnswerScorer, Values, is_json_object, json_values, label_values
from mlx_finetune.scoring.json_schema import Validator

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "string"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


def values(task: str, reference: str, answer: str, labels: tuple[str, ...] = ()) -> Values:
    return AnswerScorer([task], labels, None).values(reference, answer)


@pytest.mark.parametrize(
    ("task", "reference", "answer", "expected"),
    [
        ("exact_match", "The Red Box.", "red box", {"exact_match": (1.0,)}),
        ("token_f1", "a b c", "b c d e", {"token_f1": (4 / 6,)}),
        ("number", "So #### 1,200", "It is 1200.", {"number": (1.0,), "number_found": (1.0,)}),
        ("number", "#### 3", "none", {"number": (0.0,), "number_found": (0.0,)}),
        ("regex:^Aye[.]", "", "Aye. Yes", {"regex:^Aye[.]": (1.0,)}),
        ("contains:log", "", "Log:", {"contains:log": (0.0,)}),
        ("max_length:3", "", "four", {"max_length:3": (0.0,)}),
        ("loss", "a", "a", {}),
    ],
)
def test_a_task_says_one_thing(task: str, reference: str, answer: str, expected: Values) -> None:
    assert values(task, reference, answer) == {name: pytest.approx(value) for name, value in expected.items()}


def test_rouge_gives_its_four_figures() -> None:
    assert set(values("rouge", "the cat sat", "the cat")) == {"rouge1", "rouge2", "rougeL", "rougeLsum"}


def test_a_class_is_right_where_it_is_named_and_counted_by_its_number() -> None:
    labels = ("bad", "good")
    assert values("labels", "good", "It is good.", labels) == {
        "accuracy_generated": (1.0,),
        "macro_f1_generated": (1, 1),
    }
    assert values("labels", "bad", "who knows", labels)["macro_f1_generated"] == (0, -1)
    assert label_values(labels, "bad", "good", generated=False) == {"accuracy": (0.0,), "macro_f1": (0, 1)}


def test_json_is_the_first_object_as_it_stands_and_nothing_is_mended() -> None:
    validator, reference = Validator(SCHEMA), '{"a": 1, "b": "x"}'
    good = json_values(reference, 'Sure: ```json\n{"a": 1, "b": "x"}\n``` {"a": 2}', validator)
    assert good == {"json_parses": (1.0,), "json_valid": (1.0,), "json_fields": (1.0,)}
    half = json_values(reference, '{"a": 1, "b": 2}', validator)
    assert half == {"json_parses": (1.0,), "json_valid": (0.0,), "json_fields": (0.5,)}
    cut = json_values(reference, '{"a": 1, "b": "x"', validator)
    assert cut == {"json_parses": (0.0,), "json_valid": (0.0,), "json_fields": (0.0,)}
    assert json_values("no object", "{}", None) == {"json_parses": (1.0,)}
    assert is_json_object('{"a": 1}')
    assert not is_json_object("[1]")
