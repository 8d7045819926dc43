"""Threads that compute with MLX: kept, because MLX keeps a stream for ever for each that was started, then ended."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_LONGEST_END = 1.0  # seconds that they are given to end


class KeptThreads:
    """``count`` threads from their first use to ``close``; later uses start new ones."""

    def __init__(self, count: int, name: str) -> None:
        self._count, self._name = count, name
        self._pool: ThreadPoolExecutor | None = None
        self._native_ids: list[int] = []

    def pool(self) -> ThreadPoolExecutor:
        """The threads, started where they are not."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(
                max_workers=self._count,
                thread_name_prefix=self._name,
                initializer=lambda ids: ids.append(threading.get_native_id()),
                initargs=(self._native_ids,),
            )
        return self._pool

    def close(self) -> None:
        """End the threads, and wait until the system has let go of them.

        At the end of the process it would be too late: MLX keeps functions that ``mx.compile`` made for a thread
        (``nn.gelu`` is one) until the thread has ended, and needs Python then. 10 of 20 processes were aborted.
        """
        if self._pool is None:
            return
        self._pool.shutdown()
        deadline = time.monotonic() + _LONGEST_END
        while self._is_there() and time.monotonic() < deadline:
            time.sleep(0.001)
        self._pool = None
        self._native_ids.clear()

    def _is_there(self) -> bool:
        return any(Path(f"/proc/self/task/{one}").exists() for one in self._native_ids)
