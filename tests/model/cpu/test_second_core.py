"""Work shared out to two threads: the same results in the same order, and failures that end both."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mlx_finetune.model.cpu.second_core import SecondCore
from mlx_finetune.model.likelihoods import LikelihoodModel, Scored
from mlx_finetune.model.load import load_model
from mlx_finetune.model.sources.fetch import fetch_model
from mlx_finetune.train.losses import chunk_rows

TinyModel = Callable[..., Path]


def test_pieces_come_back_in_their_order_from_two_threads() -> None:
    both, threads = threading.Barrier(2, timeout=10), set[int]()

    def compute(thread: int, piece: int) -> int:
        threads.add(thread)
        if piece < 2:
            both.wait()  # the first two pieces are at work at the same time, or this fails
        return piece * piece

    done: list[int] = []
    with SecondCore() as second:
        assert second.map(range(20), compute, done.append) == [piece * piece for piece in range(20)]
    assert threads == {0, 1}
    assert done[-1] == 20
    assert done == sorted(done)


@pytest.mark.parametrize("failing", [0, 1])
def test_what_fails_in_either_thread_ends_both(failing: int) -> None:
    started, seen = threading.Barrier(2, timeout=10), list[int]()

    def compute(thread: int, piece: int) -> int:
        if piece < 2:
            started.wait()
        if thread == failing:
            raise ValueError("bad piece")
        seen.append(piece)
        return piece

    with SecondCore() as second:
        with pytest.raises(ValueError, match="bad piece"):
            second.map(range(100_000), compute, lambda _: None)
        assert len(seen) < 100_000
        assert second.map([5, 6, 7], lambda _, piece: piece, lambda _: None) == [5, 6, 7]  # it goes on afterwards


def test_a_signal_while_progress_is_shown_ends_both() -> None:
    def done(_: int) -> None:
        raise KeyboardInterrupt

    seen: list[int] = []
    with SecondCore() as second, pytest.raises(KeyboardInterrupt):
        second.map(range(100_000), lambda _, piece: seen.append(piece), done)
    assert len(seen) < 100_000


def test_losses_on_both_cores_are_the_same_bits(tiny_model: TinyModel) -> None:
    local = fetch_model(str(tiny_model("llama")), report=lambda _: None)
    model = load_model(local, quantize=None, compute_dtype="float32", on_gpu=False).model
    model.eval()
    ids = np.random.default_rng(2).integers(3, 200, 5000).astype(np.int32)
    rows = [Scored(ids[start : start + 500], np.arange(1, 500)) for start in range(0, 5000, 500)]
    alone = LikelihoodModel(model, chunk_rows).losses(rows)
    counted: list[int] = []
    with SecondCore() as second:
        likelihoods = LikelihoodModel(model, chunk_rows, second)
        for _ in range(2):
            shared = likelihoods.losses(rows, counted.append)
            assert all(np.array_equal(one, other) for one, other in zip(alone, shared, strict=True))
    assert counted[-1] == 10
