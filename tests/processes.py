"""Real ``mlxft`` processes whose training child is ``waiting_child.py``, and waiting for what they do."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from mlx_finetune.rundir import LOCK, SUPERVISOR, RunDir, lock_holder

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 30  # seconds, on a machine that has a lot else to do


class Machine:
    """A folder with recipes and runs, and the processes that were started in it; ``close`` ends all of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        code = "import sys\nfrom mlx_finetune.app.running import launch\nlaunch.CHILD_MODULE = 'waiting_child'\n"
        stand_in = folder / "stand_in"
        stand_in.mkdir()
        # Only in mlxft itself: the child needs no launch module, and starts faster without it.
        (stand_in / "sitecustomize.py").write_text(
            f"import sys\nif 'waiting_child' not in sys.orig_argv:\n    exec({code!r})\n"
        )
        paths = (str(stand_in), str(ROOT), str(ROOT / "tests"))
        self.environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "TERM": "dumb"}
        self._started: list[subprocess.Popen[str]] = []

    def recipe(self, mode: str, name: str = "demo") -> RunDir:
        """Write ``NAME.toml``; the folder its run will have."""
        text = f'model = "{mode}"\noutput_dir = "adapters/{name}"\n[data]\npath = "rows.jsonl"\n'
        (self.folder / f"{name}.toml").write_text(text)
        return RunDir(self.folder / "adapters" / name)

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """``mlxft ARGUMENTS`` in the folder, running."""
        started = subprocess.Popen(
            [sys.executable, "-m", "mlx_finetune", *arguments],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(started)
        return started

    def call(self, *arguments: str) -> tuple[int, list[str]]:
        """Exit code of ``mlxft ARGUMENTS`` and the lines of its stderr."""
        started = self.start(*arguments)
        _, err = started.communicate(timeout=TIMEOUT)
        return started.returncode, err.splitlines()

    def close(self) -> None:
        """End whatever is still at work in the folder, supervisors first."""
        for lock in (SUPERVISOR, LOCK):
            for path in self.folder.glob(f"adapters/*/{lock}"):
                pid = lock_holder(path)
                if pid:
                    os.kill(pid, signal.SIGKILL)
        for started in self._started:
            started.kill()
            started.communicate()


def wait_until(holds: Callable[[], object]) -> None:
    """Return as soon as ``holds``; an assertion fails where it never does."""
    deadline = time.monotonic() + TIMEOUT
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def steps(run: RunDir) -> int:
    """How many steps the journal holds."""
    journal = run.file("events.jsonl")
    return journal.read_bytes().count(b'"kind": "step"') if journal.is_file() else 0
