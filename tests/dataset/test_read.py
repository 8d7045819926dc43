"""Files to rows: what is accepted, and one located sentence for everything else."""

import gzip
import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reports import no_problem

from mlx_finetune.dataset.read import Row, read_rows
from mlx_finetune.dataset.sources import opening
from mlx_finetune.errors import Problem


def read(path: Path, content: bytes | None = None) -> tuple[list[Row], list[Problem]]:
    if content is not None:
        path.write_bytes(content)
    problems: list[Problem] = []
    return list(read_rows(path, source=path.name, report=problems.append)), problems


def texts(rows: list[Row]) -> list[tuple[int, object]]:
    return [(row.line, row.fields["text"]) for row in rows]


@pytest.mark.parametrize(
    "content",
    [
        b'{"text": "a"}\n{"text": "b"}\n',
        b'{"text": "a"}\n{"text": "b"}',
        b'{"text": "a"}\r\n{"text": "b"}\r\n',
        b'\xef\xbb\xbf{"text": "a"}\n{"text": "b"}\n',
    ],
    ids=["plain", "no last newline", "CRLF", "byte-order mark"],
)
def test_harmless_variants_of_jsonl_read_alike(tmp_path: Path, content: bytes) -> None:
    rows, problems = read(tmp_path / "a.jsonl", content)
    assert texts(rows) == [(1, "a"), (2, "b")]
    assert problems == []


def test_blank_lines_are_left_out_and_counted_in_line_numbers(tmp_path: Path) -> None:
    rows, problems = read(tmp_path / "a.jsonl", b'\n{"text": "a"}\n  \n\n{"text": "b"}\n\n')
    assert texts(rows) == [(2, "a"), (5, "b")]
    assert problems == []


def test_rows_name_the_file_as_the_user_wrote_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n')
    (row,) = read_rows(path, source="data/a.jsonl", report=no_problem)
    assert row.where == "data/a.jsonl:1"
    assert row.weight == 1.0


BAD_LINES = [
    (b'{"text": "a}', "not JSON: unterminated string starting at (column 10)"),
    (b'{"text": "a"} x', "something follows the end of the object (column 14)"),
    (b"{'text': 'a'}", "not JSON: expecting property name enclosed in double quotes (column 2)"),
    (b'["a"]', 'a row must be an object such as {"text": ...}; this is a list of 1'),
    (b'"a"', 'a row must be an object such as {"text": ...}; this is "a"'),
    (b"17", 'a row must be an object such as {"text": ...}; this is 17'),
    (b"null", 'a row must be an object such as {"text": ...}; this is null'),
    (b'{"text": "caf\xe9"}', "byte 14 of the line is 0xe9, which is not UTF-8"),
    (b'{"text": "\\ud83d"}', "\\ud83d is half a character (a lone surrogate)"),
    (b'{"a": [{"b": "x \\uDE00"}]}', "\\ude00 is half a character (a lone surrogate)"),
    (b'{"text": NaN}', "the number NaN is not JSON"),
    (b'{"text": -Infinity}', "the number -Infinity is not JSON"),
    (b'{"text": 1e999}', "a number is too large"),
    (b'{"text": ' + b"9" * 5000 + b"}", "a number has too many digits"),
    (b'{"text": "a", "text": "b"}', 'the key "text" stands twice in one object'),
    (b'{"a": {"role": 1, "role": 2}}', 'the key "role" stands twice in one object'),
    (b'{"text": "a\tb"}', "not JSON: invalid control character at (column 12)"),
    (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", f"nested deeper than {sys.getrecursionlimit()} levels"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES, ids=[message[:30] for _, message in BAD_LINES])
def test_a_bad_line_is_one_located_sentence_and_its_neighbours_are_read(
    tmp_path: Path, line: bytes, message: str
) -> None:
    rows, problems = read(tmp_path / "a.jsonl", b'{"text": "a"}\n' + line + b'\n{"text": "b"}\n')
    assert texts(rows) == [(1, "a"), (3, "b")]
    assert [(problem.where, problem.message) for problem in problems] == [("a.jsonl:2", message)]


def test_a_pair_of_surrogates_is_one_character(tmp_path: Path) -> None:
    rows, problems = read(tmp_path / "a.jsonl", b'{"text": "\\ud83d\\ude00"}\n')
    assert texts(rows) == [(1, "\U0001f600")]
    assert problems == []


def test_every_bad_line_is_reported_in_one_pass(tmp_path: Path) -> None:
    rows, problems = read(tmp_path / "a.jsonl", b'{\n{"text": "a"}\n[]\nnope\n')
    assert texts(rows) == [(2, "a")]
    assert [problem.where for problem in problems] == ["a.jsonl:1", "a.jsonl:3", "a.jsonl:4"]


def test_a_line_beyond_the_limit_is_left_out_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(opening, "BUFFER_BYTES", 100)
    long = json.dumps({"text": "x" * 5000}).encode()
    rows, problems = read(tmp_path / "a.jsonl", b'{"text": "a"}\n' + long + b'\n{"text": "b"}\n')
    assert texts(rows) == [(1, "a"), (3, "b")]
    assert [problem.message for problem in problems] == ["the line has 5.0 kB; the limit is 1.0 kB"]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"  \r\n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt", "a.jsonl.gz"])
def test_a_file_without_rows_is_called_empty(tmp_path: Path, name: str, content: bytes) -> None:
    content = gzip.compress(content) if name.endswith(".gz") else content
    rows, problems = read(tmp_path / name, content)
    assert rows == []
    assert [(problem.where, problem.message) for problem in problems] == [(name, "the file is empty")]


def test_a_gz_file_reads_like_the_file_inside(tmp_path: Path) -> None:
    rows, problems = read(tmp_path / "a.jsonl.gz", gzip.compress(b'{"text": "a"}\n{"text": "b"}\n'))
    assert texts(rows) == [(1, "a"), (2, "b")]
    assert problems == []
    rows, problems = read(tmp_path / "b.json.gz", gzip.compress(b'[{"text": "a"},\n {"text": "b"}]'))
    assert texts(rows) == [(1, "a"), (2, "b")]


def test_a_damaged_gz_file_is_named_so(tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(b'{"text": "%d"}\n' % number for number in range(5000)))
    for content in (whole[: len(whole) // 2], b"not gzip at all"):
        _, problems = read(tmp_path / "a.jsonl.gz", content)
        assert problems[-1].message.startswith("the .gz file is damaged: ")


def test_a_gz_bomb_stops_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "UNPACKED_FREE_BYTES", 10**5)
    monkeypatch.setattr(opening, "BUFFER_BYTES", 10**5)
    rows, problems = read(tmp_path / "a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 200_000))
    assert len(rows) < 200_000
    assert problems[-1].message.startswith("unpacks to more than 200 times its 5.")


def test_pipes_devices_folders_and_missing_files_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "trains.jsonl").write_text("{}")
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    found = {name: read(tmp_path / f"{name}.jsonl")[1] for name in ("pipe", "folder", "train", "gone", "zero")}
    assert {name: problems[0].message for name, problems in found.items()} == {
        "pipe": "is a pipe, not a file",
        "folder": "is a folder, not a file",
        "train": "no such file",
        "gone": "no such file",
        "zero": "is a device, not a file",
    }
    assert found["train"][0].hint == "there is trains.jsonl in that folder"


def test_a_link_to_a_data_file_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "real.jsonl")
    assert texts(read(tmp_path / "link.jsonl")[0]) == [(1, "a")]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.zip", "is an archive, which is not opened"),
        ("a.tar.gz", "is an archive, which is not opened"),
        ("a.docx", "the ending '.docx' is not one that is read"),
        ("a", "the ending '' is not one that is read"),
    ],
)
def test_other_kinds_of_files_are_refused_by_name(tmp_path: Path, name: str, message: str) -> None:
    _, problems = read(tmp_path / name, b"PK")
    assert [problem.message for problem in problems] == [message]


def test_utf16_is_named(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.csv", "a.txt"):
        _, problems = read(tmp_path / name, '{"text": "a"}\n'.encode("utf-16"))
        assert [(problem.where, problem.message) for problem in problems] == [(f"{name}:1", "the file is UTF-16")]


def test_json_content_decides_not_the_ending(tmp_path: Path) -> None:
    lines, array = b'{"text": "a"}\n{"text": "b"}\n', b'[\n {"text": "a"},\n {"text": "b"}\n]\n'
    assert texts(read(tmp_path / "a.json", lines)[0]) == [(1, "a"), (2, "b")]
    assert texts(read(tmp_path / "a.jsonl", array)[0]) == [(2, "a"), (3, "b")]


def test_one_row_in_one_line_is_a_row(tmp_path: Path) -> None:
    rows, problems = read(tmp_path / "a.json", b'{"messages": [{"role": "user", "content": "a"}]}')
    assert (len(rows), problems) == (1, [])


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=300), name=st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt"]))
def test_any_bytes_give_rows_or_located_problems(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    rows, problems = read(path, content)
    assert rows or problems
    assert all(problem.where.startswith(name) and "\n" not in problem.message for problem in problems)


@settings(max_examples=60, deadline=None)
@given(tail=st.text(alphabet='{}[]",:\\ue0d8 \n1NaNtrue', max_size=60))
def test_anything_like_json_gives_rows_or_located_problems(tmp_path_factory: pytest.TempPathFactory, tail: str) -> None:
    for start in ('{"text": ', '[{"text": ', '{"data": [{'):
        rows, problems = read(tmp_path_factory.getbasetemp() / "b.json", (start + tail).encode())
        assert rows or problems
