import threading
import time

import numpy as np
import pytest

from mlx_finetune.dataset.ahead import Ahead
from mlx_finetune.dataset.stream import Stream
from mlx_finetune.dataset.tokens import Tokens


def make_stream(packed_length=None):
    rng = np.random.default_rng(3)
    rows = [
        Tokens(rng.integers(0, 99, n).astype(np.int32), rng.random(n) < 0.5, "r", n) for n in rng.integers(2, 40, 30)
    ]
    return Stream(rows, batch_size=3, accumulation=2, packed_length=packed_length, seed=1)


@pytest.mark.parametrize("packed_length", [None, 64])
def test_the_steps_are_those_of_the_stream_in_its_order(packed_length):
    alone, stream = make_stream(packed_length), make_stream(packed_length)
    with Ahead(stream, range(2, 20)) as ahead:
        for step in range(2, 20):
            taken = ahead.take(step)
            expected = alone.microbatches(step)
            assert [batch.rows for batch in taken.microbatches] == [batch.rows for batch in expected]
            assert all(np.array_equal(a.tokens, b.tokens) for a, b in zip(taken.microbatches, expected, strict=True))
            assert taken.progress == alone.progress(step + 1)


def test_a_step_out_of_turn_is_made_when_it_is_asked_for():
    alone = make_stream()
    with Ahead(make_stream(), range(20)) as ahead:
        for step in (0, 7, 7, 3):
            assert [b.rows for b in ahead.take(step).microbatches] == [b.rows for b in alone.microbatches(step)]


class Slow:
    """A stream that notes what it was asked for, fails at one step, and takes its time."""

    def __init__(self, fails_at=None, *, can_read_ahead=True):
        self.asked, self.fails_at, self.threads = [], fails_at, set()
        self.can_read_ahead = can_read_ahead

    def rows(self, step):
        return [step]

    def share(self, step, rank, size):
        self.asked.append(step)
        self.threads.add(threading.current_thread().name)
        if step == self.fails_at:
            raise OSError("the file is gone")
        return []

    def progress(self, step):
        return float(step)


def wait_until(condition):
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
    assert condition()


def test_one_step_is_made_ahead_and_no_more_and_none_after_the_last():
    stream = Slow()
    with Ahead(stream, range(3)) as ahead:
        wait_until(lambda: stream.asked == [0])
        ahead.take(0)
        wait_until(lambda: stream.asked == [0, 1])
        time.sleep(0.02)
        assert stream.asked == [0, 1]
        ahead.take(1)
        ahead.take(2)
    assert stream.asked == [0, 1, 2]
    assert "MainThread" not in stream.threads


def test_what_depends_on_the_step_before_is_made_when_it_is_asked_for_and_by_the_loop():
    stream = Slow(can_read_ahead=False)
    with Ahead(stream, range(3)) as ahead:
        assert ahead.take(0).rows == [0]
        time.sleep(0.02)
        assert stream.asked == [0]
        ahead.take(1)
    assert stream.asked == [0, 1]
    assert stream.threads == {threading.current_thread().name}


def test_an_error_comes_out_where_the_step_is_asked_for_and_the_thread_ends():
    before = threading.active_count()
    with Ahead(Slow(fails_at=1), range(5)) as ahead:
        ahead.take(0)
        with pytest.raises(OSError, match="the file is gone"):
            ahead.take(1)
    assert threading.active_count() == before


def test_the_thread_ends_with_the_loop_also_when_that_fails():
    def fail():
        with Ahead(Slow(), range(5)) as ahead:
            ahead.take(0)
            raise KeyError

    before = threading.active_count()
    with pytest.raises(KeyError):
        fail()
    assert threading.active_count() == before


def test_each_rank_gets_its_share_and_the_rows_of_all():
    alone = make_stream()
    for rank in range(2):
        with Ahead(make_stream(), range(4), rank=rank, num_ranks=2) as ahead:
            for step in range(4):
                taken = ahead.take(step)
                expected = alone.share(step, rank, 2)
                assert [batch.rows for batch in taken.microbatches] == [batch.rows for batch in expected]
                assert taken.rows == alone.rows(step)
