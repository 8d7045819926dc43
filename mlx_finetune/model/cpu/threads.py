"""Ending threads that have computed with MLX."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_LONGEST_END = 1.0  # seconds that they are given to end


def end_threads(threads: ThreadPoolExecutor, native_ids: Sequence[int]) -> None:
    """End the pool, and wait until the system has let go of its threads (``threading.get_native_id``).

    At the end of the process it would be too late: MLX keeps functions that ``mx.compile`` made for a thread
    (``nn.gelu`` is one) until the thread has ended, and needs Python then. 10 of 20 processes were aborted.
    """
    threads.shutdown()
    deadline = time.monotonic() + _LONGEST_END
    while any(Path(f"/proc/self/task/{one}").exists() for one in native_ids) and time.monotonic() < deadline:
        time.sleep(0.001)
