"""Who is let in: Host, Origin, token. What a web page or another program could try, each refused before it is read."""

import http.client
import json

import pytest
from servers import Server, user

BODY = json.dumps({"messages": [user("Hello")], "max_tokens": 1})


def ask(server: Server, headers: dict[str, str], method: str = "POST", path: str = "/v1/chat/completions"):
    """Status and headers, with exactly these headers besides the length."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        body = BODY.encode() if method == "POST" else b""
        connection.putheader("content-length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        answer.read()
        return answer.status, dict(answer.getheaders())
    finally:
        connection.close()


def good(server: Server, **changes: str) -> dict[str, str]:
    headers = {"host": f"127.0.0.1:{server.port}", **server.headers()}
    return headers | {name.replace("_", "-"): value for name, value in changes.items()}


@pytest.mark.parametrize("host", ["127.0.0.1:{}", "localhost:{}", "LOCALHOST:{}", "[::1]:{}"])
def test_the_names_of_this_machine_are_let_in(server: Server, host: str) -> None:
    assert ask(server, good(server, host=host.format(server.port)))[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{}",
        "localhost.evil.example:{}",
        "127.0.0.1.evil.example:{}",
        "127.0.0.1",
        "127.0.0.1:1",
        "localhost:{}.evil.example",
        "localhost.:{}",
        "2130706433:{}",
        "0x7f.1:{}",
        "0.0.0.0:{}",
        "[::ffff:127.0.0.1]:{}",
        "[::]:{}",
        "user@localhost:{}",
        "localhost:{}@evil.example",
        "",
        "localhost:99999",
        "localhost, evil.example",
    ],
)
def test_every_other_host_is_refused(server: Server, host: str) -> None:
    assert ask(server, good(server, host=host.format(server.port)))[0] == 403


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "",
        "http://localhost",
        "http://localhost:1",
        "https://page.example:3000",
        "http://page.example",
        "http://page.example:3000.evil.example",
        "file://",
        "http://127.0.0.1.evil.example:{}",
    ],
)
def test_pages_of_other_origins_are_refused_even_with_the_token(server: Server, origin: str) -> None:
    status, headers = ask(server, good(server, origin=origin.format(server.port)))
    assert status == 403
    assert "access-control-allow-origin" not in headers


def test_the_own_origin_and_the_named_one_are_let_in_and_only_the_named_one_may_read(server: Server) -> None:
    status, headers = ask(server, good(server, origin=f"http://localhost:{server.port}"))
    assert (status, "access-control-allow-origin" in headers) == (200, False)
    status, headers = ask(server, good(server, origin="http://page.example:3000"))
    assert (status, headers["access-control-allow-origin"]) == (200, "http://page.example:3000")
    assert headers["vary"] == "origin"


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_request_that_a_browser_says_comes_from_another_site_is_refused(server: Server, site: str) -> None:
    assert ask(server, good(server, sec_fetch_site=site), "GET", "/v1/models")[0] == 403


def test_a_preflight_is_answered_for_the_named_origin_alone(server: Server) -> None:
    asked = {
        "host": f"127.0.0.1:{server.port}",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
        "access-control-request-private-network": "true",
    }
    status, headers = ask(server, {**asked, "origin": "http://evil.example"}, "OPTIONS")
    assert status == 403
    assert not any(name.startswith("access-control") for name in headers)
    status, headers = ask(server, {**asked, "origin": "http://page.example:3000"}, "OPTIONS")
    assert status == 204
    assert headers["access-control-allow-headers"] == "authorization, content-type"


@pytest.mark.parametrize(
    "given", ["", "Bearer", "Bearer ", "Bearer wrong", "Basic {}", "{}", "Bearer {}x", "Bearer \xe9"]
)
def test_without_the_token_nothing_is_answered(server: Server, given: str) -> None:
    for method, path in [
        ("POST", "/v1/chat/completions"),
        ("GET", "/v1/models"),
        ("GET", "/openapi.json"),
        ("GET", "/x"),
    ]:
        status, headers = ask(server, good(server, authorization=given.format(server.token)), method, path)
        assert status == 401
        assert headers["www-authenticate"] == "Bearer"


def test_a_token_in_the_address_is_no_token(server: Server) -> None:
    headers = good(server)
    del headers["authorization"]
    assert ask(server, headers, "GET", f"/v1/models?token={server.token}&api_key={server.token}")[0] == 401


def test_health_needs_no_token_but_the_right_host(server: Server) -> None:
    assert ask(server, {"host": f"127.0.0.1:{server.port}"}, "GET", "/health")[0] == 200
    assert ask(server, {"host": "evil.example"}, "GET", "/health")[0] == 403


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "json"])
def test_a_body_that_a_form_could_send_is_refused(server: Server, kind: str) -> None:
    assert ask(server, good(server, content_type=kind))[0] == 415


def test_json_may_say_its_character_set(server: Server) -> None:
    assert ask(server, good(server, content_type="Application/JSON; charset=utf-8"))[0] == 200


def test_a_header_that_is_there_twice_is_refused(server: Server) -> None:
    for name in ("host", "origin", "authorization"):
        lines = [f"{key}: {value}" for key, value in good(server, origin=f"http://localhost:{server.port}").items()]
        again = next(line for line in lines if line.startswith(name))
        said = server.send("\r\n".join(["GET /v1/models HTTP/1.1", *lines, again, "", ""]).encode())
        assert said.startswith(b"HTTP/1.1 400 "), name


def test_answers_are_not_framed_kept_or_guessed_at(server: Server) -> None:
    _, headers = ask(server, good(server))
    assert headers["x-frame-options"] == "DENY"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert "server" not in headers


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/..%2f..%2fetc%2fpasswd",
        "//etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/\\..\\etc\\passwd",
        "/v1/models/../../../../etc/passwd",
        "/v1/models/..%2f..%2fadapters%2falpha%2frun.json",
        "/v1/models/%00",
        "/adapters/alpha/run.json",
        "/static/x",
        "/docs",
    ],
)
def test_no_file_is_reachable(server: Server, path: str) -> None:
    assert ask(server, good(server), "GET", path)[0] == 404


@pytest.mark.parametrize(
    "model", ["/etc/passwd", "..", "adapters/alpha", "./alpha", "alpha/checkpoint-1", "gpt2", "", "ALPHA"]
)
def test_a_model_is_one_of_the_names_and_nothing_else(server: Server, model: str) -> None:
    status, said = server.chat(model=model)
    assert status in (400, 404)
    assert "/tmp" not in json.dumps(said)
    assert str(server.folder) not in json.dumps(said)
