"""A real ``mlxft monitor --web`` in a folder, and reading its events."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from processes import ROOT, TIMEOUT


class Page:
    """The server of the runs in ``FOLDER/adapters``. ``close`` ends it."""

    def __init__(self, folder: Path, *arguments: str, port: int = 0) -> None:
        self.folder = folder
        self.log = folder / f"page-{time.monotonic_ns()}.log"
        environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "dumb", "MLXFT_STATE": str(folder / "state")}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlx_finetune", "monitor", *arguments, "--web", "--port", str(port)],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + TIMEOUT
        while not (found := re.search(r"(http://127\.0\.0\.1:(\d+))/#token=(\S+)\n", self.said())):
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.02)
        self.address, self.port, self.token = found[1], int(found[2]), found[3]
        self._streams: list[Events] = []
        assert self.ask("GET", "/api/names")[0] == 200  # and so its signals are caught

    @property
    def link(self) -> str:
        """What a person opens."""
        return f"{self.address}/#token={self.token}"

    def said(self) -> str:
        """Everything it has written."""
        return self.log.read_text(errors="replace")

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, dict]:
        """Status and JSON of one request with the token."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        content = None if body is None else json.dumps(body)
        given = {"authorization": f"Bearer {self.token}", "content-type": "application/json", **headers}
        try:
            connection.request(method, path, content, given)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"{}")
        finally:
            connection.close()

    def send(self, content: bytes) -> bytes:
        """All that comes back for raw bytes until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT) as connection:
            connection.sendall(content)
            received = b""
            while piece := connection.recv(65536):
                received += piece
            return received

    def events(self, name: str, last: str = "") -> "Events":
        """The stream of a run, closed with the page where it was not before."""
        self._streams.append(Events(self, name, last))
        return self._streams[-1]

    def close(self) -> None:
        """End it, whatever it is doing."""
        for stream in self._streams:
            stream.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()


class Events:
    """An open stream of server-sent events."""

    def __init__(self, page: Page, name: str, last: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=TIMEOUT)
        headers = {"authorization": f"Bearer {page.token}", "last-event-id": last}
        self._connection.request("GET", f"/api/runs/{name}/events", headers=headers)
        self._answer = self._connection.getresponse()
        assert self._answer.status == 200, self._answer.read()

    def __iter__(self) -> Iterator[Mapping[str, object]]:
        for line in self._answer:
            if line.startswith(b"data: "):
                yield json.loads(line[6:])

    def close(self) -> None:
        """Leave."""
        self._answer.close()
        self._connection.close()
