"""Copies of values that are safe to print, and lists of bounded length."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_finetune.dataset.problems import MAX_KINDS, Findings, has_secret, show
from mlx_finetune.errors import Problem


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain", '"plain"'),
        ("x" * 100, '"' + "x" * 60 + '..."'),
        ('say "hi"\n\tback\\slash', '"say \\"hi\\"\\n\\tback\\\\slash"'),
        ("\x1b[31mred\x07", '"\\u001b[31mred\\u0007"'),
        ("right\u202eleft", '"right\\u202eleft"'),
        (None, "null"),
        (True, "true"),
        (1.5, "1.5"),
        ([1, 2], "a list of 2"),
        ({"a": 1}, "an object with `a`"),
        ({}, "an empty object"),
        ("token hf_" + "a" * 34, '"... (looks like a key, not shown)"'),
    ],
)
def test_values_are_shown_short_and_printable(value: object, shown: str) -> None:
    assert show(value) == shown


@given(st.text(max_size=100))
def test_no_text_puts_a_control_character_into_a_message(text: str) -> None:
    assert show(text).isprintable()
    assert len(show(text)) <= 10 * 60 + 5


@pytest.mark.parametrize(
    "text", ["ask-me-anything about this and that and more", "task-list-for-the-whole-week-of-mine", "xox"]
)
def test_ordinary_words_are_no_secrets(text: str) -> None:
    assert not has_secret(text)


def test_kinds_differ_by_words_not_by_numbers_or_quoted_values() -> None:
    findings = Findings(shown_per_kind=2)
    for line in range(10):
        findings(Problem(f"a:{line}", f'turn {line} has the role "{"x" * line}"', "mend it"))
    findings(Problem("a:11", "another"))
    assert findings.count == 11
    assert [(problem.where, problem.hint) for problem in findings.problems()] == [
        ("a:0", ""),
        ("a:1", "mend it"),
        ("a:11", ""),
    ]
    assert findings.problems()[1].message == 'turn 1 has the role "x" (and 8 more like it)'


def test_any_number_of_kinds_takes_bounded_memory() -> None:
    findings = Findings()
    for number in range(5000):
        findings(Problem(f"a:{number}", "kind " + "".join(chr(ord("a") + int(digit)) for digit in str(number))))
    assert findings.count == 5000
    assert len(findings.problems()) <= MAX_KINDS + 5
