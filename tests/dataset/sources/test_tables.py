"""CSV and TSV: headers found or not, quotes, and records that do not fit."""

import io

import pytest

from mlx_finetune.dataset.row import Row
from mlx_finetune.dataset.sources.opening import FileProblem
from mlx_finetune.dataset.sources.tables import read_csv, read_tsv
from mlx_finetune.errors import Problem


def csv(content: str) -> tuple[list[Row], list[Problem]]:
    problems: list[Problem] = []
    return list(read_csv(io.BytesIO(content.encode()), "a.csv", problems.append)), problems


def tsv(content: str) -> tuple[list[Row], list[Problem]]:
    problems: list[Problem] = []
    return list(read_tsv(io.BytesIO(content.encode()), "a.tsv", problems.append)), problems


def test_quoted_fields_hold_commas_quotes_and_newlines_and_the_line_is_the_first() -> None:
    rows, problems = csv('prompt,completion\r\n"a, ""b""\nc",d\r\n\r\ne,f')
    assert [(row.line, dict(row.fields)) for row in rows] == [
        (2, {"prompt": 'a, "b"\nc', "completion": "d"}),
        (5, {"prompt": "e", "completion": "f"}),
    ]
    assert problems == []


def test_semicolons_separate_where_the_first_line_has_no_comma() -> None:
    rows, problems = csv('prompt;completion\na, b;"c;\nd"\n')
    assert [(row.line, dict(row.fields)) for row in rows] == [(2, {"prompt": "a, b", "completion": "c;\nd"})]
    assert problems == []


def test_a_header_of_unknown_names_is_a_header() -> None:
    rows, _ = csv("Customer Query,Agent Reply\nhow much is it?,ten euros\n")
    assert [dict(row.fields) for row in rows] == [{"Customer Query": "how much is it?", "Agent Reply": "ten euros"}]


def test_known_names_are_found_whatever_their_case() -> None:
    rows, _ = csv("Question,Answer,Id\na,b,1\n")
    assert dict(rows[0].fields) == {"question": "a", "answer": "b", "Id": "1"}


def test_a_first_line_whose_cells_come_back_is_data() -> None:
    rows, _ = tsv("great film\tpositive\nbad film\tnegative\nfine film\tpositive\ndull\tnegative\nok\tpositive\n")
    assert len(rows) == 5
    assert dict(rows[0].fields) == {"text": "great film", "label": "positive"}


def test_columns_without_names_are_numbered() -> None:
    rows, _ = tsv("What is it, then?\tA long answer, no. 1\nAnd this?\tAnother one.\nThird?\tYes, this.\n")
    assert [list(row.fields) for row in rows] == [["column1", "column2"]] * 3


def test_quotes_in_tsv_are_text_unless_they_enclose_a_field() -> None:
    rows, problems = tsv('text\tlabel\n"stray at the start\t1\nin "the" middle\t0\n"whole ""field"""\t1\n')
    assert [row.fields["text"] for row in rows] == ['"stray at the start', 'in "the" middle', 'whole "field"']
    assert problems == []


def test_records_of_another_width_are_reported_and_the_rest_is_read() -> None:
    rows, problems = csv("text,label\na,1\nb\nc,2,3\nd,4\n")
    assert [row.fields["text"] for row in rows] == ["a", "d"]
    assert [(problem.where, problem.message) for problem in problems] == [
        ("a.csv:3", "the record has 1 fields, the file has 2 columns"),
        ("a.csv:4", "the record has 3 fields, the file has 2 columns"),
    ]


def test_a_quote_that_is_never_closed_is_found_where_it_opens() -> None:
    rows, problems = csv('text,label\na,1\n"b,2\nc,3\n')
    assert [row.fields["text"] for row in rows] == ["a"]
    assert [(problem.where, problem.message) for problem in problems] == [
        ("a.csv:3", "a quote opened in this record is never closed")
    ]


def test_two_columns_of_one_name_are_refused() -> None:
    with pytest.raises(FileProblem, match="two columns of the header have one name") as caught:
        csv("text,text\na,b\n")
    assert caught.value.line == 1
