"""What the server prints on how to ask works as it is printed."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from servers import SCHEMA, Server

from mlx_finetune.app.serve.asking import asking_lines


def said_lines(server: Server) -> list[str]:
    return [line.removeprefix("ask: ") for line in server.said().splitlines() if line.startswith("ask: ")]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_shell_line_asks_the_endpoint(server: Server) -> None:
    shell, _ = said_lines(server)
    assert server.token not in shell
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=60, check=True)
    jsonschema.validate(json.loads(done.stdout), SCHEMA)


def test_the_python_line_asks_for_a_chat(server: Server) -> None:
    _, python = said_lines(server)
    names: dict[str, Any] = {}
    exec(python.replace("client.chat", "answer = client.chat"), names)
    assert names["answer"].model == "alpha"
    names["client"].close()


def test_without_endpoint_and_token_a_chat_is_asked_for_with_neither() -> None:
    shell, python = asking_lines("http://127.0.0.1:8080", "it's", None, None)
    assert "Authorization" not in shell
    said = subprocess.run(["bash", "-c", f"printf '%s\\n' {shell}"], capture_output=True, text=True, check=True).stdout
    words = said.splitlines()
    assert words[1] == "http://127.0.0.1:8080/v1/chat/completions"
    assert json.loads(words[-1])["model"] == "it's"
    assert 'api_key="none"' in python


def test_a_token_file_with_a_space_in_its_name_is_read(tmp_path: Path) -> None:
    file = tmp_path / "its token"
    file.write_text("secret\n")
    shell, _ = asking_lines("http://127.0.0.1:8080", "m", "timeline", file)
    said = subprocess.run(["bash", "-c", f"printf '%s\\n' {shell}"], capture_output=True, text=True, check=True).stdout
    assert "Authorization: Bearer secret" in said.splitlines()
    assert "timeline" in said
