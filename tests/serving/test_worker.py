"""The model's thread, with a decoder that does what the test says: failures stay with those they belong to."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from processes import wait_until

from mlx_finetune.app.serve import worker as module
from mlx_finetune.app.serve.worker import Job, Worker
from mlx_finetune.errors import ModelError
from mlx_finetune.loopback.refusals import RefusedError
from mlx_finetune.model.answers.batches import Piece, Request
from mlx_finetune.model.answers.sampling import Sampling


class FakeServed:
    """As much of ``Served`` as the worker looks at."""

    tokenizer, beginning = None, ()

    def __init__(self, id_: str) -> None:
        self.id = id_


class FakeRack:
    """Notes whose adapter was on when a decoder took a step."""

    def __init__(self) -> None:
        self.on: str | None = None

    def put_on(self, id_: str) -> str:
        self.on = id_
        return id_


class FakeDecoder:
    """Says the numbers from 1 to ``max_tokens``; ``behave`` may raise in a step, or hold it up."""

    rack: FakeRack
    behave: Callable[["FakeDecoder"], object]
    made: list["FakeDecoder"]

    def __init__(self, model: str, tokenizer: object, *, max_rows: int, beginning: object) -> None:
        self.id, self.max_rows = model, max_rows
        self.rows: dict[int, list[int]] = {}
        self.num_added = 0
        FakeDecoder.made.append(self)

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, request: Request) -> int:
        if list(request.prompt_ids) == [13]:
            raise ModelError("bad luck", "take another")
        self.num_added += 1
        self.rows[self.num_added] = [0, request.sampling.max_tokens]
        return self.num_added

    def remove(self, number: int) -> None:
        self.rows.pop(number, None)

    def step(self) -> list[tuple[int, Piece]]:
        assert FakeDecoder.rack.on == self.id, "another adapter is on the model"
        assert len(self.rows) <= self.max_rows
        try:
            FakeDecoder.behave(self)
        except BaseException:
            self.rows.clear()
            raise
        pieces: list[tuple[int, Piece]] = []
        for number, row in list(self.rows.items()):
            row[0] += 1
            is_last = row[0] == row[1]
            pieces.append((number, Piece(f"{self.id}{row[0]} ", row[0], "length" if is_last else None)))
            if is_last:
                del self.rows[number]
        return pieces


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(module, "BatchDecoder", FakeDecoder)
    FakeDecoder.rack, FakeDecoder.behave, FakeDecoder.made = FakeRack(), lambda decoder: None, []
    return []


def run(work: Callable[[Worker], Coroutine[Any, Any, None]], said: list[str], *, rows: int = 2, line: int = 4) -> None:
    """Do ``work`` beside a worker, which ends afterwards."""
    worker = Worker(
        lambda: (FakeDecoder.rack, ()),  # pyright: ignore[reportArgumentType]
        max_rows=rows,
        max_waiting=line,
        tell=said.append,
    )
    worker.start()
    worker.wait_loaded()
    try:
        asyncio.run(asyncio.wait_for(work(worker), 30))
    finally:
        assert worker.end(10)


def job(
    id_: str = "a", *, count: int = 1, tokens: int = 3, is_streamed: bool = False, ids: tuple[int, ...] = (1,)
) -> Job:
    requests = [Request(ids, Sampling(max_tokens=tokens)) for _ in range(count)]
    return Job(FakeServed(id_), requests, is_streamed=is_streamed)  # pyright: ignore[reportArgumentType]


async def text_of(one: Job) -> str:
    return "".join(piece.text for _, piece in await one.next())


def test_each_adapter_is_on_the_model_when_its_answers_take_a_step(said: list[str]) -> None:
    async def work(worker: Worker) -> None:
        jobs = [job(id_) for id_ in "abab"]
        for one in jobs:
            worker.submit(one)
        assert [await text_of(one) for one in jobs] == ["a1 a2 a3 ", "b1 b2 b3 ", "a1 a2 a3 ", "b1 b2 b3 "]

    run(work, said)
    assert len(FakeDecoder.made) == 2


def test_a_streamed_job_gets_each_piece_and_another_one_all_at_once(said: list[str]) -> None:
    async def work(worker: Worker) -> None:
        streamed = job(is_streamed=True)
        worker.submit(streamed)
        assert [await text_of(streamed) for _ in range(3)] == ["a1 ", "a2 ", "a3 "]
        whole = job(count=2)
        worker.submit(whole)
        pieces = await whole.next()
        assert sorted(index for index, _ in pieces) == [0, 0, 0, 1, 1, 1]

    run(work, said)


def test_a_failing_step_fails_the_answers_of_that_adapter_only(said: list[str]) -> None:
    def fail_once(decoder: FakeDecoder) -> None:
        if decoder.id == "a" and not said:
            raise RuntimeError("secret prompt")

    async def work(worker: Worker) -> None:
        FakeDecoder.behave = fail_once
        first, other = job("a"), job("b")
        worker.submit(first)
        worker.submit(other)
        with pytest.raises(RefusedError) as caught:
            await first.next()
        assert caught.value.status == 503
        assert await text_of(other) == "b1 b2 b3 "
        again = job("a")
        worker.submit(again)
        assert await text_of(again) == "a1 a2 a3 "
        assert (worker.load().running, worker.load().waiting) == (0, 0)

    run(work, said)
    assert "RuntimeError" in said[0]
    assert "secret" not in said[0]


def test_an_answer_that_cannot_begin_is_a_400_and_takes_its_job_along(said: list[str]) -> None:
    async def work(worker: Worker) -> None:
        bad = job(count=2, ids=(13,))
        worker.submit(bad)
        with pytest.raises(RefusedError) as caught:
            await bad.next()
        assert (caught.value.status, caught.value.message) == (400, "bad luck; take another")
        good = job()
        worker.submit(good)
        assert await text_of(good) == "a1 a2 a3 "
        assert worker.load().running == 0

    run(work, said)


def test_a_full_line_refuses_but_an_idle_server_takes_any_job(said: list[str]) -> None:
    gate = threading.Event()

    async def work(worker: Worker) -> None:
        FakeDecoder.behave = lambda decoder: gate.wait(20)
        large = job(count=9)  # more than there are rows and places
        worker.submit(large)
        with pytest.raises(RefusedError) as caught:
            worker.submit(job())
        assert caught.value.status == 503
        assert 1 <= int(caught.value.headers["retry-after"]) <= 60
        gate.set()
        assert len(await large.next()) == 27

    run(work, said)


def test_a_job_that_is_given_up_frees_its_rows_and_its_places(said: list[str]) -> None:
    gate = threading.Event()

    async def work(worker: Worker) -> None:
        FakeDecoder.behave = lambda decoder: gate.wait(20)
        first, second = job(count=2, tokens=10**9), job(count=3, tokens=10**9)
        worker.submit(first)
        worker.submit(second)
        await asyncio.to_thread(wait_until, lambda: worker.load().running == 2)
        worker.cancel(second)
        worker.cancel(first)
        gate.set()
        await asyncio.to_thread(wait_until, lambda: worker.load() == module.Load(0, 0))
        assert all(not decoder.rows for decoder in FakeDecoder.made)
        last = job()
        worker.submit(last)
        assert await text_of(last) == "a1 a2 a3 "

    run(work, said)


def test_at_the_end_everybody_who_waits_is_told(said: list[str]) -> None:
    gate = threading.Event()

    async def work(worker: Worker) -> None:
        FakeDecoder.behave = lambda decoder: gate.wait(20)
        jobs = [job(tokens=10**9) for _ in range(4)]
        for one in jobs:
            worker.submit(one)
        await asyncio.to_thread(wait_until, lambda: worker.load().running == 2)
        worker.end(0)
        gate.set()
        for one in jobs:
            with pytest.raises(RefusedError) as caught:
                await one.next()
            assert caught.value.status == 503
        with pytest.raises(RefusedError):
            worker.submit(job())

    run(work, said)


def test_what_goes_wrong_while_loading_is_raised_where_it_is_waited_for() -> None:
    def fail() -> Any:
        raise ModelError("no such model")

    worker = Worker(fail, max_rows=1, max_waiting=1, tell=print)
    worker.start()
    with pytest.raises(ModelError, match="no such model"):
        worker.wait_loaded()
    assert not worker.is_alive
