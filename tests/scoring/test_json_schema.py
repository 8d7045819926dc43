import json
import os
import socket
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_finetune.errors import DataError, MlxftError
from mlx_finetune.scoring import text as text_module
from mlx_finetune.scoring.json_schema import Validator, check_schema, count_fields, field_accuracy, read_schema

#: The machine may be busy: a test is never judged by its time.
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

TIMELINE = {
    "type": "object",
    "properties": {
        "timeline": {
            "type": "array",
            "minItems": 1,
            "maxItems": 20,
            "items": {
                "type": "object",
                "properties": {name: {"type": "string"} for name in ("ts", "event", "fan_sentiment")},
                "required": ["ts", "event", "fan_sentiment"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["timeline"],
    "additionalProperties": False,
}
NEWEST, DRAFT_7 = "https://json-schema.org/draft/2020-12/schema", "http://json-schema.org/draft-07/schema#"
ITEM = {"ts": "12:01", "event": "goal", "fan_sentiment": "joy"}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was fetched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


# Files


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "schema.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_schema_is_read_as_it_stands(tmp_path: Path):
    assert read_schema(written(tmp_path, json.dumps(TIMELINE))) == TIMELINE
    assert read_schema(written(tmp_path, b"\xef\xbb\xbf{}")) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not JSON: line 1, column 1"),
        ('{"type": "object",}', "is not JSON: line 1"),
        ("{} // note", "is not JSON"),
        (b"\xff\xfe{\x00}\x00", r"is not UTF-8 \(byte 1\)"),
        ("[]", "holds a list, not an object"),
        ("true", "holds true or false, not an object"),
        ("3", "holds a number, not an object"),
        ('"x"', "holds a string, not an object"),
        ("null", "holds null, not an object"),
        ('{"type": "strin"}', r"not a valid JSON Schema: \$.type: 'strin'"),
        ('{"properties": {"a": {"minLength": -1}}}', r"not a valid JSON Schema: \$.properties.a.minLength: -1"),
        ('{"properties": []}', "not a valid JSON Schema"),
        ('{"type": "object", "type": "array"}', "the key 'type' stands twice"),
        ('{"minimum": NaN}', "NaN is not JSON"),
        ('{"maximum": 1e999}', "the number 1e999 is too large"),
        ('{"maxLength": ' + "9" * 5_000 + "}", "too many digits"),
        ('{"not":' * 101 + "{}" + "}" * 101, "nested deeper than 100"),
        ('{"not":' * 100_000, "nested deeper than 100"),
        (b" " * 1_000_001, "larger than 1 MB"),
        ('{"$ref": "http://example.com/schema.json"}', r"leads out of the file, and nothing is fetched"),
        ('{"properties": {"a": {"$ref": "other.json#/a"}}}', "leads out of the file"),
        ('{"items": {"$ref": "file:///etc/hostname"}}', "leads out of the file"),
        ('{"$id": "http://example.com/a", "items": {"$ref": "b"}}', "leads out of the file"),
        ('{"$ref": "https://json-schema.org/draft/2020-12/schema"}', "leads out of the file"),
        ('{"properties": {"a": {"$ref": "#/$defs/none"}}}', r"'#/\$defs/none' leads to no schema"),
        ('{"title": "x", "items": {"$ref": "#/title"}}', "leads to no schema"),
        ('{"allOf": [{}], "$ref": "#/allOf/x"}', "leads to no schema"),
        ('{"$ref": "#/x/y", "x": {"y": {"type": "nope"}}}', "at #/x/y, is not a valid JSON Schema"),
        ('{"$id": "http://[", "$ref": "b"}', r"\$id 'http://\[' is no address"),
        ('{"$ref": "#"}', "leads back to itself"),
        ('{"anyOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"$ref": "#"}}}', "leads back to itself"),
        ('{"$schema": "http://example.com/mine"}', "is no known draft"),
        ('{"$schema": {"a": 1}}', "is no known draft"),
        ('{"$defs": {"a": {"$schema": "http://json-schema.org/draft-07/schema#"}}}', "below its top"),
        ('{"pattern": "("}', "not a valid JSON Schema"),
        ('{"patternProperties": {"[": {}}}', "not a valid JSON Schema"),
        ('{"patternProperties": {"a": {}}, "unevaluatedProperties": false}', "cannot be checked together"),
    ],
)
def test_a_file_that_is_no_schema_is_one_clear_error(tmp_path: Path, content: str | bytes, message: str):
    path = written(tmp_path, content)
    with pytest.raises(DataError, match=message) as caught:
        read_schema(path)
    assert str(path) in caught.value.message
    assert caught.value.hint
    assert len(caught.value.message) < 600


def test_a_file_that_cannot_be_read_is_one_clear_error(tmp_path: Path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (tmp_path / "none.json", tmp_path, fifo, tmp_path / "x" / "y", Path("a\0b"), Path("n" * 5_000)):
        with pytest.raises(DataError) as caught:
            read_schema(path)
        assert caught.value.hint


def test_an_invalid_pattern_says_what_is_wrong_with_it(tmp_path: Path):
    with pytest.raises(DataError) as caught:
        read_schema(written(tmp_path, '{"pattern": "("}'))
    assert "missing )" in caught.value.hint


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "definitions": {"a": {}},
            "items": {"$ref": "#/definitions/a"},
        },
        {"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 1, "exclusiveMinimum": True},
        {"$id": "http://example.com/a", "$defs": {"x": {"$id": "x"}}, "items": {"$ref": "x"}},
        {"$anchor": "top", "properties": {"below": {"$ref": "#top"}}},
        {"properties": {"$ref": {"type": "string"}}, "enum": [{"$ref": "http://example.com"}]},
        {"maxLength": 10**30},
        {"pattern": r"^\p{L}+$"},
    ],
)
def test_a_schema_that_needs_nothing_else_is_taken(schema: dict[str, object]):
    assert check_schema(schema) is schema


KEYWORDS = st.sampled_from(
    [
        *("type", "properties", "items", "prefixItems", "additionalProperties", "patternProperties", "pattern", "enum"),
        *("required", "minimum", "multipleOf", "anyOf", "not", "if"),
        *("$ref", "$dynamicRef", "$id", "$schema", "$defs", "$anchor"),
    ]
)
SCRAPS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.sampled_from(
        ["object", "string", "#", "#/$defs", "#/items", "http://[", "x", "(", "#/anyOf/0", "urn:a:b", "//"]
    )
)
SCHEMAS = st.recursive(SCRAPS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYWORDS, inner, max_size=4))


@settings(CALM, max_examples=150)
@given(st.dictionaries(KEYWORDS, SCHEMAS, max_size=4), SCHEMAS)
def test_anything_is_a_usable_schema_or_a_clear_error(schema: dict[str, object], value: object):
    try:
        problems = Validator(schema).problems(value)
    except MlxftError as error:
        problems = [error.hint]
    assert all(isinstance(problem, str) and problem for problem in problems)


# Values


def test_a_valid_value_has_no_problem_and_others_say_where():
    validator = Validator(TIMELINE)
    assert validator.problems({"timeline": [ITEM]}) == []
    assert validator.is_valid({"timeline": [ITEM]})
    assert validator.problems({"timeline": [ITEM, {**ITEM, "ts": 5}]}) == [
        "$.timeline[1].ts: 5 is not of type 'string'"
    ]
    assert validator.problems({"timeline": []}) == ["$.timeline: [] should be non-empty"]
    found = validator.problems({"timeline": [{**ITEM, "more": 1}], "x": 1})
    assert [problem.split(":")[0] for problem in found] == ["$", "$.timeline[0]"]
    assert not validator.is_valid([])


def test_problems_are_few_and_short():
    validator = Validator({"items": {"type": "string"}})
    assert len(validator.problems([1] * 1_000)) == 20
    assert len(validator.problems([1] * 1_000, most=3)) == 3
    assert len(Validator({"type": "null"}).problems(["x" * 10_000])[0]) < 300


def test_format_is_not_checked():
    assert Validator({"format": "date"}).is_valid("no date")


def test_names_that_a_pattern_takes_are_not_additional():
    validator = Validator(
        {
            "properties": {"n": {"type": "integer"}},
            "patternProperties": {"^a": {"type": "string"}, "z$": True},
            "additionalProperties": {"type": "null"},
        }
    )
    assert validator.is_valid({"n": 1, "ab": "x", "qz": 3, "other": None})
    assert validator.problems({"ab": 1}) == ["$.ab: 1 is not of type 'string'"]
    assert validator.problems({"b": 1}) == ["$.b: 1 is not of type 'null'"]
    closed = Validator({"patternProperties": {"^a": True}, "additionalProperties": False})
    assert closed.is_valid({"ab": 1})
    assert closed.problems({"b": 1, "ab": 1}) == ["$: Additional properties are not allowed ('b' was unexpected)"]


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"pattern": "^(a|aa)+$"}, "a" * 60 + "b"),
        ({"patternProperties": {"^(a|aa)+$": True}}, {"a" * 60 + "b": 1}),
        ({"patternProperties": {"^(a|aa)+$": True}, "additionalProperties": False}, {"a" * 60 + "b": 1}),
        ({"$schema": NEWEST, "properties": {"a": {"$ref": "#"}}, "pattern": "^(a|aa)+$"}, {"a": "a" * 60 + "b"}),
        ({"$schema": DRAFT_7, "properties": {"a": {"$ref": "#"}}, "pattern": "^(a|aa)+$"}, {"a": "a" * 60 + "b"}),
    ],
)
def test_a_pattern_that_would_take_for_ever_is_stopped(
    schema: dict[str, object], value: object, monkeypatch: pytest.MonkeyPatch
):
    validator = Validator(schema)
    monkeypatch.setattr(text_module, "REGEX_SECONDS", 0.05)
    with pytest.raises(MlxftError, match="takes over"):
        validator.problems(value)


def test_a_circle_below_the_top_is_an_error_when_it_is_reached():
    validator = Validator({"properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"$ref": "#/$defs/x"}}})
    assert validator.is_valid({})
    with pytest.raises(MlxftError, match="leads back to itself") as caught:
        validator.problems({"a": 1})
    assert caught.value.hint


def test_a_schema_may_refer_to_itself_and_check_as_deep_as_values_go():
    validator = Validator({"type": "object", "properties": {"a": {"$ref": "#"}}, "additionalProperties": False})
    value: dict[str, object] = {}
    for _ in range(98):
        value = {"a": value}
    assert validator.is_valid(value)


def test_numbers_beyond_a_float_are_compared_or_refused_but_never_crash():
    assert Validator({"type": "integer", "minimum": 1.5}).is_valid(10**400)
    assert Validator({"multipleOf": 0.5}).problems(10**400) == ["$: a number is too large to be checked"]


# Field accuracy


def timeline(*events: str) -> dict[str, object]:
    return {"timeline": [{"ts": str(number), "event": event} for number, event in enumerate(events)]}


@pytest.mark.parametrize(
    ("expected", "got", "right", "total"),
    [
        ({"a": 1, "b": "x"}, {"b": "x", "a": 1}, 2, 2),  # the order of keys does not matter
        ({"a": 1, "b": "x"}, {"a": 1}, 1, 2),  # missing
        ({"a": 1}, {"a": 1, "b": "x"}, 1, 2),  # extra
        ({"a": 1}, {"b": 1}, 0, 2),  # under another name: missing and extra
        ({"a": 1}, {"a": 2}, 0, 1),
        ({"a": {"b": 1, "c": 2}}, {"a": "text"}, 0, 3),  # an object against a string
        ({"a": [1, 2, 3]}, {"a": [1, 2, 3]}, 3, 3),
        ({"a": [1, 2, 3]}, {"a": [2, 1, 3]}, 1, 3),  # two swapped: both wrong
        ({"a": [1, 2, 3]}, {"a": [2, 3]}, 0, 3),  # the first left out: all wrong
        ({"a": [1, 2, 3]}, {"a": [1, 2]}, 2, 3),
        ({"a": [1]}, {"a": [1, 1, 1]}, 1, 3),  # repeated
        ({"a": []}, {"a": []}, 1, 1),
        ({"a": []}, {"a": {}}, 0, 1),
        ({"a": []}, {"a": [1]}, 0, 2),
        ({}, {}, 1, 1),
        ({}, None, 0, 1),
        (None, None, 1, 1),
        ({"a": 1}, {"a": 1.0}, 1, 1),
        ({"a": 1}, {"a": True}, 0, 1),
        ({"a": 0}, {"a": False}, 0, 1),
        ({"a": 1}, {"a": "1"}, 0, 1),
        ({"a": None}, {"a": None}, 1, 1),
        ({"a": None}, {}, 0, 2),
        ({"a": "caf\u00e9"}, {"a": "cafe\u0301"}, 1, 1),
        ({"a": "Goal"}, {"a": "goal"}, 0, 1),
        ({"0": 1}, [1], 0, 2),
    ],
)
def test_a_field_is_right_where_both_have_it_with_one_value(expected: object, got: object, right: int, total: int):
    assert count_fields(expected, got) == (right, total)
    assert count_fields(got, expected) == (right, total)
    assert field_accuracy(expected, got) == pytest.approx(right / total)


def test_field_accuracy_of_a_timeline():
    assert field_accuracy(timeline("kick-off", "goal"), timeline("kick-off", "goal")) == 1
    assert field_accuracy(timeline("kick-off", "goal"), timeline("kick-off", "corner")) == 3 / 4
    assert field_accuracy(timeline("kick-off", "goal"), timeline("kick-off")) == 2 / 4
    assert field_accuracy(timeline("kick-off"), timeline("kick-off", "goal", "goal")) == 2 / 6
    assert field_accuracy(timeline("kick-off"), "kick-off") == 0


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=8,
)


@CALM
@given(VALUES, VALUES)
def test_only_equal_values_are_wholly_right(one: object, other: object):
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (field_accuracy(one, other) == 1) is same
    assert field_accuracy(one, one) == 1
    assert 0 <= field_accuracy(one, other) <= 1
