from bisect import bisect_left, insort

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_finetune.dataset.pack import pack_lengths


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(50, 120), st.randoms())
def test_every_row_is_packed_once_and_no_pack_overflows(lengths, capacity, random):
    order = list(range(len(lengths)))
    random.shuffle(order)
    packs = pack_lengths(lengths, capacity, order)
    assert sorted(row for pack in packs for row in pack) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in pack) <= capacity for pack in packs)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.randoms())
def test_the_number_of_packs_does_not_depend_on_the_order(lengths, random):
    order = list(range(len(lengths)))
    first = len(pack_lengths(lengths, 64, order))
    random.shuffle(order)
    assert len(pack_lengths(lengths, 64, order)) == first


def test_best_fit_fills_the_fullest_pack_that_has_room():
    assert pack_lengths([6, 5, 4, 3, 2], 10, range(5)) == [[0, 2], [1, 3, 4]]


def test_a_row_that_appears_twice_in_the_order_is_packed_twice():
    packs = pack_lengths([3, 4], 8, [0, 1, 0])
    assert sorted(row for pack in packs for row in pack) == [0, 0, 1]


@pytest.mark.parametrize("length", [0, 9])
def test_a_row_that_cannot_be_packed_is_named(length):
    with pytest.raises(ValueError, match="row 1"):
        pack_lengths([3, length], 8, [0, 1])


def plainly(lengths, capacity, order):
    """The same packing with one sorted list of (room, pack), which costs the square of the number of packs."""
    packs, room = [], []
    for row in sorted(order, key=lambda index: -lengths[index]):
        place = bisect_left(room, (lengths[row], -1))
        if place == len(room):
            free, pack = capacity, len(packs)
            packs.append([])
        else:
            free, pack = room.pop(place)
        packs[pack].append(row)
        if free > lengths[row]:
            insort(room, (free - lengths[row], pack))
    return packs


@given(st.lists(st.integers(1, 50), max_size=80), st.integers(50, 130), st.randoms())
def test_packs_are_those_of_the_plain_algorithm_row_for_row(lengths, capacity, random):
    order = [row for row in range(len(lengths)) for _ in range(random.randint(1, 2))]
    random.shuffle(order)
    assert pack_lengths(lengths, capacity, order) == plainly(lengths, capacity, order)
    assert pack_lengths(np.array(lengths, np.int64), capacity, np.array(order, np.int64)) == plainly(
        lengths, capacity, order
    )
