"""The hub's part against a stand-in server on this machine; each question is a fresh process with its own settings."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save
from small_runs import write_recipe
from tiny import write_tiny_model

from mlx_finetune import rundir
from mlx_finetune.events import RunStopped
from mlx_finetune.journal import read_events
from mlx_finetune.model.sources import hub
from mlx_finetune.model.sources.hub import is_hub_id
from mlx_finetune.rundir import RunDir

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SECRET = "hf_canaryCANARYcanary"
FETCH = """
import json, sys
from mlx_finetune.errors import MlxftError
from mlx_finetune.model.sources.fetch import fetch_model
revision, timeout, *names = sys.argv[1:]
for name in names:
    phases = []
    def report(phase):
        phases.append([phase.detail, phase.done, phase.total])
        print(phase, file=sys.stderr)
    try:
        local = fetch_model(name, revision=revision or None, report=report, hub_timeout=float(timeout))
        said = {"folder": str(local.folder), "source": local.source, "revision": local.revision,
                "license": local.license, "sha256": local.sha256}
    except MlxftError as error:
        said = {"error": error.message, "hint": error.hint}
    print(json.dumps(said | {"phases": phases}))
"""


#: Model -> status, error code, files it has, words of our message, words of our hint.
REFUSALS: dict[str, tuple[int, str, tuple[str, ...], str, str]] = {
    "org/gated": (403, "GatedRepo", (), "asks for its licence to be accepted first", "hf auth login"),
    "org/missing": (404, "RepoNotFound", (), "there is no model 'org/missing' on the hub, or it is", "spelling"),
    "org/old": (404, "RevisionNotFound", (), "org/old has no revision 'v9'", "leave revision out"),
    "org/busy": (503, "", (), "the hub cannot be reached (HfHubHTTPError)", "connection"),
    "org/pickles": (200, "", ("config.json", "pytorch_model.bin"), "no safetensors weights", "refs/pr/N"),
    "org/ggufs": (200, "", ("config.json", "m.Q4_0.gguf"), "holds GGUF files only", "give its path"),
    "org/nested": (200, "", ("config.json", "onnx/model.safetensors"), "no safetensors weights", "converted"),
}


class StandIn(ThreadingHTTPServer):
    """Serves the files of one folder as the model ``org/tiny``; its attributes make it misbehave."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.folder = folder
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.requests: list[tuple[str, str, str | None]] = []
        self.tokens: set[str | None] = set()
        self.silent_seconds = 0.0
        self.break_after: int | None = None
        self.hold_after: int | None = None
        self.is_holding = threading.Event()
        self.flip_weights = False

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hung up is part of the tests."""


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""

    def _stand_in(self) -> StandIn:
        assert isinstance(self.server, StandIn)
        return self.server

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        server = self._stand_in()
        server.requests.append((self.command, self.path.partition("?")[0], self.headers.get("Range")))
        if "tiny" in self.path:
            server.tokens.add(self.headers.get("Authorization"))
        time.sleep(server.silent_seconds)
        refused = next((name for name in REFUSALS if f"/{name}" in self.path), None)
        if refused is not None:
            status, code, files = REFUSALS[refused][:3]
            if status == 200:
                answer = {"id": refused, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
                self._send(json.dumps(answer).encode(), {"Content-Type": "application/json"})
                return
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path.startswith("/api/models/org/tiny"):
            names = [self._sibling(name, content) for name, content in server.files.items()]
            answer = {"id": "org/tiny", "sha": COMMIT, "siblings": names, "cardData": {"license": "mit"}}
            self._send(json.dumps(answer).encode(), {"Content-Type": "application/json"})
        elif self.path.startswith(f"/org/tiny/resolve/{COMMIT}/"):
            content = server.files[self.path.rpartition("/")[2]]
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            if server.flip_weights and self.path.endswith(".safetensors"):
                content = content[:-1] + b"\xff"
            self._send(content, {"ETag": etag, "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"})
        else:
            self.send_error(404)

    def _sibling(self, name: str, content: bytes) -> dict[str, object]:
        lfs: dict[str, object] = {
            "sha256": hashlib.sha256(content).hexdigest(),
            "size": len(content),
            "pointerSize": 130,
        }
        sibling: dict[str, object] = {"rfilename": name, "size": len(content)}
        return sibling | ({"lfs": lfs} if name.endswith(".safetensors") else {})

    def _send(self, content: bytes, headers: dict[str, str]) -> None:
        start = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
        self.send_response(206 if start else 200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        server = self._stand_in()
        limit, body = server.break_after, content[start:]
        if server.hold_after is not None and len(body) > server.hold_after:
            self.wfile.write(body[: server.hold_after])
            self.wfile.flush()
            server.is_holding.set()
            self.rfile.read(1)  # until the client hangs up
            return
        if limit is not None and len(body) > limit:
            self.wfile.write(body[:limit])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
        else:
            self.wfile.write(body)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StandIn]:
    folder = write_tiny_model(tmp_path / "served", "llama")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04evil")
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# hello")
    stand_in = StandIn(folder)
    thread = threading.Thread(target=stand_in.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield stand_in
    stand_in.shutdown()
    stand_in.server_close()
    thread.join()


Fetch = Callable[..., list[dict[str, object]]]


@pytest.fixture
def settings(server: StandIn, tmp_path: Path) -> dict[str, str]:
    """The environment of a process for which the stand-in is the hub, with caches of its own."""
    left_out = ("HF_", "PIP_", "TRANSFORMERS_")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(left_out)}
    return environment | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_TOKEN": SECRET,
        "HF_HUB_DOWNLOAD_TIMEOUT": "2",
        "HF_HUB_ETAG_TIMEOUT": "2",
        "MLXFT_CACHE": str(tmp_path / "cache"),
        "no_proxy": "127.0.0.1",
    }


@pytest.fixture
def fetch(settings: dict[str, str]) -> Fetch:
    def run(*names: str, revision: str = "", timeout: float = 5, **more: str) -> list[dict[str, object]]:
        environment = settings | more
        command = [sys.executable, "-W", "ignore", "-c", FETCH, revision, str(timeout), *(names or ["org/tiny"])]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
        assert SECRET not in done.stdout + done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def test_a_hub_model_is_fetched_pinned_and_found_again_without_the_hub(server: StandIn, fetch: Fetch) -> None:
    [found] = fetch()
    assert (found["source"], found["revision"], found["license"]) == ("hub:org/tiny", COMMIT, "mit")
    folder = Path(str(found["folder"]))
    assert folder.name == COMMIT
    assert (folder / "model.safetensors").read_bytes() == server.files["model.safetensors"]
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "README.md",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert server.tokens == {f"Bearer {SECRET}"}
    total = sum(len(server.files[path.name]) for path in folder.iterdir())
    phases = found["phases"]
    assert isinstance(phases, list)
    assert phases[-1] == ["org/tiny from the hub", total, total]
    asked = len(server.requests)
    [again] = fetch(HF_HUB_OFFLINE="1")
    assert (again["folder"], again["sha256"]) == (found["folder"], found["sha256"])
    assert len(server.requests) == asked


def test_a_connection_that_breaks_again_and_again_fetches_no_byte_twice(server: StandIn, fetch: Fetch) -> None:
    content = save({"w": np.zeros(6_000_000, np.float32)})
    server.files["model.safetensors"] = content
    server.break_after = 12_000_000  # each answer ends there; the hub's library keeps chunks of ten times 2^20 bytes
    folder = Path(str(fetch()[0]["folder"]))
    ranges = [wanted for _, path, wanted in server.requests if path.endswith("model.safetensors") and wanted]
    assert ranges == ["bytes=10485760-", "bytes=20971520-"]
    assert (folder / "model.safetensors").read_bytes() == content


def test_half_a_file_of_a_killed_run_is_not_used_and_not_fetched_twice(
    server: StandIn, fetch: Fetch, tmp_path: Path
) -> None:
    content = server.files["model.safetensors"]
    blobs = tmp_path / "hf" / "hub" / "models--org--tiny" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hashlib.sha256(content).hexdigest()}.mlxft-part").write_bytes(content[:50_000])
    [found] = fetch()
    asked = [entry for entry in server.requests if entry[0] == "GET" and entry[1].endswith("model.safetensors")]
    assert [wanted for _, _, wanted in asked] == ["bytes=50000-"]
    assert Path(str(found["folder"]), "model.safetensors").read_bytes() == content
    assert [path.name for path in blobs.iterdir() if "part" in path.name or "incomplete" in path.name] == []
    phases = found["phases"]
    assert isinstance(phases, list)
    assert phases[-1][1] == phases[-1][2]


def test_a_signal_in_the_middle_of_a_download_ends_the_training_at_once_and_loses_no_byte(
    server: StandIn, settings: dict[str, str], tmp_path: Path
) -> None:
    server.files["model.safetensors"] = content = save({"w": np.zeros(4_000_000, np.float32)})
    server.hold_after = 11_000_000
    recipe = write_recipe(tmp_path, Path("org/tiny"))
    run = RunDir(tmp_path / "run")
    command = [sys.executable, "-m", "mlx_finetune.train.child", "--recipe", str(recipe)]
    child = subprocess.Popen(command, env=settings | {"HF_HUB_DOWNLOAD_TIMEOUT": "60"}, cwd=tmp_path)
    try:
        assert server.is_holding.wait(60)
        child.send_signal(signal.SIGTERM)
        assert child.wait(10) == 128 + signal.SIGTERM
    finally:
        child.kill()
    events = [record.event for record in read_events(run.file(rundir.EVENTS))]
    assert events[-1] == RunStopped(0, signal.SIGTERM)
    assert run.checkpoints() == []
    server.hold_after = None
    subprocess.run(command, env=settings, cwd=tmp_path, timeout=60, capture_output=True, check=False)
    wanted = [line for _, path, line in server.requests if path.endswith("model.safetensors") and line]
    assert wanted == ["bytes=10485760-"]
    blob = tmp_path / "hf" / "hub" / "models--org--tiny" / "blobs" / hashlib.sha256(content).hexdigest()
    assert blob.read_bytes() == content


def test_weights_that_arrive_damaged_are_never_in_the_cache(server: StandIn, fetch: Fetch, tmp_path: Path) -> None:
    server.flip_weights = True
    assert "arrived damaged: sha256" in str(fetch()[0]["error"])
    assert list((tmp_path / "hf").rglob("*.safetensors")) == []
    assert hashlib.sha256(server.files["model.safetensors"]).hexdigest() not in {p.name for p in tmp_path.rglob("*")}
    server.flip_weights = False
    assert fetch()[0]["source"] == "hub:org/tiny"


def test_a_hub_that_does_not_answer_is_given_up_after_the_time_set(server: StandIn, fetch: Fetch) -> None:
    server.silent_seconds = 60
    started = time.monotonic()
    [found] = fetch(timeout=0.5)
    assert found["error"] == "the hub gave no answer within 0.5 s"
    assert time.monotonic() - started < 30  # with the start of Python; the answer would have come after 60 s


def test_offline_mode_asks_nobody(server: StandIn, fetch: Fetch) -> None:
    assert "HF_HUB_OFFLINE is set" in str(fetch(HF_HUB_OFFLINE="1")[0]["error"])
    assert server.requests == []


def test_refusals_are_sentences_and_come_before_any_download(server: StandIn, fetch: Fetch) -> None:
    for found, (name, (*_, message, hint)) in zip(fetch(*REFUSALS, revision="v9"), REFUSALS.items(), strict=True):
        assert message in str(found["error"]), name
        assert hint in str(found["hint"]), name
    assert [path for _, path, _ in server.requests if "resolve" in path] == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("org/tiny", True),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", True),
        ("tiny", False),
        ("../x", False),
        ("a/../b", False),
        ("a/b/c", False),
        ("a/b..c", False),
        ("a--b/c", False),
        ("a/%2e%2e", False),
        ("a/b\0", False),
        ("", False),
    ],
)
def test_only_owner_and_name_are_a_hub_id(name: str, expected: bool) -> None:
    assert is_hub_id(name) == expected


def test_the_command_for_a_token_works_where_the_environment_is_not_on_path(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mlx_finetune.model.sources.hub.shutil.which", lambda _: "/x/hf")
    assert hub.login_command() == "hf auth login"
    monkeypatch.setattr("mlx_finetune.model.sources.hub.shutil.which", lambda _: None)
    monkeypatch.setattr("mlx_finetune.model.sources.hub.sys.executable", "/Users/me/my env/bin/python")
    assert hub.login_command() == "'/Users/me/my env/bin/hf' auth login"
