"""The ranks beside the first: what is said of their end, and what is not said twice."""

import sys
from pathlib import Path

import pytest

from mlx_finetune.app.running.companions import companions
from mlx_finetune.app.running.endings import Ended
from mlx_finetune.app.running.hosts import Host, Hosts
from mlx_finetune.app.running.launch import TrainRequest, forwarding, train
from mlx_finetune.events import Record
from mlx_finetune.rundir import RunDir

HERE = Host("localhost", ("127.0.0.1",))
ELSEWHERE = Host("mac2.local", ("127.0.0.1",))
#: Every rank fails with code 2; it says "same", or "other" on rank 1, as a training process would.
FAILING = """
import os, sys
rank = os.environ["MLX_RANK"]
who = "" if rank == "0" else f"rank {rank}: "
what = sys.argv[1] if rank == "0" else sys.argv[2]
sys.stderr.write(f"{who}error: {what}\\n{who}hint: yes\\n")
sys.exit(2)
"""


class Said:
    """A view that remembers what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def show(self, record: Record) -> None:
        del record

    def tick(self, now: float) -> None:
        del now

    def say(self, message: str) -> None:
        self.said.append(message)

    def close(self) -> None:
        """Nothing to restore."""


def train_failing(folder: Path, first: str, second: str, view: Said) -> Ended:
    request = TrainRequest(Path("demo.toml"), hosts=Hosts((HERE, HERE)), num_ranks=2)
    command = [sys.executable, "-c", FAILING, first, second]
    with forwarding(view.say) as signals:
        return train(request, RunDir(folder), view, signals, command=command)


def test_what_all_ranks_refuse_is_said_once(tmp_path: Path):
    view = Said()
    ended = train_failing(tmp_path / "run", "no such file", "no such file", view)
    assert ended.exit_code == 2
    assert "error: no such file" in ended.log_tail
    assert view.said == []


def test_what_only_another_rank_says_is_passed_on(tmp_path: Path):
    view = Said()
    train_failing(tmp_path / "run", "no such file", "no such model", view)
    assert view.said == ["rank 1 on localhost ended with code 2: rank 1: error: no such model; rank 1: hint: yes"]


def fake_ssh(folder: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    ssh = folder / "ssh"
    ssh.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_a_host_that_ssh_cannot_reach_is_named_with_the_reason_and_what_to_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fake_ssh(tmp_path, monkeypatch, "echo ssh: Could not resolve hostname mac2.local >&2", "exit 255")
    with companions(Hosts((HERE, ELSEWHERE)), ["train"]) as others:
        others.end(has_failed=False)
        assert others.failure == (
            "rank 1 on mac2.local ended with code 255: ssh: Could not resolve hostname mac2.local"
        )
        assert "ssh -- mac2.local true" in others.hint
        assert "docs/several-macs.md, step 2" in others.hint


def test_a_rank_that_ssh_did_start_is_no_matter_of_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake_ssh(tmp_path, monkeypatch, "echo rank 1: error: no model >&2", "exit 1")
    with companions(Hosts((HERE, ELSEWHERE)), ["train"]) as others:
        others.end(has_failed=False)
        assert others.hint == "mend that, then give the same command again"
        assert others.errors == ("no model",)
