"""The page's server as a process: its stream, its end, and what raw connections can do to it."""

import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from journal import STARTED, records, step, whole_run
from processes import wait_until
from web_pages import add_records, write_journal, write_run
from web_server import Page

from mlx_finetune.events import RunStarted


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    write_run(tmp_path / "adapters", "demo", records(STARTED, step(1), step(2)))
    page = Page(tmp_path)
    yield page
    page.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("shared")
    write_run(folder / "adapters", "demo", records(STARTED, step(1), step(2)))
    page = Page(folder)
    yield page
    page.close()


def run_of(page: Page):
    return write_run(page.folder / "adapters", "demo", records(STARTED, step(1), step(2)))


def head(page: Page, path: str, *more: str) -> bytes:
    lines = [f"GET {path} HTTP/1.1", f"host: 127.0.0.1:{page.port}", f"authorization: Bearer {page.token}", *more]
    return "\r\n".join([*lines, "connection: close", "", ""]).encode()


def test_points_arrive_and_a_page_that_comes_back_gets_exactly_what_it_missed(page: Page) -> None:
    run = run_of(page)
    curves = page.ask("GET", "/api/runs/demo/curves")[1]
    stream = page.events("demo", curves["id"])
    news: Iterator[Any] = iter(stream)
    first = next(news)
    assert "reset" not in first
    assert "steps" not in first
    add_records(run, records(step(3, 0.5), start=1_000_010.0))
    second = next(news)
    assert (second["steps"]["step"], second["steps"]["loss"]) == ([3.0], [0.5])
    stream.close()
    add_records(run, records(step(4), step(5), start=1_000_020.0))
    again: Iterator[Any] = iter(page.events("demo", second["id"]))
    assert next(again)["steps"]["step"] == [4.0, 5.0]


def test_a_journal_that_is_cut_back_tells_the_page_to_read_again(page: Page) -> None:
    run = run_of(page)
    curves = page.ask("GET", "/api/runs/demo/curves")[1]
    news: Iterator[Any] = iter(page.events("demo", curves["id"]))
    next(news)
    resumed = RunStarted("demo", "tiny-llama", "sft", 1, 40, 20, 80, 8, 1_000, 50_000, "CPU", "float32")
    write_journal(run, records(STARTED, step(1), resumed, step(2, 7.0)))
    assert next(news)["reset"] is True
    assert page.ask("GET", "/api/runs/demo/curves")[1]["curves"]["loss"] == [[1.0, 2.0], [1.0, 7.0]]


@pytest.mark.parametrize("last", ["", "nonsense", "0-2-0", "\u00e9-1-1"])
def test_an_id_of_somebody_else_starts_from_the_beginning(shared: Page, last: str) -> None:
    assert next(iter(shared.events("demo", last)))["reset"] is True


def test_a_page_that_leaves_frees_its_place_and_many_may_look_on(page: Page) -> None:
    streams = [page.events("demo") for _ in range(64)]
    for stream in streams:
        next(iter(stream))
    assert page.ask("GET", "/api/runs/demo/events")[0] == 503
    for stream in streams:
        stream.close()
    wait_until(lambda: is_open(page))


def is_open(page: Page) -> bool:
    try:
        page.events("demo").close()
    except AssertionError:
        return False
    return True


def test_ctrl_c_ends_the_page_at_once_though_somebody_looks_on(page: Page) -> None:
    stream = page.events("demo")
    next(iter(stream))
    began = time.monotonic()
    page.process.send_signal(signal.SIGINT)
    assert page.process.wait(20) == 0
    assert time.monotonic() - began < 10
    assert page.said().splitlines()[-1].startswith("the page is gone; trainings go on")
    assert "Traceback" not in page.said()


def test_the_token_is_kept_so_that_an_open_page_comes_back(page: Page) -> None:
    page.process.send_signal(signal.SIGTERM)
    assert page.process.wait(20) == 143
    again = Page(page.folder, port=page.port)
    assert again.token == page.token
    assert (page.folder / "state" / "monitor-token").stat().st_mode & 0o777 == 0o600
    again.close()


@pytest.mark.parametrize(
    "path",
    [
        *("/../../etc/passwd", "/..%2f..%2fetc%2fpasswd", "//etc/passwd", "/%2e%2e/server.py", "/page.css/../pages.py"),
        *("/\\..\\pages.py", "/static/../pages.py", "/api/runs/../demo/status", "/api/runs/demo/../../../x"),
        *("/api/runs/%2e%2e/status", "/api/runs/..%2fadapters%2fdemo/status", "/api/runs/demo%00/status", "/server.py"),
    ],
)
def test_no_file_is_reachable(shared: Page, path: str) -> None:
    said = shared.send(head(shared, path))
    assert said.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400")), said[:200]
    assert str(shared.folder).encode() not in said


def test_slow_broken_and_silent_connections_keep_nobody_out(page: Page) -> None:
    idle = [socket.create_connection(("127.0.0.1", page.port)) for _ in range(200)]
    for connection in idle[::3]:
        connection.sendall(b"GET /api/names HTTP/1.1\r\nhos")
    deaf = socket.create_connection(("127.0.0.1", page.port))
    deaf.sendall(head(page, "/api/runs/demo/events"))
    assert page.ask("GET", "/api/names")[0] == 200
    assert page.send(b"\x16\x03\x01nonsense\r\n\r\n").startswith((b"HTTP/1.1 400", b""))
    assert page.send(head(page, "/api/names", "x: " + "a" * 100_000)).startswith((b"HTTP/1.1 4", b""))
    for connection in [*idle, deaf]:
        connection.close()
    assert page.ask("GET", "/api/names")[0] == 200
    assert "Traceback" not in page.said()


def test_a_run_is_opened_wherever_it_lies_and_its_neighbours_with_it(tmp_path: Path) -> None:
    write_run(tmp_path / "else where", "one", whole_run())
    write_run(tmp_path / "else where", "two", whole_run())
    page = Page(tmp_path, str(tmp_path / "else where" / "two"))
    assert page.ask("GET", "/api/names")[1]["chosen"] == "two"
    assert page.ask("GET", "/api/names")[1]["names"] == ["one", "two"]
    page.close()
