"""The one thread that touches the model: it loads it, and then takes one step of every answer after the other.

MLX's streams belong to a thread, so nothing of MLX leaves this one. A request is a ``Job`` of one or more answers. Jobs
wait in a bounded line and are taken up in order while there are rows free; answers of all ids are stepped in turns,
each with its own adapter on the model and its own caches, so no cache is ever seen by another model or another client.
A job whose client is gone is given up before the next step.
"""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

import mlx.core as mx

from mlx_finetune.app.serve.models import ModelRack, Served
from mlx_finetune.errors import MlxftError
from mlx_finetune.loopback.refusals import RefusedError, from_error, places
from mlx_finetune.model.answers.batches import BatchDecoder, Piece, Request

Pieces = list[tuple[int, Piece]]
_LONGEST_RETRY_SECONDS = 60


class Job:
    """The answers to one request of a client, and the way back to it. Made in the thread of ``loop``."""

    def __init__(self, served: Served, requests: Sequence[Request], *, is_streamed: bool) -> None:
        self.served = served
        self.requests = tuple(requests)
        self.is_streamed = is_streamed
        self.left = len(self.requests)
        self.is_cancelled = False
        self.held: Pieces = []
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[Pieces | RefusedError] = asyncio.Queue()

    async def next(self) -> Pieces:
        """What came since the last call: (answer, piece), in order; everything at once where it is not streamed.

        Raises ``RefusedError`` where the job failed.
        """
        arrived = await self._arrived.get()
        if isinstance(arrived, RefusedError):
            raise arrived
        return arrived

    def deliver(self, arrived: Pieces | RefusedError) -> None:
        """Hand over from the worker's thread; nothing happens where the server has ended."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._arrived.put_nowait, arrived)


@dataclass(slots=True)
class _Desk:
    """The decoder of one id and whose answers it works on: number of the decoder -> (job, answer)."""

    decoder: BatchDecoder
    rows: dict[int, tuple[Job, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Load:
    """Answers at work and answers that wait."""

    running: int
    waiting: int


class Opener(Protocol):
    """Loads what is served; called in the worker's thread."""

    def __call__(self) -> tuple[ModelRack, tuple[Served, ...]]: ...


class Worker:
    """Start it once; ``tell`` is handed one line about a failure of ours."""

    def __init__(self, open_models: Opener, *, max_rows: int, max_waiting: int, tell: Callable[[str], None]) -> None:
        self._open = open_models
        self._max_rows = max_rows
        self._max_waiting = max_waiting
        self._tell = tell
        self._wake = threading.Condition()
        self._line: deque[tuple[Job, int]] = deque()
        self._cancelled: list[Job] = []
        self._is_ending = False
        self._num_running = 0
        self._seconds_each = 2.0  # how long an answer takes; follows what is seen
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._loaded: Future[tuple[Served, ...]] = Future()

    # --- from any thread ---

    def start(self) -> None:
        """Begin to load."""
        self._thread.start()

    def wait_loaded(self) -> tuple[Served, ...]:
        """What is served, when loading is done. Raises what ``open_models`` raised, after the thread has ended."""
        try:
            return self._loaded.result()
        except Exception:
            self._thread.join()
            raise

    @property
    def is_alive(self) -> bool:
        """False when the thread has ended, whatever the reason."""
        return self._thread.is_alive()

    def load(self) -> Load:
        """What there is to do now."""
        with self._wake:
            return Load(self._num_running, len(self._line))

    def submit(self, job: Job) -> None:
        """Take a job into the line. Raises ``RefusedError`` (503) where it is full or the server is ending.

        A job that finds nothing before it is always taken, however many answers it wants.
        """
        with self._wake:
            if self._is_ending or not self.is_alive:
                raise RefusedError(503, "the server is ending", code="ending", retry_after_seconds=5, closes=True)
            busy = self._num_running + len(self._line)
            if busy and busy + len(job.requests) > self._max_rows + self._max_waiting:
                rounds = 1 + busy // self._max_rows
                seconds = min(max(round(rounds * self._seconds_each), 1), _LONGEST_RETRY_SECONDS)
                raise RefusedError(
                    503,
                    f"the line is full: {busy} answers are at work or waiting",
                    code="queue_full",
                    retry_after_seconds=seconds,
                )
            self._line.extend((job, index) for index in range(len(job.requests)))
            self._wake.notify()

    def cancel(self, job: Job) -> None:
        """Give up what is left of a job; nothing happens where it is done."""
        with self._wake:
            job.is_cancelled = True
            self._cancelled.append(job)
            self._wake.notify()

    def end(self, timeout_seconds: float) -> bool:
        """Give up everything and let the thread end; True when it has."""
        with self._wake:
            self._is_ending = True
            self._wake.notify()
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    # --- in the thread of the model ---

    def _run(self) -> None:
        try:
            self._load_and_work()
        finally:
            mx.clear_streams()  # or the process may abort at its end, when MLX's own threads are still there

    def _load_and_work(self) -> None:
        try:
            rack, served = self._open()
        except BaseException as error:
            self._loaded.set_exception(error)
            return
        self._loaded.set_result(served)
        desks: dict[str, _Desk] = {}
        try:
            while self._await_work(desks):
                self._give_up(desks)
                self._take_up(rack, desks)
                for id_, desk in desks.items():
                    if desk.rows:
                        self._step(rack, id_, desk, desks)
        except BaseException as error:
            self._tell(f"the model's thread ended: {places(error)}")
        finally:
            self._fail_all(desks)

    def _await_work(self, desks: Mapping[str, _Desk]) -> bool:
        """Sleep until there is something to do; False when it is time to end."""
        with self._wake:
            is_idle = not self._line and not self._cancelled and not any(desk.rows for desk in desks.values())
            if is_idle and not self._is_ending:
                mx.clear_cache()  # memory of the answers that were given goes back to the system
                self._wake.wait_for(lambda: self._line or self._cancelled or self._is_ending)
            return not self._is_ending

    def _give_up(self, desks: Mapping[str, _Desk]) -> None:
        with self._wake:
            gone, self._cancelled = set(map(id, self._cancelled)), []
            if gone:
                self._line = deque(entry for entry in self._line if id(entry[0]) not in gone)
        if not gone:
            return
        for desk in desks.values():
            for number in [number for number, (job, _) in desk.rows.items() if id(job) in gone]:
                desk.decoder.remove(number)
                self._leave(desk, number)
        mx.clear_cache()

    def _take_up(self, rack: ModelRack, desks: dict[str, _Desk]) -> None:
        """Begin with those who wait, in order, while there are rows free."""
        while True:
            with self._wake:
                if not self._line or self._num_running >= self._max_rows:
                    return
                job, index = self._line.popleft()
                self._num_running += 1
            id_ = job.served.id
            try:
                if id_ not in desks:
                    desks[id_] = _Desk(self._decoder(rack, job.served))
                number = desks[id_].decoder.add(job.requests[index])
            except MlxftError as error:
                self._count_down(1)
                self._fail(job, from_error(error))
            except Exception as error:
                self._tell(f"an answer could not be begun: {places(error)}")
                self._count_down(1)
                self._fail(job, RefusedError(503, "the model failed; try again", code="failed", retry_after_seconds=5))
            else:
                desks[id_].rows[number] = job, index

    def _decoder(self, rack: ModelRack, served: Served) -> BatchDecoder:
        model = rack.put_on(served.id)
        return BatchDecoder(model, served.tokenizer, max_rows=self._max_rows, beginning=served.beginning)

    def _step(self, rack: ModelRack, id_: str, desk: _Desk, desks: Mapping[str, _Desk]) -> None:
        rack.put_on(id_)
        started = time.perf_counter()
        try:
            pieces = desk.decoder.step()
        except Exception as error:  # of MLX: out of memory; every answer of this decoder is lost
            self._tell(f"a step failed, and {len(desk.rows)} answers with it: {places(error)}")
            for number, (job, _) in list(desk.rows.items()):
                self._leave(desk, number)
                self._fail(job, RefusedError(503, "the model failed; try again", code="failed", retry_after_seconds=5))
            mx.clear_cache()
            return
        self._hand_over(desk, pieces)
        self._note_pace(time.perf_counter() - started, pieces, desks)

    def _hand_over(self, desk: _Desk, pieces: Sequence[tuple[int, Piece]]) -> None:
        jobs: dict[int, Job] = {}
        for number, piece in pieces:
            if number not in desk.rows:
                continue
            job, index = desk.rows[number]
            if piece.finish is not None:
                job.left -= 1
                self._leave(desk, number)
            if piece.error is not None:
                self._fail(job, from_error(piece.error))
            elif not job.is_cancelled:
                job.held.append((index, piece))
                jobs[id(job)] = job
        for job in jobs.values():
            if job.is_streamed or not job.left:
                held, job.held = job.held, []
                job.deliver(held)

    def _fail(self, job: Job, refused: RefusedError) -> None:
        """Tell the client, once, and give up the other answers of the job."""
        if not job.is_cancelled:
            job.deliver(refused)
            self.cancel(job)

    def _leave(self, desk: _Desk, number: int) -> None:
        del desk.rows[number]
        self._count_down(1)

    def _count_down(self, count: int) -> None:
        with self._wake:
            self._num_running -= count

    def _fail_all(self, desks: Mapping[str, _Desk]) -> None:
        with self._wake:
            self._is_ending = True
            jobs = [job for desk in desks.values() for job, _ in desk.rows.values()] + [job for job, _ in self._line]
            self._line.clear()
            self._num_running = 0
        for job in jobs:
            if not job.is_cancelled:
                job.is_cancelled = True
                job.deliver(RefusedError(503, "the server is ending", code="ending", retry_after_seconds=5))

    def _note_pace(self, seconds: float, pieces: Sequence[tuple[int, Piece]], desks: Mapping[str, _Desk]) -> None:
        """Follow how long an answer of 100 tokens takes, for Retry-After."""
        busy = sum(1 for desk in desks.values() if desk.rows)
        if pieces:
            self._seconds_each += 0.05 * (100 * seconds * max(busy, 1) - self._seconds_each)
