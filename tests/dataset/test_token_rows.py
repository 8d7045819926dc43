import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_finetune.dataset import token_rows
from mlx_finetune.dataset.token_rows import RowsBuilder, TokenRows, rows_of
from mlx_finetune.dataset.tokens import Tokens

ids = st.integers(0, 2**31 - 1)
row = st.builds(
    lambda pairs, source, line, weight: Tokens(
        np.array([id_ for id_, _ in pairs], np.int32), np.array([m for _, m in pairs], np.bool_), source, line, weight
    ),
    st.lists(st.tuples(ids, st.booleans()), min_size=1, max_size=9),
    st.sampled_from(["a.jsonl", "b/c.csv"]),
    st.integers(1, 10**12),
    st.floats(0.1, 9),
)


def assert_same(one: Tokens, other: Tokens) -> None:
    assert one.ids.dtype == np.int32
    assert one.loss_mask.dtype == np.bool_
    assert one.ids.tolist() == other.ids.tolist()
    assert one.loss_mask.tolist() == other.loss_mask.tolist()
    assert (one.source, one.line, one.weight) == (other.source, other.line, other.weight)


@given(st.lists(st.lists(row, max_size=5), max_size=6), st.integers(1, 40))
def test_rows_come_out_as_they_went_in_from_memory_and_from_a_file(batches, memory_words):
    limit, token_rows.MEMORY_WORDS = token_rows.MEMORY_WORDS, memory_words
    try:
        builder = RowsBuilder()
        for batch in batches:
            builder.add(batch)
        made = builder.finish()
    finally:
        token_rows.MEMORY_WORDS = limit
    rows = [row for batch in batches for row in batch]
    assert len(made) == len(rows)
    for one, other in zip(made, rows, strict=True):
        assert_same(one, other)
    assert made.lengths.tolist() == [len(row.ids) for row in rows]
    assert made.weights.tolist() == [row.weight for row in rows]
    assert [made.where(number) for number in range(len(rows))] == [f"{row.source}:{row.line}" for row in rows]
    largest = max((int(row.ids.max()) for row in rows), default=-1)
    first = next((n for n, row in enumerate(rows) if int(row.ids.max()) == largest), -1)
    assert made.row_with_largest_id() == (first, largest)
    assert made.most_targets() == max((int(row.loss_mask.sum()) for row in rows), default=0)


def numbered(count: int) -> TokenRows:
    return rows_of([Tokens(np.full(3, n, np.int32), np.ones(3, np.bool_), "f", n + 1) for n in range(count)])


def test_pages_given_back_do_not_change_what_is_read(monkeypatch):
    monkeypatch.setattr(token_rows, "MEMORY_WORDS", 10)
    monkeypatch.setattr(token_rows, "_ROWS_BEFORE_RELEASE", 2)
    rows = numbered(50)
    assert [int(rows[n].ids[0]) for n in (49, 0, 7, 7, 30, 1)] == [49, 0, 7, 7, 30, 1]


@pytest.mark.parametrize("words", [1, 2, 5, 6, 100])
def test_targets_are_counted_over_rows_that_lie_in_several_pieces(monkeypatch, words):
    monkeypatch.setattr(token_rows, "_CHUNK_WORDS", words)
    masks = [[True, False, True], [False] * 6, [True] * 4, [True]]
    rows = [Tokens(np.zeros(len(mask), np.int32), np.array(mask), "f", line) for line, mask in enumerate(masks)]
    assert rows_of(rows).most_targets() == 4
    assert rows_of(rows[:2]).most_targets() == 2


def test_rows_are_a_sequence():
    rows = numbered(5)
    assert rows_of(rows) is rows
    assert int(rows[-1].ids[0]) == 4
    assert [int(one.ids[0]) for one in rows[1:4:2]] == [1, 3]
    with pytest.raises(IndexError):
        rows[5]


def test_a_row_may_be_written_to_without_changing_the_others():
    rows = numbered(2)
    rows[0].ids[:] = 9
    assert rows[0].ids.tolist() == [0, 0, 0]
