from collections import Counter

import numpy as np
import pytest

from mlx_finetune.dataset.pack import pack_lengths
from mlx_finetune.dataset.stream import (
    Stream,
    count_parts,
    epoch_rows,
    length_step,
    make_batch,
    ordered_batches,
    shuffled,
)
from mlx_finetune.dataset.tokens import Tokens


def make_rows(num_rows, *, seed=0, weight=1.0, longest=60):
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(num_rows):
        ids = rng.integers(3, 99, rng.integers(2, longest)).astype(np.int32)
        ids[0] = 1000 + index  # marks the row
        mask = rng.random(len(ids)) < 0.7
        mask[0] = False
        rows.append(Tokens(ids, mask, "rows.jsonl", index + 1, weight))
    return rows


def make_stream(rows, *, batch_size=3, accumulation=2, packed_length=None):
    return Stream(rows, batch_size=batch_size, accumulation=accumulation, packed_length=packed_length, seed=5)


def seen_rows(stream, steps):
    return [row for step in steps for batch in stream.microbatches(step) for row in batch.rows]


@pytest.mark.parametrize("packed_length", [None, 80])
@pytest.mark.parametrize("num_rows", [1, 2, 7, 64, 203])
def test_every_row_is_used_once_an_epoch(packed_length, num_rows):
    stream = make_stream(make_rows(num_rows), packed_length=packed_length)
    for epoch in range(3):
        first = sum(stream.steps_in_epoch(before) for before in range(epoch))
        steps = range(first, first + stream.steps_in_epoch(epoch))
        assert Counter(seen_rows(stream, steps)) == Counter(range(num_rows))


@pytest.mark.parametrize("packed_length", [None, 80])
def test_any_step_can_be_found_without_the_ones_before_it(packed_length):
    rows = make_rows(50)
    straight = make_stream(rows, packed_length=packed_length)
    expected = [straight.microbatches(step) for step in range(25)]
    for step in reversed(range(25)):
        found = make_stream(rows, packed_length=packed_length).microbatches(step)
        assert len(found) == len(expected[step])
        for one, other in zip(found, expected[step], strict=True):
            assert one.rows == other.rows
            assert np.array_equal(one.tokens, other.tokens)
            assert np.array_equal(one.loss_mask, other.loss_mask)


def test_epochs_differ_in_order_and_in_neighbours():
    stream = make_stream(make_rows(60))
    per_epoch = stream.steps_in_epoch(0)
    epochs = [
        [batch.rows for s in range(e * per_epoch, (e + 1) * per_epoch) for batch in stream.microbatches(s)]
        for e in (0, 1)
    ]
    assert epochs[0] != epochs[1]
    assert {frozenset(rows) for rows in epochs[0]} != {frozenset(rows) for rows in epochs[1]}


@pytest.mark.parametrize("packed_length", [None, 80])
def test_batches_hold_the_tokens_of_their_rows_and_nothing_else(packed_length):
    rows = make_rows(40)
    stream = make_stream(rows, packed_length=packed_length)
    for step in range(stream.steps_in_epoch(0)):
        for batch in stream.microbatches(step):
            assert batch.tokens.shape == batch.loss_mask.shape == batch.segment_ids.shape
            kept = Counter(batch.tokens[batch.segment_ids > 0].tolist())
            assert kept == Counter(token for row in batch.rows for token in rows[row].ids.tolist())
            assert not batch.loss_mask[batch.segment_ids == 0].any()
            assert batch.num_targets == sum(int(rows[row].loss_mask[1:].sum()) for row in batch.rows)


def test_unpacked_batches_have_few_shapes_and_little_padding():
    stream = make_stream(make_rows(2000, longest=700), batch_size=4, accumulation=1)
    batches = [batch for step in range(stream.steps_in_epoch(0)) for batch in stream.microbatches(step)]
    assert len({batch.tokens.shape for batch in batches}) <= 16
    used = sum(batch.num_tokens for batch in batches)
    assert used / sum(batch.num_positions for batch in batches) > 0.88  # random order gives 0.57 (PERF.md section 3)


def test_packed_batches_have_one_shape():
    stream = make_stream(make_rows(300), packed_length=128)
    shapes = {batch.tokens.shape for step in range(stream.steps_in_epoch(0)) for batch in stream.microbatches(step)}
    assert shapes == {(3, 129)}


def test_weights_repeat_rows_and_fractions_take_turns():
    rows = [*make_rows(10, weight=2.0), *make_rows(10, weight=0.5)]
    first, second = (Counter(epoch_rows(rows, 0, epoch)) for epoch in (0, 1))
    assert all(first[row] == second[row] == 2 for row in range(10))
    halves = [{row for row in seen if row >= 10} for seen in (first, second)]
    assert [len(half) for half in halves] == [5, 5]
    assert halves[0] | halves[1] == set(range(10, 20))


def test_the_last_step_of_an_epoch_has_what_is_left():
    stream = make_stream(make_rows(10), batch_size=3, accumulation=3)
    assert stream.steps_in_epoch(0) == 2
    assert [len(stream.microbatches(step)) for step in (0, 1)] == [3, 1]


def test_fractional_epochs_are_rounded_up_to_steps():
    stream = make_stream(make_rows(10), batch_size=1, accumulation=1)
    assert [stream.total_steps(epochs) for epochs in (0.05, 0.5, 1, 1.25, 3)] == [1, 5, 10, 13, 30]


def test_progress_counts_epochs():
    stream = make_stream(make_rows(12), batch_size=3, accumulation=1)
    assert [stream.progress(step) for step in (0, 2, 4, 6)] == [0.0, 0.5, 1.0, 1.5]


def test_the_shuffle_is_the_one_of_philox_and_never_changes():
    assert shuffled(8, 1, 2).tolist() == [7, 1, 3, 0, 4, 2, 6, 5]
    assert sorted(shuffled(100, 3).tolist()) == list(range(100))
    assert shuffled(100, 3).tolist() != shuffled(100, 4).tolist()


def test_evaluation_batches_hold_every_row_once_in_a_fixed_order():
    rows = make_rows(11)
    batches = list(ordered_batches(rows, 4))
    assert Counter(row for batch in batches for row in batch.rows) == Counter(range(11))
    assert [batch.rows for batch in batches] == [batch.rows for batch in ordered_batches(rows, 4)]
    assert list(ordered_batches([], 4)) == []


@pytest.mark.parametrize("longest", [1, 7, 8, 100, 661, 4096, 100_000])
def test_padded_lengths_come_from_at_most_sixteen(longest):
    step = length_step(longest)
    assert step % 8 == 0
    assert -(-longest // step) <= 16


def test_the_first_token_of_a_document_is_never_a_target():
    rows = [Tokens(np.array([5, 6], np.int32), np.array([True, True]), "f", 1) for _ in range(3)]
    batch = make_batch(rows, [[0, 1, 2]], num_sequences=1, length=7, is_packed=True)
    assert batch.num_targets == 3


def test_a_stream_without_rows_is_refused():
    with pytest.raises(ValueError, match="at least one row"):
        make_stream([])


@pytest.mark.parametrize("packed_length", [None, 80])
@pytest.mark.parametrize("pieces", [2, 3, 4])
def test_a_microbatch_in_pieces_has_the_same_rows_in_the_same_steps(packed_length, pieces):
    rows = make_rows(50)
    whole = Stream(rows, batch_size=4, accumulation=2, packed_length=packed_length, seed=5)
    cut = Stream(rows, batch_size=4, accumulation=2, packed_length=packed_length, seed=5, pieces=pieces)
    assert cut.steps_in_epoch(0) == whole.steps_in_epoch(0)
    for step in range(whole.steps_in_epoch(0) + 2):
        big, small = whole.microbatches(step), cut.microbatches(step)
        assert [row for batch in small for row in batch.rows] == [row for batch in big for row in batch.rows]
        assert max(batch.tokens.shape[0] for batch in small) <= -(-4 // pieces)
        assert sum(batch.num_targets for batch in small) == sum(batch.num_targets for batch in big)


@pytest.mark.parametrize("packed_length", [None, 80])
@pytest.mark.parametrize("microbatch", [1, 2, 3, 4, 5, 8, 100])
def test_a_microbatch_of_another_size_has_the_same_rows_in_the_same_steps(packed_length, microbatch):
    rows = make_rows(50)
    plain = Stream(rows, batch_size=4, accumulation=2, packed_length=packed_length, seed=5)
    other = Stream(rows, batch_size=4, accumulation=2, packed_length=packed_length, seed=5, microbatch=microbatch)
    assert other.total_steps(1.5) == plain.total_steps(1.5)
    for step in range(plain.steps_in_epoch(0) + 2):
        usual, found = plain.microbatches(step), other.microbatches(step)
        assert other.rows(step) == plain.rows(step)
        assert sorted(row for batch in found for row in batch.rows) == sorted(
            row for batch in usual for row in batch.rows
        )
        assert sum(batch.num_targets for batch in found) == sum(batch.num_targets for batch in usual)
        assert max(batch.tokens.shape[0] for batch in found) <= microbatch
        assert [batch.part for batch in found] == list(range(len(found)))
        if len(usual) == 2 and len(usual[1].rows) == len(usual[0].rows) == 4:
            assert len(found) == count_parts(4, 2, microbatch)


def test_rows_that_are_joined_are_dealt_out_by_length():
    stream = Stream(make_rows(64), batch_size=1, accumulation=8, packed_length=None, seed=5, microbatch=4)
    short, long = (max(batch.lengths) for batch in stream.microbatches(0))
    assert short <= min(stream.microbatches(0)[1].lengths) <= long


def test_pieces_cut_a_microbatch_of_another_size_further():
    stream = Stream(make_rows(50), batch_size=4, accumulation=2, packed_length=None, seed=5, microbatch=2, pieces=2)
    assert {batch.tokens.shape[0] for batch in stream.microbatches(0)} == {1}


@pytest.mark.parametrize("microbatch", [None, 2, 5])
@pytest.mark.parametrize(("packed_length", "pieces"), [(None, 1), (80, 1), (None, 2), (80, 2)])
def test_shapes_are_those_of_the_microbatches_without_building_them(packed_length, pieces, microbatch):
    parts = {"packed_length": packed_length, "pieces": pieces, "microbatch": microbatch}
    stream = Stream(make_rows(37), batch_size=3, accumulation=2, seed=5, **parts)
    steps = stream.steps_in_epoch(0)
    for epoch in range(2):
        expected = [
            [(one.tokens.shape[0], one.tokens.shape[1] - 1) for one in stream.microbatches(epoch * steps + step)]
            for step in range(stream.steps_in_epoch(epoch))
        ]
        assert stream.shapes(epoch) == expected


def grouped_plainly(stream_rows, batch_size, packed_length, seed, epoch):
    """The microbatches of an epoch by lists and sorting, which is how their order is defined."""
    lengths = [len(row.ids) for row in stream_rows]
    order = epoch_rows(stream_rows, seed, epoch).tolist()
    window = batch_size * 64
    if packed_length:
        packs = pack_lengths(lengths, packed_length + 1, order)
        sequences = [packs[index] for index in shuffled(len(packs), seed, 3, epoch)]
        window = len(sequences)
    else:
        sequences = [[row] for row in order]
    batches = []
    for start in range(0, len(sequences), window):
        part = sequences[start : start + window]
        if not packed_length:
            part = sorted(part, key=lambda rows: lengths[rows[0]])
        batches += [part[at : at + batch_size] for at in range(0, len(part), batch_size)]
    return [batches[index] for index in shuffled(len(batches), seed, 4, epoch)]


@pytest.mark.parametrize("packed_length", [None, 80])
@pytest.mark.parametrize(("num_rows", "weight"), [(1, 1.0), (203, 1.0), (700, 1.0), (100, 0.3), (90, 2.5)])
def test_batches_are_those_of_the_plain_algorithm_row_for_row(packed_length, num_rows, weight):
    rows = make_rows(num_rows, weight=weight)
    stream = make_stream(rows, packed_length=packed_length)
    for epoch in range(3):
        first = sum(stream.steps_in_epoch(before) for before in range(epoch))
        steps = range(first, first + stream.steps_in_epoch(epoch))
        seen = [batch.rows for step in steps for batch in stream.microbatches(step)]
        plain = grouped_plainly(rows, 3, packed_length, 5, epoch)
        assert seen == [tuple(row for rows_ in group for row in rows_) for group in plain]


def test_batches_of_an_evaluation_are_made_when_they_are_asked_for_and_can_be_asked_for_again():
    rows = make_rows(11)
    batches = ordered_batches(rows, 4)
    assert len(batches) == 3
    assert [batch.rows for batch in batches[1:]] == [batches[1].rows, batches[2].rows]
    assert batches[-1].rows == batches[2].rows
    assert len(ordered_batches([], 4)) == 0
    with pytest.raises(IndexError):
        batches[3]
