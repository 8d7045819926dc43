"""The batches of a stream, made in a thread while the step before them is computed: the loop does not wait for data.

A stream that cannot be read ahead, because what it gives depends on the step before, is asked when the step comes, in
the thread of the loop.

One step ahead and no more, so memory is that of one step's batches. What is made, and in which order, is what the
stream would have made when asked; an error of the thread is raised where the batches are asked for.
"""

import time
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from mlx_finetune.dataset.stream import Batch

if TYPE_CHECKING:
    from concurrent.futures import Future


class Steps(Protocol):
    """What is asked of a ``Stream`` here."""

    @property
    def can_read_ahead(self) -> bool:
        """Whether a step can be had before the one before it was taken."""
        ...

    def share(self, step: int, rank: int, size: int) -> list[Batch]:
        """The microbatches of the 0-based optimizer step that a rank computes."""
        ...

    def rows(self, step: int) -> list[int]:
        """The rows of the step, on whichever rank."""
        ...

    def progress(self, step: int) -> float:
        """Epochs done after ``step`` optimizer steps."""
        ...


@dataclass(frozen=True, slots=True)
class StepBatches:
    """This rank's microbatches of one optimizer step, all rows of it, and the epochs that are done after it."""

    microbatches: list[Batch]
    rows: list[int]
    progress: float


class Ahead:
    """A stream whose next step is always on its way. Use it in ``with``; its thread ends there."""

    def __init__(self, stream: Steps, steps: range, *, rank: int = 0, num_ranks: int = 1) -> None:
        """Begins with the first of ``steps`` at once. Nobody else may use ``stream`` until this is closed."""
        from concurrent.futures import ThreadPoolExecutor  # 5 ms that a help page must not pay

        self.waited_seconds = 0.0
        self._stream = stream
        self._end = steps.stop
        self._rank, self._num_ranks = rank, num_ranks
        self._pool = ThreadPoolExecutor(1, "batches")
        self._step = -1
        self._next: Future[StepBatches] | None = None
        self._begin(steps.start)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def take(self, step: int) -> StepBatches:
        """The batches of the 0-based ``step``; those of the step after it are begun. Raises what the stream raises."""
        if not self._stream.can_read_ahead:
            return self._make(step)
        started = time.perf_counter()
        if self._next is None or self._step != step:
            self._begin(step)
        assert self._next is not None, f"step {step} is past the end"
        batches = self._next.result()
        self.waited_seconds += time.perf_counter() - started
        self._begin(step + 1)
        return batches

    def _begin(self, step: int) -> None:
        self._step = step
        is_begun = step < self._end and self._stream.can_read_ahead
        self._next = self._pool.submit(self._make, step) if is_begun else None

    def _make(self, step: int) -> StepBatches:
        microbatches = self._stream.share(step, self._rank, self._num_ranks)
        return StepBatches(microbatches, self._stream.rows(step), self._stream.progress(step + 1))
