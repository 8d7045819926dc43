"""``mlxft serve``: options that do not go together, ports that are taken, signals and the codes it leaves with."""

import http.client
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from answering_runs import write_run
from click.testing import CliRunner
from processes import wait_until
from servers import NEVER_ENDS, Server, environment, user

from mlx_finetune.app.serve.models import open_rack
from mlx_finetune.commands.serve import command
from mlx_finetune.errors import MlxftError, RunError, UsageError
from mlx_finetune.loopback.addresses import is_loopback, take_port


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("serve")
    write_run(folder / "adapters" / "keeper", tiny_model("llama"))
    write_run(folder / "adapters" / "stranger", tiny_model("llama", seed=1))
    return folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "can be reached from other machines"),
        (["--host", "192.168.1.5"], "can be reached from other machines"),
        (["--host", "300.1.1.1"], "is not an address"),
        (["--host", "::"], "can be reached from other machines"),
        (["--host", "example.com"], "can be reached from other machines"),
        (["--no-token", "--allow-remote"], "every machine of the network"),
        (["--no-token", "--token-file", "x"], "do not go together"),
        (["--cors", "*"], "is not an origin"),
        (["--cors", "null"], "is not an origin"),
        (["--cors", "http://a.example/path"], "is not an origin"),
        (["--set", "temprature=1"], "temprature"),
        (["keeper"], "given twice"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_loaded(options: list[str], message: str) -> None:
    result = CliRunner().invoke(command, ["keeper", *options])
    assert isinstance(result.exception, MlxftError)
    assert message in result.exception.message
    assert result.exception.exit_code == 2
    assert result.exception.hint


def test_loopback_addresses_are_known() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "localhost.example", "")))


def test_a_taken_port_is_said_before_anything_is_loaded() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(RunError, match=f"port {port} is taken") as caught:
            take_port("127.0.0.1", port)
        assert "--port" in caught.value.hint
    with pytest.raises(UsageError):
        take_port("no-such-host.invalid", 0)


def serve(place: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and stderr of a server that does not come to serve."""
    done = subprocess.run(
        [sys.executable, "-m", "mlx_finetune", "serve", *arguments],
        cwd=place,
        env=environment(place),
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stderr


def test_a_second_server_on_the_port_says_one_error_and_a_token_is_shown_once(place: Path) -> None:
    first = Server(place, "keeper")
    try:
        assert f"token: {first.token}" in first.said()
        code, said = serve(place, "keeper", "--port", str(first.port))
        assert code == 1
        assert said.splitlines()[0] == f"error: port {first.port} is taken: another server is running there"
        assert first.health()["status"] == "ok"
        second = Server(place, "keeper", "--set", "max_tokens=3", "--set", "system=")
        try:
            assert second.token == first.token
            assert second.token not in second.said()
            assert str(place / "state" / "serve-token") in second.said()
            status, said = second.chat(logit_bias=NEVER_ENDS)  # settings of the command line stand in for the recipe's
            assert (status, said["usage"]["completion_tokens"]) == (200, 3)
        finally:
            second.close()
    finally:
        first.close()


def test_names_that_cannot_be_served_leave_with_one_error(place: Path) -> None:
    code, said = serve(place, "keeper", "adapters/keeper", "--port", "0")
    assert code == 2
    assert said.splitlines()[0] == "error: two of the names would be called 'keeper'"
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["nothing"], "there is no run, folder or model 'nothing'"),
        (["keeper", "stranger"], "stranger does not share the base of keeper"),
    ],
)
def test_names_that_do_not_go_together_are_refused(place: Path, names: list[str], message: str) -> None:
    with pytest.raises(MlxftError, match=message):
        open_rack(names, base=place, report=lambda _: None, max_rows=2, change=lambda chat: chat)


def stream(server: Server, **fields: object) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    """A streamed answer that has begun."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    asked = {"messages": [user("Hello")], "logit_bias": NEVER_ENDS, "stream": True, **fields}
    connection.request("POST", "/v1/chat/completions", json.dumps(asked), server.headers())
    return connection, connection.getresponse()


@pytest.mark.some(1)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_answers_end_and_leaves_with_its_code(place: Path, number: int) -> None:
    server = Server(place, "keeper")
    try:
        connection, answer = stream(server, max_tokens=300)
        first = answer.read(100)
        server.process.send_signal(number)
        said = first + answer.read()
        answer.close()
        connection.close()
        assert said.endswith(b"data: [DONE]\n\n")
        assert said.count(b'"finish_reason":"length"') == 1
        assert server.process.wait(60) == 128 + number
        assert server.said().splitlines()[-1] == "ended"
        assert "Traceback" not in server.said()
        with pytest.raises(OSError):
            server.health()
    finally:
        server.close()


def test_a_second_signal_ends_answers_too_and_pages_stay_out_without_a_token(place: Path) -> None:
    server = Server(place, "keeper", "--max-rows", "1", "--no-token")
    try:
        assert server.ask("POST", "/v1/completions", {"prompt": "a", "max_tokens": 1})[0] == 200
        assert server.ask("GET", "/v1/models", headers={})[0] == 200
        assert server.ask("GET", "/v1/models", headers={"origin": "http://evil.example"})[0] == 403
        assert server.ask("GET", "/v1/models", headers={"host": "evil.example"})[0] == 403
        connection, answer = stream(server, max_tokens=450, n=8)
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: refuses(server))
        server.process.send_signal(signal.SIGHUP)
        assert server.process.wait(60) == 129
        assert b"[DONE]" not in answer.read()
        answer.close()
        connection.close()
        assert "Traceback" not in server.said()
    finally:
        server.close()


def refuses(server: Server) -> bool:
    """True when nobody listens any more."""
    try:
        server.socket().close()
    except OSError:
        return True
    return False
