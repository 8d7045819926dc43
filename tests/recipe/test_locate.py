import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_finetune.recipe.locate import locate_keys
from mlx_finetune.recipe.values import toml_key, toml_value

TEXT = '''model = "a"  # [not] a = "header"
"out put".x.'y' = 'b'
s = """
[x]
rank = 1
"""

[lora]
rank=3
[data]
sources = [
  {path = "x", weight = 0},
  { path="y", "odd key".z = 1 },
]
[[a.b]]
k = [1,
  2]
[[a.b]]
k = 2
[a.b.c]
d = [{}, {e.f = {g = 1.5}}]
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("model",), 1),
        (("out put",), 2),
        (("out put", "x", "y"), 2),
        (("s",), 3),
        (("lora",), 8),
        (("lora", "rank"), 9),
        (("data", "sources", 0, "weight"), 12),
        (("data", "sources", 1), 13),
        (("data", "sources", 1, "odd key", "z"), 13),
        (("a", "b", 0), 15),
        (("a", "b", 0, "k", 1), 17),
        (("a", "b", 1, "k"), 19),
        (("a", "b", 1, "c"), 20),
        (("a", "b", 1, "c", "d", 1, "e", "f", "g"), 21),
    ],
)
def test_every_way_to_write_a_key_has_its_line(path: tuple[str | int, ...], line: int):
    assert locate_keys(TEXT).first[path] == line


def test_text_in_strings_and_comments_is_no_key():
    assert {("x",), ("not",), ("x", "rank")}.isdisjoint(locate_keys(TEXT).first)


def test_what_is_not_written_stands_where_its_container_does():
    lines = locate_keys(TEXT)
    assert lines.line_of(("lora", "alpha")) == 8
    assert lines.line_of(("nothing",)) is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a = 1\nb = 2\na = 3", (("a",), 1, 3)),
        ("[a]\nb = 2\n[a]\n", (("a",), 1, 3)),
        ("a = {b = 1,\n b = 2}", (("a", "b"), 1, 2)),
        ("[[a]]\nb = 1\n[[a]]\nb = 1", None),
        ("a.b = 1\na.c = 2", None),
    ],
)
def test_a_repeated_key_is_found_with_both_lines(text: str, found: object):
    assert locate_keys(text).repeated() == found


@given(st.text(alphabet="ab.=[]{}\"'\\,#\n \t", max_size=200))
def test_any_text_is_read_to_its_end(text: str):
    assert all(1 <= line <= text.count("\n") + 1 for line in locate_keys(text).first.values())


NAMES = st.text(min_size=1, max_size=6)
SCALARS = st.one_of(
    st.integers(), st.booleans(), st.text(max_size=10), st.floats(allow_nan=False, allow_subnormal=False)
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3))


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(NAMES, VALUES, max_size=5))
def test_keys_written_one_a_line_are_found_on_that_line(values: dict[str, object]):
    text = "\n".join(f"{toml_key(key)} = {toml_value(value)}" for key, value in values.items())
    assert tomllib.loads(text) == values
    lines = locate_keys(text)
    assert [lines.first[key,] for key in values] == list(range(1, len(values) + 1))
    assert lines.repeated() is None


@pytest.mark.parametrize("text", ["a = " + "[" * 10_000, "a = " + "{a = " * 5_000, "a." * 10_000, '"\\' * 50_000])
def test_hostile_nesting_costs_little(text: str):
    assert all(len(path) <= 32 for path in locate_keys(text).first)
