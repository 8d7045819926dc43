import pytest

from mlx_finetune.scoring.rules import choose_rule, found, is_right


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("17 + 5 = 22", "22"),
        ("12.0", "12"),
        ("$1,200.", "1200"),
        ("-0", "0"),
        ("2.5e3", "2500"),
        ("0.50", "0.5"),
        ("100", "100"),
        ("3/4", None),
        ("I do not know", None),
    ],
)
def test_a_number_is_said_in_one_form(answer: str, says: str | None):
    assert found("number", answer) == says


@pytest.mark.parametrize(
    ("rule", "reference", "answer", "right"),
    [
        ("number", "5 + 7\n#### 12", "it is 12.0", True),
        ("number", "5 + 7\n#### 12", "it is 13", False),
        ("number", "12", "twelve", False),
        ("number", "none", "none", False),
        ("text", "The Eiffel Tower", "eiffel tower.", True),
        ("text", "Eiffel Tower", "in the Eiffel Tower", False),
        ("text", "", "", False),
        ("exact", "Yes", " Yes\n", True),
        ("exact", "Yes", "yes", False),
        ("exact", "caf\u00e9", "cafe\u0301", True),
    ],
)
def test_an_answer_is_right_by_its_rule(rule, reference: str, answer: str, right: bool):
    assert is_right(rule, reference, answer) is right


@pytest.mark.parametrize(
    ("references", "rule"),
    [
        (["#### 3", "so\n#### $1,200"], "number"),
        (["119", "-4", "$12.50", "50%"], "number"),
        (["119", "Paris"], "text"),
        (["in 1990", "1991"], "text"),
        (["3/4"], "text"),
        ([], "text"),
    ],
)
def test_the_rule_is_number_only_where_every_reference_is_one(references: list[str], rule: str):
    assert choose_rule(references) == rule
