"""Connections that are slow, many, broken, or never read: none of them keeps the next request from its answer."""

import http.client
import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from processes import wait_until
from servers import NEVER_ENDS, Server, read_all, user

LONG = {"messages": [user("Hello")], "max_tokens": 400, "logit_bias": NEVER_ENDS}


@pytest.fixture(scope="module")
def hasty(place: Path) -> Iterator[Server]:
    server = Server(place, "alpha", module="impatient_server")
    yield server
    server.close()


def head(server: Server, *lines: str, length: int | None = None) -> bytes:
    """A POST of a chat without its body."""
    fields = {"host": f"127.0.0.1:{server.port}", **server.headers()}
    if length is not None:
        fields["content-length"] = str(length)
    every = ["POST /v1/chat/completions HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), *lines]
    return "\r\n".join([*every, "", ""]).encode()


def whole(server: Server, fields: dict) -> bytes:
    body = json.dumps(fields).encode()
    return head(server, length=len(body)) + body


def is_served(server: Server) -> bool:
    return server.chat(max_tokens=1)[0] == 200


@pytest.mark.parametrize(
    ("lines", "body"),
    [
        (["content-length: -1"], b""),
        (["content-length: 5", "content-length: 6"], b"{}"),
        (["content-length: 1e3"], b"{}"),
        (["content-length: 0x10"], b"{}"),
        (["content-length: 2", "transfer-encoding: chunked"], b"2\r\n{}\r\n0\r\n\r\n"),
        (["transfer-encoding: gzip, chunked"], b"{}"),
        (["transfer-encoding: chunked"], b"zz\r\n{}\r\n0\r\n\r\n"),
        (["bad header"], b""),
        (["x: a\x00b"], b""),
        ([" folded: line"], b""),
    ],
)
def test_a_request_whose_end_is_unclear_is_refused(server: Server, lines: list[str], body: bytes) -> None:
    said = server.send(head(server, *lines) + body)
    assert said.startswith((b"HTTP/1.1 400", b"HTTP/1.1 415", b"HTTP/1.1 501")), said[:100]
    assert b'"error"' in said


@pytest.mark.parametrize("length", ["4000001", "10000000000", "9" * 300])
def test_a_body_that_is_announced_too_large_is_not_waited_for(server: Server, length: str) -> None:
    said = server.send(head(server, f"content-length: {length}"))
    assert said.startswith((b"HTTP/1.1 413", b"HTTP/1.1 400"))


def test_a_body_that_grows_too_large_is_refused_on_the_way(server: Server) -> None:
    with server.socket() as connection:
        connection.sendall(head(server, "transfer-encoding: chunked"))
        chunk = b"%x\r\n" % 100_000 + b" " * 100_000 + b"\r\n"
        sent = 0
        try:
            while sent < 1_000_000_000:
                connection.sendall(chunk)
                sent += 100_000
        except OSError:
            pass
        assert sent < 100_000_000


def test_headers_without_end_are_refused(server: Server) -> None:
    said = server.send(b"GET /health HTTP/1.1\r\nx: " + b"a" * 100_000)
    assert said.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400")) or said == b""
    many = b"".join(b"x-%d: a\r\n" % number for number in range(10_000))
    assert server.send(b"GET /health HTTP/1.1\r\n" + many).startswith((b"HTTP/1.1 431", b"HTTP/1.1 400", b""))


def test_no_http_at_all_is_answered_with_400(server: Server) -> None:
    for content in (b"\x16\x03\x01\x02\x00\x01\x00", b"hello\r\n\r\n", b"GET /health\r\n\r\n", b"\r\n\r\n\r\n" * 50):
        with server.socket() as connection:
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            said = read_all(connection)
        assert said == b"" or said.startswith(b"HTTP/1.1 400"), content


def test_pipelined_requests_are_answered_one_after_the_other(server: Server) -> None:
    asks = b"".join(whole(server, {"messages": [user("a")], "max_tokens": count}) for count in (1, 2, 3))
    last = f"GET /health HTTP/1.1\r\nhost: 127.0.0.1:{server.port}\r\nconnection: close\r\n\r\n".encode()
    said = server.send(asks + last)
    assert [int(count) for count in re.findall(rb'"completion_tokens":(\d+)', said)] == [1, 2, 3]
    assert said.count(b"HTTP/1.1 200") == 4


def test_rubbish_behind_a_request_does_not_disturb_its_answer(server: Server) -> None:
    said = server.send(whole(server, {"messages": [user("a")], "max_tokens": 1}) + b"\x00\x01rubbish\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 200")
    assert said.count(b"HTTP/1.1 ") <= 2


def test_a_thousand_idle_connections_do_not_keep_others_out(server: Server) -> None:
    idle: list[socket.socket] = []
    try:
        for _ in range(1000):
            idle.append(server.socket())
        assert is_served(server)
        for connection in idle[::7]:
            with suppress(OSError):
                connection.sendall(b"GET /health HTTP/1.1\r\nhos")
        assert is_served(server)
    finally:
        for connection in idle:
            connection.close()


@pytest.mark.parametrize("begun", [b"", b"GET /health HTTP/1.1\r\n", b"GET /health HTTP/1.1\r\nx: y\r\n"])
def test_headers_that_do_not_come_close_the_connection(hasty: Server, begun: bytes) -> None:
    with hasty.socket() as connection:
        connection.sendall(begun)
        assert read_all(connection) == b""
    assert is_served(hasty)


def test_headers_that_drip_close_the_connection(hasty: Server) -> None:
    with hasty.socket() as connection:
        began = time.monotonic()
        with suppress(OSError):
            while time.monotonic() - began < 20:
                connection.sendall(b"GET /h"[:1])
                time.sleep(0.05)
        assert time.monotonic() - began < 20
    assert is_served(hasty)


def test_the_headers_of_a_second_request_have_to_come_too(hasty: Server) -> None:
    with hasty.socket() as connection:
        connection.sendall(f"GET /health HTTP/1.1\r\nhost: 127.0.0.1:{hasty.port}\r\n\r\nGET /hea".encode())
        said = read_all(connection)
    assert said.count(b"HTTP/1.1 200") == 1


def test_a_body_that_does_not_come_is_given_up(hasty: Server) -> None:
    said = hasty.send(head(hasty, length=100) + b'{"mess')
    assert said.startswith(b"HTTP/1.1 408")
    assert is_served(hasty)


def test_more_connections_than_there_is_room_for_push_out_the_idle_ones(hasty: Server) -> None:
    idle = [hasty.socket() for _ in range(60)]
    try:
        assert is_served(hasty)
    finally:
        for connection in idle:
            connection.close()


def test_a_client_that_leaves_a_stream_ends_its_answer(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("POST", "/v1/chat/completions", json.dumps({**LONG, "stream": True}), server.headers())
    answer = connection.getresponse()
    answer.read(200)
    connection.close()
    answer.close()
    wait_until(lambda: server.health()["running"] == 0)
    assert 0 < tokens_of_last(server) < 400


def test_a_client_that_leaves_a_whole_answer_ends_it(server: Server) -> None:
    before = server.said().count(" gone ")
    with server.socket() as connection:
        connection.sendall(whole(server, {**LONG, "n": 4}))
        wait_until(lambda: server.health()["running"] == 4)
    wait_until(lambda: server.health()["running"] == 0)
    wait_until(lambda: server.said().count(" gone ") > before)


def test_a_client_that_leaves_the_line_is_forgotten(server: Server) -> None:
    with server.socket() as first, server.socket() as second:
        first.sendall(whole(server, {**LONG, "n": 4}))
        wait_until(lambda: server.health()["running"] == 4)
        second.sendall(whole(server, {**LONG, "n": 2}))
        wait_until(lambda: server.health()["waiting"] == 2)
        second.close()
        wait_until(lambda: server.health()["waiting"] == 0)
        assert server.health()["running"] == 4
    wait_until(lambda: server.health()["running"] == 0)


def test_a_full_line_is_503_and_says_when_to_come_again(server: Server) -> None:
    sockets = [server.socket() for _ in range(4)]
    try:
        for connection in sockets:  # 4 rows and 12 that wait
            connection.sendall(whole(server, {**LONG, "n": 4}))
        wait_until(lambda: server.health() == {"status": "ok", "running": 4, "waiting": 12})
        said = server.send(
            whole(server, {**LONG, "stream": True}).replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1)
        )
        assert said.startswith(b"HTTP/1.1 503")
        assert 1 <= int(re.search(rb"retry-after: (\d+)", said)[1]) <= 60
        assert b"queue_full" in said
    finally:
        for connection in sockets:
            connection.close()
    wait_until(lambda: server.health() == {"status": "ok", "running": 0, "waiting": 0})


def test_a_stream_that_nobody_reads_is_given_up(hasty: Server) -> None:
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(("127.0.0.1", hasty.port))
        asked = {**LONG, "n": 8, "stream": True, "logprobs": True, "top_logprobs": 20}
        connection.sendall(whole(hasty, asked))
        wait_until(lambda: hasty.health()["running"] > 0)
        wait_until(lambda: hasty.health()["running"] == 0)
        assert tokens_of_last(hasty) < 8 * 400
    assert is_served(hasty)


def test_other_clients_are_answered_while_one_streams(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("POST", "/v1/chat/completions", json.dumps({**LONG, "stream": True}), server.headers())
    answer = connection.getresponse()
    answer.read(100)
    assert is_served(server)
    assert server.chat(model="beta", max_tokens=3)[0] == 200
    rest = answer.read()
    assert rest.endswith(b"data: [DONE]\n\n")
    connection.close()


def tokens_of_last(server: Server) -> int:
    """Answer tokens in the last line of the log that has some."""
    wait_until(lambda: re.search(r"\+ \d+ tokens", server.said()))
    return int(re.findall(r"\+ (\d+) tokens", server.said())[-1])
