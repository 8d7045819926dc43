"""What the full-screen monitor costs: opening a long journal, and the share of a core while a run is at work.

    .venv/bin/python benchmarks/monitor_cost.py [--steps 100000] [--seconds 20] [--rate 5]

The journal is made up. Opening is timed inside this process, to the first frame and to the frame with every step; the
share is the processor time of a real ``mlxft monitor`` in a terminal of its own, 80 by 24, while another process adds
``--rate`` steps a second. Its start is not counted. Needed: less than 2 % of a core.
"""

import argparse
import asyncio
import fcntl
import math
import os
import pty
import signal
import statistics
import struct
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from mlx_finetune.events import CheckpointSaved, Evaluated, Event, Resources, RunStarted, Sampled, StepDone, to_json
from mlx_finetune.rundir import EVENTS, LOCK, RunDir, take_lock

LIMIT_PERCENT = 2.0
BUSY_PERCENT = 5.0  # above this it still starts
STARTED = RunStarted("run", "model", "sft", 0, 10**6, 1000, 10_000, 100, 10**6, 10**8, "CPU", "float32", 18 * 10**9)


def events(first: int, last: int) -> Iterator[Event]:
    """The lines of steps ``first`` to ``last``: a reading every 5, an evaluation with answers every 500."""
    for number in range(first, last + 1):
        loss = 1 + 2 * math.exp(-number / 5000) + 0.2 * math.sin(number * 1.7)
        yield StepDone(number, number / 1000, loss, 1e-4, 0.5, 400, 500, 0.06, 1.0, 400.0, 9 * 10**9, 10**10)
        if number % 5 == 0:
            yield Resources(number, cpu_percent=30.0, gpu_percent=90.0, memory_used_bytes=10**10, watts=20.0)
        if number % 500 == 0:
            yield Evaluated(number, loss, 5000, False, 1.0)
            yield Sampled(number, "Why is the sky blue?", f"Because of {number} reasons.")
            yield CheckpointSaved(number, f"checkpoint-{number}", 10**7, 0.1)


def write(path: Path, first: int, last: int, *, start: float) -> None:
    """Append those lines, one step a second from ``start`` on."""
    with path.open("a", encoding="utf-8") as file:
        for event in events(first, last):
            file.write(to_json(event, start + getattr(event, "step", 0)) + "\n")


def time_opening(run: RunDir) -> tuple[float, float, float]:
    """Seconds to the first frame, to the frame with all steps, and for one more frame."""
    from mlx_finetune.monitor.tui.app import MonitorApp
    from mlx_finetune.monitor.tui.hands import Hands

    async def opened() -> tuple[float, float, float]:
        begin = time.perf_counter()
        app = MonitorApp(run, Hands(lambda: [run], print, print, lambda one: ""))
        async with app.run_test(size=(80, 24)) as pilot:
            first = time.perf_counter() - begin
            while app.watched.is_loading:
                await pilot.pause()
            app.draw()
            await pilot.pause()
            whole = time.perf_counter() - begin
            begin_frame = time.perf_counter()
            for _ in range(10):
                app.draw()
            frame = (time.perf_counter() - begin_frame) / 10
        return first, whole, frame

    return asyncio.run(opened())


@contextmanager
def monitor_in_terminal(run: RunDir) -> Generator[psutil.Process]:
    """``mlxft monitor RUN`` in a pseudo terminal of 80 by 24 whose output somebody reads."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm-256color"
        os.execv(sys.executable, [sys.executable, "-m", "mlx_finetune", "monitor", str(run.path)])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    thread = threading.Thread(target=_drain, args=(terminal,), daemon=True)
    thread.start()
    try:
        yield psutil.Process(pid)
    finally:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
        os.close(terminal)


def _drain(terminal: int) -> None:
    try:
        while os.read(terminal, 65536):
            pass
    except OSError:
        return


def busy_share(process: psutil.Process, seconds: float) -> float:
    """Percent of a core over the next ``seconds``."""
    before, begin = process.cpu_times(), time.perf_counter()
    time.sleep(seconds)
    after, took = process.cpu_times(), time.perf_counter() - begin
    return 100 * (after.user + after.system - before.user - before.system) / took


def measure_share(run: RunDir, *, first: int, seconds: float, rate: float) -> float:
    """Percent of a core that the monitor uses while ``rate`` steps a second are added."""
    with monitor_in_terminal(run) as process:
        while busy_share(process, 2.0) > BUSY_PERCENT:  # imports, and the journal so far
            pass
        before, begin, number = process.cpu_times(), time.perf_counter(), first
        while time.perf_counter() - begin < seconds:
            number += 1
            write(run.file(EVENTS), number, number, start=time.time() - number)
            time.sleep(1 / rate)
        after, took = process.cpu_times(), time.perf_counter() - begin
    return 100 * (after.user + after.system - before.user - before.system) / took


def main() -> int:
    """Print the figures; 1 where the share is over the limit."""
    parser = argparse.ArgumentParser(description="What the full-screen monitor costs.")
    parser.add_argument("--steps", type=int, default=100_000, help="steps in the journal (%(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to look on (%(default)s)")
    parser.add_argument("--rate", type=float, default=5.0, help="steps a second meanwhile (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="openings (%(default)s)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder) / "run")
        run.path.mkdir()
        begin = time.time() - given.steps
        run.file(EVENTS).write_text(to_json(STARTED, begin) + "\n", "utf-8")
        write(run.file(EVENTS), 1, given.steps, start=begin)
        size = run.file(EVENTS).stat().st_size / 1e6
        lock = take_lock(run.file(LOCK))
        assert lock is not None
        opened = [time_opening(run) for _ in range(given.rounds)]
        share = measure_share(run, first=given.steps, seconds=given.seconds, rate=given.rate)
        os.close(lock)
    print(f"{given.steps:,} steps, {size:.1f} MB")
    for name, times in zip(("first frame", "all steps", "one frame more"), zip(*opened, strict=True), strict=True):
        print(f"{name:<16} {min(times) * 1e3:8.1f} ms, median {statistics.median(times) * 1e3:8.1f} ms")
    print(f"share of a core at {given.rate:g} steps a second: {share:.2f} %, needed: less than {LIMIT_PERCENT:g} %")
    return 0 if share < LIMIT_PERCENT else 1


if __name__ == "__main__":
    sys.exit(main())
