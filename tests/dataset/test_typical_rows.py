"""Which rows stand for the others, and rows by their line."""

import numpy as np
import pytest

from mlx_finetune.dataset.token_rows import TokenRows, rows_of
from mlx_finetune.dataset.tokens import Tokens
from mlx_finetune.dataset.typical_rows import check_lines, rows_at_lines, sequence_note, typical_rows
from mlx_finetune.errors import UsageError


def _rows(*lengths: int, lines: list[int] | None = None) -> TokenRows:
    numbers = lines or list(range(1, len(lengths) + 1))
    return rows_of(
        [
            Tokens(np.zeros(length, np.int32), np.ones(length, np.bool_), "rows.jsonl", line)
            for length, line in zip(lengths, numbers, strict=True)
        ]
    )


def test_from_the_shortest_to_the_one_of_middle_length():
    rows = _rows(90, 10, 50, 30, 70, 20, 60, 40, 80)
    lengths = [[int(rows.lengths[number]) for number in typical_rows(rows, count)] for count in (1, 2, 3, 4)]
    assert lengths == [[50], [10, 50], [10, 30, 50], [10, 20, 40, 50]]


def test_few_rows_are_taken_whole_and_each_once():
    assert typical_rows(_rows(30, 10, 20), 4) == [1, 2, 0]
    assert typical_rows(_rows(30, 10, 20), 3) == [1, 2, 0]
    assert typical_rows(_rows(5), 4) == [0]


def test_rows_too_long_to_read_are_left_out_unless_there_are_no_others():
    assert typical_rows(_rows(9000, 10, 8000, 20, 7000), 4) == [1, 3]
    assert typical_rows(_rows(9000, 8000), 4) == [1]


def test_rows_of_equal_length_come_in_their_order():
    assert typical_rows(_rows(10, 10, 10, 10, 10, 10, 10), 3) == [0, 2, 3]


def test_rows_by_line_come_in_the_order_asked_for_with_every_sequence_of_them():
    rows = _rows(10, 10, 10, 10, lines=[3, 7, 7, 9])
    assert rows_at_lines(rows, [9, 7], "validation rows") == [3, 1, 2]
    assert [sequence_note(rows, number) for number in range(4)] == [
        (),
        ("sequence 1 of 2 of this row",),
        ("sequence 2 of 2 of this row",),
        (),
    ]


def test_a_line_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(UsageError, match="line 4 is not among the validation rows") as caught:
        rows_at_lines(_rows(10, 10, lines=[3, 7]), [3, 4], "validation rows")
    assert caught.value.hint == "lines there are: 3, 7"
    with pytest.raises(UsageError) as caught:
        check_lines([99], range(1, 50), "rows of x")
    assert caught.value.hint == "lines there are: 1, 2, 3, 4, 5, 6, 7, 8, ..."
