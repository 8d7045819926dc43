"""Plain text: which lines make a document."""

import io

import pytest
from reports import no_problem

from mlx_finetune.dataset.row import Row
from mlx_finetune.dataset.sources.opening import FileProblem
from mlx_finetune.dataset.sources.plain import STRETCH, read_plain


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


def whole(content: str) -> list[Row]:
    return list(read_plain(io.BytesIO(content.encode()), "a.txt", no_problem, is_whole=True))


def test_a_file_that_is_one_document_comes_whole_in_stretches_that_say_they_go_on() -> None:
    paragraphs = [f"Paragraph {number}:\n" + "word " * 150 + "\n\n" for number in range(40)]
    text = "".join(paragraphs)
    rows = whole("\n\n" + text)
    assert "".join(str(row.fields["text"]) for row in rows) == text
    assert [row.continues for row in rows] == [True] * (len(rows) - 1) + [False]
    assert len(rows) > 3
    assert all(STRETCH <= len(str(row.fields["text"])) < 2 * STRETCH for row in rows[:-1])
    assert all(str(row.fields["text"]).startswith("Paragraph") for row in rows)
    assert (rows[0].line, rows[1].line) == (3, 3 + 3 * str(rows[0].fields["text"]).count("Paragraph"))


def test_text_without_blank_lines_is_cut_between_lines() -> None:
    text = "".join(f"line {number} of one long text\n" for number in range(2_000))
    rows = whole(text)
    assert "".join(str(row.fields["text"]) for row in rows) == text
    assert all(str(row.fields["text"]).startswith("line") for row in rows)
    assert max(len(str(row.fields["text"])) for row in rows) < 2 * STRETCH + 40


@pytest.mark.parametrize("is_whole", [True, False])
def test_separators_stand_between_documents_of_any_kind(is_whole: bool) -> None:
    content = "one\n\nstill one\n<|endoftext|>\n\ntwo\n<|endoftext|>\n<|endoftext|>\nthree"
    rows = list(read_plain(io.BytesIO(content.encode()), "a.txt", no_problem, is_whole=is_whole))
    assert [(row.fields["text"], row.line, row.continues) for row in rows] == [
        ("one\n\nstill one\n", 1, False),
        ("two\n", 6, False),
        ("three\n", 9, False),
    ]


def test_a_document_that_ends_with_a_whole_stretch_ends_there() -> None:
    rows = whole(("x" * STRETCH + "\n\n") * 3)
    assert [row.continues for row in rows] == [True, True, False]
    assert [row.fields["text"] for row in whole("a\n\n")] == ["a\n\n"]
