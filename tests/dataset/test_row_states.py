"""Hidden states of rows: what was put in comes out at the right place of a batch, from memory and from a file."""

import numpy as np
import pytest

from mlx_finetune.dataset.row_states import FileStore, MemoryStore, RowStates, groups_by_length, num_states
from mlx_finetune.dataset.stream import Stream, make_batch, ordered_batches
from mlx_finetune.dataset.tokens import Tokens

WIDTH = 3
LENGTHS = np.array([5, 1, 9, 2, 7])


def rows():
    return [
        Tokens(np.full(n, 10 * row, np.int32), np.ones(n, np.bool_), "rows.jsonl", row) for row, n in enumerate(LENGTHS)
    ]


def of_row(row, dtype=np.float32):
    """States that say which row and which position they are of."""
    positions = np.arange(max(0, int(LENGTHS[row]) - 1))
    return (1 + 100 * row + positions[:, None] + np.zeros(WIDTH)).astype(dtype)


@pytest.fixture(params=["memory", "file"])
def states(request, tmp_path):
    total = int(num_states(LENGTHS).sum())
    store = MemoryStore(total, WIDTH, np.float32) if request.param == "memory" else FileStore(tmp_path, WIDTH, "f4")
    filled = RowStates(LENGTHS, store)
    for row in (3, 0, 2, 1, 4):  # in any order
        padding = np.full((4, WIDTH), -1, np.float32)
        filled.put(row, np.concatenate([of_row(row), padding]))
    yield filled
    store.close()


def test_rows_of_a_padded_batch_have_their_states_and_padding_has_none(states):
    batch = make_batch(rows(), [[2], [1], [0]], num_sequences=4, length=10)
    found = states.of(batch)
    assert found.shape == (4, 10, WIDTH)
    for sequence, row in enumerate((2, 1, 0)):
        own = of_row(row)
        assert np.array_equal(found[sequence, : len(own)], own)
        assert not found[sequence, len(own) :].any()
    assert not found[3].any()


def test_rows_of_a_pack_stand_where_their_tokens_do(states):
    batch = make_batch(rows(), [[4, 0], [2, 3, 1]], num_sequences=2, length=11, is_packed=True)
    found = states.of(batch)
    assert np.array_equal(found[0, :6], of_row(4))
    assert not found[0, 6].any()  # the last token of a row predicts nothing
    assert np.array_equal(found[0, 7:11], of_row(0))
    assert np.array_equal(found[1, :8], of_row(2))
    assert np.array_equal(found[1, 9:10], of_row(3))


@pytest.mark.parametrize("packed_length", [None, 12])
def test_batches_of_a_stream_and_of_an_evaluation_bring_the_states_of_their_rows(states, packed_length):
    stream = Stream(rows(), batch_size=2, accumulation=1, packed_length=packed_length, seed=1)
    evaluation = ordered_batches(rows(), 2)
    assert stream.microbatches(0)[0].entering is None
    assert evaluation[0].entering is None
    stream.states = evaluation.states = states
    for batch in [*(one for step in range(4) for one in stream.microbatches(step)), *evaluation]:
        assert batch.entering is not None
        for sequence, position in zip(*np.nonzero(batch.entering[:, :, 0]), strict=True):
            row = batch.tokens[sequence, position] // 10
            at = int(batch.entering[sequence, position, 0]) - 1 - 100 * row
            assert position - at == np.flatnonzero(batch.tokens[sequence] // 10 == row)[0] or row == 0
        inner = sum(max(0, LENGTHS[row] - 1) for row in batch.rows)
        assert np.count_nonzero(batch.entering[:, :, 0]) == inner


def test_a_file_has_no_name_so_nothing_is_left_of_it(tmp_path):
    store = FileStore(tmp_path, WIDTH, np.float16)
    store.write(4, np.ones((2, WIDTH), np.float16))
    assert list(tmp_path.iterdir()) == []
    assert store.read(4, 6).tolist() == [[1.0] * WIDTH] * 2
    store.close()


def test_groups_are_of_the_lengths_alone_and_hold_every_row_once():
    groups = list(groups_by_length(LENGTHS, 12))
    assert groups == [[1, 3, 0], [4], [2]]
    assert list(groups_by_length(LENGTHS, 1)) == [[1], [3], [0], [4], [2]]  # a row longer than the limit is alone
    assert list(groups_by_length(np.array([], np.int64), 12)) == []
