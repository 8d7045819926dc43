"""How long it takes to open a long run in the monitor's page: the server's answers, and the first curves on screen.

A journal of 100,000 steps is written, with a look at the machine every ten steps and an evaluation with an answer every
thousand. The server starts on a short run beside it and is asked for the long one at once, which is then read for the
first time, and once more when it has read ahead. Each repeat has a server of its own. Chromium, where there is one, is
started before. Beside the time on the clock stands the processor time of the server.
"""

import argparse
import http.client
import json
import math
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from mlx_finetune.events import CheckpointSaved, Evaluated, Event, Resources, RunStarted, Sampled, StepDone, to_json
from mlx_finetune.rundir import EVENTS

ROOT = Path(__file__).resolve().parent.parent
START = 1_700_000_000.0


def long_run(num_steps: int) -> Iterator[Event]:
    """The events of a run with falling, noisy loss."""
    noise = random.Random(1)
    yield RunStarted("long", "tiny", "sft", 0, num_steps, 2000, 80, 8, 1000, 50_000, "CPU", "float32", 8 * 10**9)
    for step in range(1, num_steps + 1):
        loss = 2.5 * math.exp(-5 * step / num_steps) + 0.8 + noise.gauss(0, 0.08)
        rate, norm, speed = 2e-4 * (1 - step / num_steps), abs(noise.gauss(0.5, 0.2)), noise.gauss(800, 30)
        yield StepDone(step, step / 2000, loss, rate, norm, 400, 500, 0.06, 0.5, speed, 10**9, 2 * 10**9)
        if step % 10 == 0:
            yield Resources(step, cpu_percent=noise.uniform(0, 100), gpu_percent=90.0, process_bytes=10**9, watts=30.5)
        if step % 1000 == 0:
            yield Evaluated(step, loss, 100, True, 0.1)
            yield Sampled(step, "Why is the sky blue?", f"Because of step {step}.")
            yield CheckpointSaved(step, f"checkpoint-{step}", 10**6, 0.1)


def write_runs(folder: Path, num_steps: int) -> int:
    """``long`` and a short run beside it; the bytes of the long journal."""
    for name, count in (("long", num_steps), ("short", 10)):
        (folder / name).mkdir(parents=True)
        with (folder / name / EVENTS).open("w", encoding="utf-8") as file:
            for index, event in enumerate(long_run(count)):
                file.write(to_json(event, START + index / 2) + "\n")
    return (folder / "long" / EVENTS).stat().st_size


class Server:
    """``mlxft monitor short --web`` in a folder."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "mlx_finetune", "monitor", str(folder / "short"), "--web", "--port", "0"]
        self._process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        found = re.search(r"(http://127\.0\.0\.1:(\d+)/)#token=(\S+)", self._process.stderr.readline())
        assert found, "the server did not start"
        self.address, self.port, self.token = found[1], int(found[2]), found[3]
        self.ask("/api/names")

    def ask(self, path: str) -> tuple[tuple[float, float], bytes]:
        """Seconds on the clock, of the server's processor, and the body of an answer."""
        began, used = time.perf_counter(), self._used()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request("GET", path, headers={"authorization": f"Bearer {self.token}"})
        body = connection.getresponse().read()
        connection.close()
        return (time.perf_counter() - began, self._used() - used), body

    def _used(self) -> float:
        times = psutil.Process(self._process.pid).cpu_times()
        return times.user + times.system

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.communicate()


def paint_seconds(browser: object, server: Server) -> float:
    """From the address to curves with their points on screen, the page's files included."""
    from playwright.sync_api import Browser

    assert isinstance(browser, Browser)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    began = time.perf_counter()
    page.goto(f"{server.address}#token={server.token}")
    page.evaluate("location.hash = '#/live/long'")
    page.wait_for_function(
        "() => { const live = document.querySelector('.live'); return live?.querySelector('h1').textContent === 'long'"
        " && live.dataset.points > 100 && live.querySelector('canvas') }"
    )
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    seconds = time.perf_counter() - began
    page.close()
    return seconds


def tell(name: str, seconds: list[tuple[float, float]]) -> None:
    """One line of the table."""
    clock, used = [one for one, _ in seconds], [one for _, one in seconds]
    parts = [f"median {1000 * statistics.median(clock):6.0f} ms, min {1000 * min(clock):6.0f} ms on the clock"]
    parts += [f"min {1000 * min(used):6.0f} ms of the processor"] if min(used) >= 0 else []
    print(f"{name:<32} {', '.join(parts)}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000, help="Steps of the long run.")
    parser.add_argument("--repeats", type=int, default=5, help="Servers that are started.")
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    from browsers import find_chromium

    found: dict[str, list[tuple[float, float]]] = {}
    num_points = num_bytes = 0
    with tempfile.TemporaryDirectory() as name:
        size = write_runs(Path(name), given.steps)
        print(f"{given.steps:,} steps, journal of {size / 1e6:.0f} MB")
        path = find_chromium()
        for _ in range(given.repeats):
            server = Server(Path(name))
            cold, body = server.ask("/api/runs/long/curves")
            found.setdefault("curves, first reading", []).append(cold)
            server.ask("/api/runs")
            found.setdefault("curves, read ahead", []).append(server.ask("/api/runs/long/curves")[0])
            found.setdefault("part of the curves (zoom)", []).append(
                server.ask("/api/runs/long/curves?from=5e4&to=6e4")[0]
            )
            found.setdefault("state", []).append(server.ask("/api/runs/long/status")[0])
            server.close()
            num_points, num_bytes = len(json.loads(body)["curves"]["loss"][0]), len(body)
        if path:
            from playwright.sync_api import sync_playwright

            with sync_playwright() as driver:
                browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
                for _ in range(given.repeats):
                    server = Server(Path(name))
                    found.setdefault("on screen, first reading", []).append((paint_seconds(browser, server), -1.0))
                    server.ask("/api/runs")
                    found.setdefault("on screen, read ahead", []).append((paint_seconds(browser, server), -1.0))
                    server.close()
                browser.close()
    print(f"answer with the curves: {num_points} points of the loss, {num_bytes / 1e3:.0f} kB")
    for title, seconds in found.items():
        tell(title, seconds)


if __name__ == "__main__":
    main()
