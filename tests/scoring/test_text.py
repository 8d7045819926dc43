import re
import string
from collections import Counter

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mlx_finetune.errors import MlxftError, UsageError
from mlx_finetune.scoring import text as module
from mlx_finetune.scoring.text import (
    compile_regex,
    contains,
    exact_match,
    is_within,
    matches,
    normalise,
    token_f1,
    words,
)

#: The machine may be busy: a test is never judged by its time.
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

ASCII = st.text(st.characters(max_codepoint=127, min_codepoint=9))
COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def squad_normalise(text: str) -> str:
    """SQuAD's, step by step."""
    lower = text.lower()
    bare = "".join(letter for letter in lower if letter not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def squad_f1(expected: str, got: str) -> float:
    """SQuAD's, by precision and recall."""
    wanted, found = squad_normalise(expected).split(), squad_normalise(got).split()
    if not wanted or not found:
        return float(wanted == found)
    same = sum((Counter(wanted) & Counter(found)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(found), same / len(wanted)
    return 2 * precision * recall / (precision + recall)


@CALM
@given(ASCII)
@example("The  U.S.A., an answer!\n")
def test_normalisation_of_ascii_is_that_of_squad(text: str):
    assert normalise(text) == squad_normalise(text)


@CALM
@given(ASCII, ASCII)
@example("a cat sat", "the cat, the cat")
def test_token_f1_of_ascii_is_that_of_squad(expected: str, got: str):
    assert token_f1(expected, got) == pytest.approx(squad_f1(expected, got))


@CALM
@given(st.text())
def test_normalising_twice_changes_nothing(text: str):
    assert normalise(normalise(text)) == normalise(text)


@CALM
@given(st.text(), st.text())
def test_token_f1_is_symmetric_and_one_for_the_same_text(one: str, other: str):
    assert token_f1(one, other) == token_f1(other, one)
    assert token_f1(one, one) == 1
    assert 0 <= token_f1(one, other) <= 1


@pytest.mark.parametrize(
    ("expected", "got", "is_same"),
    [
        ("The Beatles", "beatles.", True),
        ("42", "42.0", False),
        (COMPOSED, DECOMPOSED, True),
        ("\u201cParis\u201d", '"Paris"', True),
        ("Paris \u2014 France", "paris france", True),
        ("x\u00b2", "x2", False),
        ("stra\u00dfe", "strasse", False),
        ("", "", True),
        ("the", "", True),
        ("a", "b", False),
    ],
)
def test_exact_match_ignores_case_punctuation_articles_and_the_form_of_accents(expected: str, got: str, is_same: bool):
    assert exact_match(expected, got) is is_same


def test_token_f1_by_hand():
    assert token_f1("a cat sat here", "the cat ran") == pytest.approx(2 * 1 / (3 + 2))
    assert token_f1("go go go", "go") == pytest.approx(2 / 4)
    assert token_f1("", "word") == 0
    assert token_f1("the", "an") == 1  # neither has a word


def test_chinese_is_compared_character_by_character():
    assert words("\u5317\u4eac ok") == ["\u5317", "\u4eac", "ok"]
    assert token_f1("\u5317\u4eac\u5e02", "\u5317\u4eac") == pytest.approx(4 / 5)


def test_contains_is_exact_apart_from_the_form_of_accents():
    assert contains(f"a {COMPOSED}!", DECOMPOSED)
    assert not contains("Paris", "paris")
    assert contains("anything", "")


def test_length_counts_composed_characters():
    assert is_within(DECOMPOSED, 4)
    assert not is_within("12345", 4)


# Regular expressions


def test_a_regex_matches_anywhere_and_sees_composed_text():
    assert matches(r"\d{3}", "room 101")
    assert not matches(r"^\d{3}$", "room 101")
    assert matches("caf\u00e9$", DECOMPOSED)
    assert matches(r"(?i)PARIS", "paris")


@pytest.mark.parametrize(
    "source", ["(", "a**", "[", "(?P<x>a)(?P<x", "a{5,2}", r"\p{Nope}", "(" * 900 + ")" * 900, "(?a)(?u)x"]
)
def test_an_invalid_regex_is_one_clear_error(source: str):
    with pytest.raises(UsageError, match="is not valid: ") as caught:
        matches(source, "text")
    assert caught.value.hint
    assert len(caught.value.message) < 250


def test_a_regex_that_is_too_long_is_refused():
    with pytest.raises(UsageError, match="2,001 characters; at most 2,000"):
        compile_regex("a" * 2_001)


@pytest.mark.parametrize("source", ["^(a|aa)+$", "^(?:a|a{2})+$"])
def test_a_regex_that_would_take_for_ever_is_stopped_with_an_error(source: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "REGEX_SECONDS", 0.05)
    with pytest.raises(MlxftError, match=r"takes over 0.05 s on 61 characters") as caught:
        matches(source, "a" * 60 + "b")
    assert "repetitions inside repetitions" in caught.value.hint


def test_a_syntax_that_may_change_one_day_warns_nobody():
    assert matches("[[a]", "[")
