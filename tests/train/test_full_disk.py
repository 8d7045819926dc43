"""A disk that is full at the start or in the middle: one sentence, nothing lost, and it goes on with room again."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def told(tiny_model: Callable[..., Path], tmp_path: Path) -> list[dict[str, object]]:
    """What full_disk.py prints; skipped where nobody may mount a file system of their own."""
    own = ["unshare", "-Urm"]
    probe = f"mount -t tmpfs -o size=1m tmpfs {tmp_path}"
    if (
        not shutil.which("unshare")
        or subprocess.run([*own, "sh", "-c", probe], capture_output=True, check=False).returncode
    ):
        pytest.skip("needs unshare and the right to mount inside it")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    command = [*own, sys.executable, str(ROOT / "tests/full_disk.py"), str(tmp_path), str(tiny_model("llama"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_a_full_disk_costs_no_checkpoint_and_is_one_sentence(told: list[dict[str, object]]) -> None:
    refused, no_checkpoint, no_byte, again, published = told
    assert (refused["code"], refused["all"]) == (3, [])
    assert "of disk for its checkpoints" in str(refused["said"])
    for one in (no_checkpoint, no_byte):
        assert one["code"] == 1, one
        *before, error, hint = one["said"]  # pyright: ignore[reportGeneralTypeIssues]
        assert all(line.startswith("hint: try again with: mlxft report ") for line in before), one
        assert "is full" in error, one
        assert "--resume" in hint
        assert one["whole"] == one["all"], "a checkpoint was damaged"
        assert one["whole"], "a checkpoint was lost"
    assert again["code"] == 0, again
    assert published["hash"]
