"""Real trainings on several ranks of this machine, each a process, connected by mlx's ring over the loopback."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mlx_finetune.events import Evaluated, StepDone
from mlx_finetune.journal import read_events
from mlx_finetune.rundir import EVENTS, RunDir

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 120  # seconds, on a machine that has a lot else to do
QUIET = ("eval.prompts=[]", "training.eval_steps=100000", "training.save_steps=5", "training.max_steps=100000")


def environment(**more: str) -> dict[str, str]:
    """That of the tests, with this checkout first."""
    return os.environ | {"PYTHONPATH": str(ROOT), "TERM": "dumb", "OPENBLAS_NUM_THREADS": "1"} | more


def ring_file(folder: Path, size: int) -> Path:
    """A file for MLX_HOSTFILE with free ports of this machine."""
    probes = [socket.socket() for _ in range(size)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    path = folder / "ring.json"
    path.write_text(json.dumps([[f"127.0.0.1:{probe.getsockname()[1]}"] for probe in probes]))
    for probe in probes:
        probe.close()
    return path


def hostfile(folder: Path, size: int) -> Path:
    """A hostfile of ``mlx.launch`` with ``size`` ranks on this machine."""
    path = folder / "hosts.json"
    path.write_text(json.dumps([{"ssh": "localhost", "ips": ["127.0.0.1"]}] * size))
    return path


def train_by_hand(recipe: Path, size: int, *arguments: str, others: Sequence[str] = ()) -> list[tuple[int, str]]:
    """Exit code and stderr of each rank; ``others`` are further arguments of those that are not rank 0."""
    ring = ring_file(recipe.parent, size)
    children = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "mlx_finetune.train.child",
                "--recipe",
                str(recipe),
                *arguments,
                *(others if rank else ()),
            ],
            env=environment(MLX_RANK=str(rank), MLX_HOSTFILE=str(ring)),
            cwd=recipe.parent,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        return [(child.wait(), err) for child in children for err in [child.communicate(timeout=TIMEOUT)[1]]]
    finally:
        for child in children:
            child.kill()


def ranks_at_work(recipe: Path) -> dict[int, int]:
    """Process ids of the training processes for ``recipe``, by rank."""
    found: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            variables = dict(
                line.split(b"=", 1) for line in (entry / "environ").read_bytes().split(b"\0") if b"=" in line
            )
        except (OSError, ValueError):
            continue
        if b"mlx_finetune.train.child" in words and str(recipe).encode() in words:
            found[int(variables.get(b"MLX_RANK", b"0"))] = int(entry.name)
    return found


def kill_rank(recipe: Path, rank: int) -> None:
    """SIGKILL to the training process of ``rank``."""
    os.kill(ranks_at_work(recipe)[rank], signal.SIGKILL)


def numbers(run: RunDir) -> dict[tuple[str, int], float]:
    """Training and validation loss of every step."""
    found: dict[tuple[str, int], float] = {}
    for record in read_events(run.file(EVENTS)):
        event = record.event
        if isinstance(event, StepDone | Evaluated):
            found[type(event).__name__, event.step] = event.loss
    return found
