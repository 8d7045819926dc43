"""Plain text: which lines make a document."""

import io

import pytest
from reports import no_problem

from mlx_finetune.dataset.row import Row
from mlx_finetune.dataset.sources.opening import FileProblem
from mlx_finetune.dataset.sources.plain import read_plain


def read(content: str) -> list[Row]:
    return list(read_plain(io.BytesIO(content.encode()), "a.txt", no_problem))


def test_blank_lines_stand_between_documents() -> None:
    rows = read("\na\nb\n\n \nc\n\n")
    assert [(row.line, row.fields["text"]) for row in rows] == [(2, "a\nb"), (6, "c")]


def test_without_a_blank_line_every_line_is_a_document() -> None:
    for content in ("a\nb\nc", "a\nb\nc\n\n\n", "\n\na\r\nb\r\nc\r\n"):
        assert [row.fields["text"] for row in read(content)] == ["a", "b", "c"]


def test_numbered_stories_with_answers_become_questions() -> None:
    rows = read("1 A is left of B.\n2 B is left of C.\n3 Is A left of C?\tyes\t1 2\n1 D.\n2 Where is D?\there\t1\n")
    assert [(row.line, dict(row.fields)) for row in rows] == [
        (3, {"story": ["A is left of B.", "B is left of C."], "question": "Is A left of C?", "answer": "yes"}),
        (5, {"story": ["D."], "question": "Where is D?", "answer": "here"}),
    ]


def test_tokens_with_tags_are_refused() -> None:
    with pytest.raises(FileProblem, match="tokens with tags for named entities"):
        read("Paris\tB-loc\nis\tO\n\nBonn\tB-loc\n")


def test_text_with_tabs_and_numbers_stays_text() -> None:
    assert [row.fields["text"] for row in read("1 apple\n2 pears\n")] == ["1 apple", "2 pears"]
    assert [row.fields["text"] for row in read("name\tprice\nbread\t2\n")] == ["name\tprice", "bread\t2"]


def test_bytes_that_are_not_utf8_are_located() -> None:
    problems: list[str] = []
    rows = list(
        read_plain(
            io.BytesIO(b"a\nb\xe9\nc\n"),
            "a.txt",
            lambda problem: problems.append(f"{problem.where}: {problem.message}"),
        )
    )
    assert [row.fields["text"] for row in rows] == ["a", "c"]
    assert problems == ["a.txt:2: byte 2 of the line is 0xe9, which is not UTF-8"]
