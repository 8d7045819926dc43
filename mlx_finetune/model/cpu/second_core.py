"""A second thread for work that has no gradient: pieces are shared out between it and the thread that asks.

MLX's elementwise work uses one core of a CPU (``train.both_cores`` has the measurements), so two threads with one BLAS
thread each are faster than one with two. Each piece is computed by one thread from start to end, so which one it is
changes no bit. The thread is kept while the block runs, because MLX keeps a stream for ever for each that was started.
"""

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from mlx_finetune.model.cpu.threads import KeptThreads

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class SecondCore:
    """One more thread, from its first use to ``close``."""

    def __init__(self) -> None:
        self._threads = KeptThreads(1, "mlxft-second")

    def __enter__(self) -> "SecondCore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def map(
        self, pieces: Sequence[_In], compute: Callable[[int, _In], _Out], done: Callable[[int], None]
    ) -> list[_Out]:
        """``compute(thread, piece)`` of each piece, in their order; thread 0 asks, 1 is the other.

        Pieces are taken from the front. ``done`` is called in the asking thread with the number that are finished; what
        it raises, a Ctrl-C too, ends both after the piece at hand.
        """
        found: list[_Out | None] = [None] * len(pieces)
        lock, stop = threading.Lock(), threading.Event()
        left, num_done = iter(range(len(pieces))), 0

        def work(thread: int) -> None:
            nonlocal num_done
            while not stop.is_set():
                with lock:
                    place = next(left, None)
                if place is None:
                    return
                found[place] = compute(thread, pieces[place])
                with lock:
                    num_done += 1
                if thread == 0:
                    done(num_done)

        other = self._threads.pool().submit(_stopping(work, stop), 1) if len(pieces) > 1 else None
        try:
            _stopping(work, stop)(0)
        finally:
            if other is not None:
                other.exception()  # waits for the piece at hand
        if other is not None:
            other.result()
        done(num_done)
        return [one for one in found if one is not None]

    def close(self) -> None:
        """End the thread (``KeptThreads.close``)."""
        self._threads.close()


def _stopping(work: Callable[[int], None], stop: threading.Event) -> Callable[[int], None]:
    """``work`` that tells the other thread to stop when it fails."""

    def run(thread: int) -> None:
        try:
            work(thread)
        except BaseException:
            stop.set()
            raise

    return run
