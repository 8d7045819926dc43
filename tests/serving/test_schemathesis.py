"""Requests made from the OpenAPI document, good and bad: no 500, answers as documented, memory and health as before.

One check of schemathesis is left out: that every request of the documented shape is accepted. Whether a prompt has room
in the model, a schema can be enforced, or an answer ends within its tokens is decided by their content.
"""

import re
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from servers import Server

ALL_BUT_ONE = ("--checks", "all", "--exclude-checks", "positive_data_acceptance")


def attack(server: Server, folder: Path, *options: str) -> tuple[int, int, str]:
    """Exit code, number of test cases and report of ``schemathesis run``."""
    program = Path(sys.executable).with_name("schemathesis")
    done = subprocess.run(
        [
            str(program),
            "run",
            f"{server.address}/openapi.json",
            *("-H", f"Authorization: Bearer {server.token}", "--seed", "7", *ALL_BUT_ONE, *options),
            *("--request-timeout", "60"),  # of seconds: 10 are not enough where a dozen programs share two cores
        ],
        cwd=folder,  # it leaves files behind
        capture_output=True,
        text=True,
    )
    count = re.search(r"(\d+) generated", done.stdout)
    return done.returncode, int(count[1]) if count else 0, done.stdout[-5000:]


@contextmanager
def watched(server: Server) -> Generator[list[str]]:
    """Ask /health all the time; what it said when it was not ok."""
    bad: list[str] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            try:
                status = server.health()["status"]
            except (OSError, AssertionError) as error:
                status = repr(error)
            if status != "ok":
                bad.append(status)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield bad
    finally:
        done.set()
        thread.join()


def failures(server: Server) -> list[str]:
    """Lines of the log about answers with a status of 500, and about failures of ours."""
    return re.findall(r"(?m)^.* (?:500 [0-9.]+ s|failed(?:: |, ).*|in a connection)$", server.said())


def test_requests_of_every_kind(server: Server, tmp_path: Path) -> None:
    with watched(server) as bad:
        code, count, report = attack(server, tmp_path, "--phases", "fuzzing", "--max-examples", "15")
    assert code == 0, report
    assert count > 60
    assert bad == []
    assert failures(server) == []


@pytest.mark.slow
def test_ten_thousand_requests(place: Path, tmp_path: Path) -> None:
    server = Server(place, "alpha", "beta", "--set", "max_tokens=8")
    try:
        process = psutil.Process(server.process.pid)
        attack(server, tmp_path, "--phases", "fuzzing", "--max-examples", "100")  # what is made once is made now
        before = process.memory_info().rss
        with watched(server) as bad:
            code, count, report = attack(
                server, tmp_path, "--phases", "coverage,fuzzing,stateful", "--max-examples", "3000"
            )
        grown = process.memory_info().rss - before
        print(f"{count} test cases, {len(server.said().splitlines())} requests, {grown / 1e6:.0f} MB more")
        assert code == 0, report
        assert count >= 10_000
        assert bad == []
        assert failures(server) == []
        assert grown < 150e6
        assert server.chat(max_tokens=1)[0] == 200
    finally:
        server.close()
