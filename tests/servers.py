"""Real servers for the tests: a tiny model with runs that were never trained, in a process and on a free port."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from answering_runs import write_adapter, write_facts, write_run
from processes import ROOT, TIMEOUT

from mlx_finetune import rundir
from mlx_finetune.recipe.schema import Recipe

SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "kind": {"enum": ["goal", "card"]}},
    "required": ["ok", "kind"],
    "additionalProperties": False,
}
#: Control tokens of the tiny tokenizer, which would end an answer early.
NEVER_ENDS = {"0": -100, "1": -100, "2": -100}


class Server:
    """``mlxft serve ARGUMENTS --port 0``, ready to be asked. ``close`` ends it, whatever it is doing."""

    def __init__(self, folder: Path, *arguments: str, module: str = "mlx_finetune") -> None:
        self.folder = folder
        self.log = folder / f"serve-{time.monotonic_ns()}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, "serve", *arguments, "--port", "0"],
                cwd=folder,
                env=environment(folder),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 2 * TIMEOUT
        while "Ctrl-C ends it" not in self.said():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.02)
        found = re.search(r"http://127\.0\.0\.1:(\d+)/v1", self.said())
        assert found
        self.port = int(found[1])
        self.address = f"http://127.0.0.1:{self.port}"
        kept = folder / "state" / "serve-token"
        self.token = "" if "--no-token" in arguments else kept.read_text().strip()

    def said(self) -> str:
        """Everything it has written."""
        return self.log.read_text(errors="replace")

    def headers(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """What a good client sends."""
        return {"authorization": f"Bearer {self.token}", "content-type": "application/json", **(more or {})}

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, dict]:
        """Status and JSON of one request on a connection of its own; ``body`` is bytes, or a value for JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        content = body if isinstance(body, bytes | None) else json.dumps(body)
        try:
            connection.request(method, path, content, self.headers() if headers is None else dict(headers))
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"{}")
        finally:
            connection.close()

    def chat(self, **fields: object) -> tuple[int, dict]:
        """A chat request with one question unless ``messages`` says otherwise."""
        return self.ask("POST", "/v1/chat/completions", {"messages": [user("Hello")], **fields})

    def complete(self, **fields: object) -> tuple[int, dict]:
        """A completion request."""
        return self.ask("POST", "/v1/completions", {"prompt": "Hello", **fields})

    def health(self) -> dict:
        """What /health says."""
        status, said = self.ask("GET", "/health", headers={})
        assert status in (200, 503)
        return said

    def socket(self) -> socket.socket:
        """A connection without a request."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT)

    def send(self, content: bytes) -> bytes:
        """All that comes back for raw bytes until the server closes the connection."""
        with self.socket() as connection:
            connection.sendall(content)
            return read_all(connection)

    def signal(self, number: int) -> int:
        """Send a signal and wait; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(2 * TIMEOUT)

    def close(self) -> None:
        """End the process."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()


def environment(folder: Path) -> dict[str, str]:
    """Of a server in ``folder``, which also keeps its token."""
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    return os.environ | {"PYTHONPATH": paths, "TERM": "dumb", "MLXFT_STATE": str(folder / "state")}


def user(text: str) -> dict[str, str]:
    """A turn."""
    return {"role": "user", "content": text}


def read_all(connection: socket.socket) -> bytes:
    """What comes until the other end closes, orderly or not."""
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return received


def write_served_runs(folder: Path, base: Path) -> None:
    """Runs ``alpha`` and ``beta`` of one base under ``adapters``; alpha has the endpoint ``events``."""
    alpha = write_run(folder / "adapters" / "alpha", base)
    write_facts(folder / "adapters" / "beta", base, chat={"temperature": 0.0, "max_tokens": 6})
    write_adapter(folder / "adapters" / "beta", base, seed=2)
    facts = json.loads(alpha.file(rundir.RUN_INFO).read_text())
    serve = {"endpoints": [{"path": "events", "schema": "events.json", "prompt": "Read this: {text}"}]}
    facts["resolved"] = Recipe.model_validate({**facts["resolved"], "serve": serve}).model_dump(mode="json")
    facts["resolved"]["chat"]["max_tokens"] = 64
    alpha.file(rundir.RUN_INFO).write_text(json.dumps(facts))
    (alpha.path / rundir.SCHEMAS).mkdir()
    (alpha.path / rundir.SCHEMAS / "events.json").write_text(json.dumps(SCHEMA))
