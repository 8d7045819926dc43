import json
import re
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mlx_finetune.scoring.json_text import NotJsonError, ObjectScanner, first_object, parse

#: The machine may be busy: a test is never judged by its time.
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False)
    | st.text('ab{}[]"\\\n`'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('k{}[]"\\'), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text('k{}[]"\\', max_size=4), VALUES, max_size=3)
JSONISH = st.text(st.sampled_from('{}[]":,\\ a1\n`'), max_size=40)


def feed(text: str, cuts: list[int]) -> tuple[int | None, int | None]:
    """Where the object begins and ends when the text comes in pieces."""
    scanner, places = ObjectScanner(), sorted({cut % (len(text) + 1) for cut in cuts} | {0, len(text)})
    for start, end in pairwise(places):
        closed = scanner.feed(text[start:end])
        if closed is not None:
            return scanner.start, start + closed
    return scanner.start, None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"a": 1}', '{"a": 1}'),
        ('{"a": "}"}', '{"a": "}"}'),
        ('{"a": "{[\\"]}"} tail', '{"a": "{[\\"]}"}'),
        ('{"a": "\\\\"} "}', '{"a": "\\\\"}'),
        ('{"a": {"b": [{}, {"c": []}]}}', '{"a": {"b": [{}, {"c": []}]}}'),
        ('{"a": 1}{"b": 2}', '{"a": 1}'),
        ('Sure!\n```json\n{"a": 1}\n```\nDone.', '{"a": 1}'),
        ('```\n{\n  "a": "```"\n}\n```', '{\n  "a": "```"\n}'),
        ("{}", "{}"),
        ("{ \n }", "{ \n }"),
        ('Put {braces} here: {"a": 1}', '{"a": 1}'),
        ('{{"a": 1}}', '{"a": 1}'),
        ('{"a": [1, 2} then {"b": 3}', '{"b": 3}'),
        ('a "quote { {"b": 1}', '{"b": 1}'),
        ('[{"a": 1}, {"a": 2}]', '{"a": 1}'),
        ('{"a": 1,}', '{"a": 1,}'),  # balanced; that it is no JSON is for `parse` to say
        ("", None),
        ("no object", None),
        ("{'a': 1}", None),
        ('{"a": 1', None),
        ('{"a": "}', None),
        ('{"a": "\\"}', None),
        ('{"a": {"b": 1}', None),  # the inner object is not the answer
        ('}{"', None),
        ("[1, 2]", None),
    ],
)
def test_the_first_balanced_object_is_found_and_nothing_invented(text: str, found: str | None):
    assert first_object(text) == found


@CALM
@given(OBJECTS, st.sampled_from(["", "Here: ", "```json\n", 'say "x" ] } \\ ']), st.text(max_size=10))
def test_every_object_comes_back_as_it_was_written(value: dict[str, object], before: str, after: str):
    for written in (json.dumps(value), json.dumps(value, indent=2, ensure_ascii=False)):
        assert first_object(before + written + after) == written


@CALM
@given(JSONISH | OBJECTS.map(json.dumps), st.lists(st.integers(0, 200), max_size=12))
@example('{"a": "\\""}', list(range(11)))
def test_the_pieces_an_answer_arrives_in_do_not_matter(text: str, cuts: list[int]):
    start, end = feed(text, cuts)
    assert (None if end is None else text[start:end]) == first_object(text)
    assert feed(text, list(range(len(text)))) == (feed(text, [])[0], end)


@CALM
@given(JSONISH)
def test_what_is_found_stands_in_the_text_and_is_balanced(text: str):
    found = first_object(text)
    if found is not None:
        assert found in text
        bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", found, flags=re.DOTALL)
        while (less := re.sub(r"\{[^{}\[\]]*\}|\[[^{}\[\]]*\]", "", bare)) != bare:
            bare = less
        assert bare == ""


@CALM
@given(JSONISH)
def test_what_python_reads_as_an_object_is_found(text: str):
    try:
        value = json.loads(text)
    except ValueError:
        return
    if isinstance(value, dict):
        assert first_object(text) == text.strip(" \t\r\n")


def test_after_the_end_every_piece_gives_nothing():
    scanner = ObjectScanner()
    assert scanner.feed('x {"a"') is None
    assert scanner.start == 2
    assert scanner.feed(": 1}}}") == 4
    assert scanner.feed('{"b": 1}') == 0
    assert scanner.start == 2


def test_a_hundred_thousand_brackets_are_no_trouble():
    assert first_object('{"a":' * 100_000) is None
    deep = '{"a":' * 100_000 + "1" + "}" * 100_000
    assert first_object(deep) == deep


# Parsing


@CALM
@given(VALUES)
def test_json_is_read_as_python_reads_it(value: object):
    assert parse(f" {json.dumps(value)}\n") == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1, column 1: expecting value"),
        ('{"a": 1}\n{"a": 2}', "line 2, column 1: extra data"),
        ('{"a": 1,}', "line 1, column"),
        ("{'a': 1}", "line 1, column 2"),
        ("NaN", "NaN is not JSON"),
        ("[-Infinity]", "-Infinity is not JSON"),
        ("[1e400]", "the number 1e400 is too large"),
        ("9" * 5_000, "a number has too many digits"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' stands twice"),
        ('["\\ud800"]', "half a character"),
        ('{"\\udc00": 1}', "half a character"),
        ("[" * 101 + "]" * 101, "nested deeper than 100"),
        ("[" * 100_000, "nested deeper than 100"),
        ("[" * 100 + '"\\ud800"' + "]" * 100, "half a character"),
        ('"a\nb"', "invalid control character"),
        ("\ufeff{}", "line 1, column 1"),
    ],
)
def test_what_is_no_json_is_refused_with_a_reason(text: str, message: str):
    with pytest.raises(NotJsonError, match=re.escape(message)):
        parse(text)


def test_what_is_unusual_but_json_is_read():
    assert parse("[" * 100 + "]" * 100)
    assert parse('"\\ud83d\\ude00"') == "\U0001f600"
    assert parse("9" * 400) == int("9" * 400)
    assert parse("null") is None
