"""JSON arrays, read piece by piece."""

import io
import json

import pytest

from mlx_finetune.dataset.row import Row
from mlx_finetune.dataset.sources import arrays
from mlx_finetune.dataset.sources.arrays import read_array
from mlx_finetune.dataset.sources.opening import FileProblem
from mlx_finetune.errors import Problem


def read(content: bytes) -> tuple[list[Row], list[Problem], FileProblem | None]:
    rows: list[Row] = []
    problems: list[Problem] = []
    try:
        rows.extend(read_array(io.BytesIO(content), "a.json", problems.append))
    except FileProblem as problem:
        return rows, problems, problem
    return rows, problems, None


def test_each_row_knows_its_line() -> None:
    rows, problems, stop = read(b'[\n  {"text":\n "a"},\n\n  {"text": "b"}, {"text": "c"}\n]\n')
    assert [(row.line, row.fields["text"]) for row in rows] == [(2, "a"), (5, "b"), (5, "c")]
    assert (problems, stop) == ([], None)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_rows_do_not_depend_on_where_the_pieces_end(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(arrays, "BUFFER_BYTES", size)
    values = [
        {"text": 'caf\u00e9 \U0001f600 \\ " ]} , ['},
        {"n": [1.5, -2e3, True, None], "o": {"k": "v"}},
        {"z": 12345},
    ]
    content = b"\xef\xbb\xbf" + json.dumps(values, ensure_ascii=False, indent=1).encode()
    rows, problems, stop = read(content)
    assert [row.fields for row in rows] == values
    assert (problems, stop) == ([], None)


def test_an_object_around_one_list_is_opened() -> None:
    rows, problems, stop = read(b'{\n"data": [\n{"text": "a"},\n{"text": "b"}\n]}\n')
    assert [(row.line, row.fields["text"]) for row in rows] == [(3, "a"), (4, "b")]
    assert (problems, stop) == ([], None)


def test_an_object_that_is_no_list_of_rows_is_refused_with_its_keys() -> None:
    for content in (b'{"a": [{"x": 1}], "b": 2}', b'{"a": {"x": 1}, "b": {"x": 2}}'):
        _, _, stop = read(content)
        assert stop is not None
        assert stop.message == "the file is one object (`a`, `b`), not rows"


def test_elements_that_are_no_objects_are_reported_and_the_rest_is_read() -> None:
    rows, problems, stop = read(b'[{"text": "a"},\n "b", 12,\n {"text": "c"}]')
    assert [row.fields["text"] for row in rows] == ["a", "c"]
    assert [(problem.where, problem.message) for problem in problems] == [
        ("a.json:2", 'a row must be an object; this is "b"'),
        ("a.json:2", "a row must be an object; this is 12"),
    ]
    assert stop is None


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        (
            b'[{"text": "a"},\n{"text": }]',
            2,
            "not JSON: expecting value (column 10); the rest of the file was not read",
        ),
        (b'[{"text": "a"}\n{"text": "b"}]', 2, 'not JSON: a comma is missing before "{" (column 1)'),
        (b'[{"text": "a"},\n{"text": "b"}', 2, "not JSON: the file ends inside the array"),
        (b'[{"text": "a"},\n{"text": "b', 2, "not JSON: unterminated string starting at (column 10)"),
        (b'[{"text": "a"},\n]', 2, "not JSON: expecting value (column 1)"),
        (b'[{"text": "a"}]\n[1]', 2, 'something follows the end of the array: "[1]"'),
        (b'[{"text": "a", "text": "b"}]', 1, 'the key "text" stands twice in one object'),
        (b'[{"text": "a"},\n{"text": "\xff"}]', 2, "byte 11 of the line is 0xff, which is not UTF-8"),
        (b"[]", 1, "the array is empty"),
        (b"[" + b'{"a":' * 100_000, 1, "nested deeper than"),
    ],
)
def test_where_an_array_breaks_is_named(content: bytes, line: int, message: str) -> None:
    _, _, stop = read(content)
    assert stop is not None
    assert stop.message.startswith(message)
    assert stop.line in (line, 0)


def test_one_element_beyond_the_limit_stops_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(arrays, "BUFFER_BYTES", 100)
    rows, _, stop = read(b'[{"text": "a"},\n{"text": "' + b"x" * 5000 + b'"}]')
    assert [row.fields["text"] for row in rows] == ["a"]
    assert stop is not None
    assert (stop.line, stop.message) == (2, "one row has more than 64 million characters")
