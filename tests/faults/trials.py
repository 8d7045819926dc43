"""Saves and trainings whose file operations are recorded and disturbed: the shim, its log, and the server that forks.

What may happen to an operation is in ``shim.c``.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pytest

HERE = Path(__file__).resolve().parent
ACTIONS = ("kill", "torn", "short", "eintr", "eio", "enospc")
WRITING = {"write", "pwrite", "sendfile", "copy_file_range"}
#: Actions that only some operations know; the others are for all of them (shim.c: WAITS, SPACE, DATA).
ONLY = {
    "torn": WRITING,
    "short": WRITING,
    "eintr": {"write", "pwrite", "writev", "open", "creat", "fsync", "fdatasync", "ftruncate"},
    "enospc": WRITING | {"writev", "open", "creat", "fsync", "fdatasync", "ftruncate", "mkdir", "rename", "link"},
}


#: Calls that change nothing; whatever else strace sees under the root must be in the shim's log.
READING = {
    *("read", "pread64", "lseek", "close", "stat", "fstat", "newfstatat", "lstat", "statx", "access", "faccessat2"),
    *(
        "getdents64",
        "readlink",
        "readlinkat",
        "fcntl",
        "ioctl",
        "flock",
        "dup2",
        "statfs",
        "fstatfs",
        "getcwd",
        "chdir",
    ),
}
STRACE = ("strace", "-f", "-y", "-s", "300", "-e", "trace=%file,%desc", "-e", "signal=none", "-o")


@dataclass(frozen=True, slots=True)
class Operation:
    """A line of the shim's log. ``action`` is what was done to it, "-" for nothing; paths are relative to the root."""

    name: str
    result: int
    action: str
    path: str
    second: str


@dataclass(frozen=True, slots=True)
class Ended:
    """How a trial ended: its exit code (a signal's is negative); an exception by the names of its type and bases."""

    operations: Sequence[Operation]
    output: str
    code: int
    error: Sequence[str] = ()
    message: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One trial. ``problems`` is empty where everything held; the two flags are columns of the table."""

    name: str
    action: str
    is_intact: bool
    goes_on: bool
    problems: Sequence[str]


@dataclass(slots=True)
class Server:
    """A preloaded process that forks a trial for each call of ``run``; ``kind`` is save or train."""

    kind: str
    shim: Path
    folder: Path
    prefix: Sequence[str] = ()
    count: int = 0
    process: subprocess.Popen[str] = field(init=False)

    def __post_init__(self) -> None:
        path = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent)])
        environment = os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        start = [*self.prefix, "env", f"LD_PRELOAD={self.shim}", sys.executable, str(HERE / "server.py"), self.kind]
        self.process = subprocess.Popen(
            start, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=self.folder
        )

    def run(self, root: Path, *, index: int = 0, action: str = "", arguments: Sequence[str] = ()) -> Ended:
        """One trial on ``root`` with ``action`` at its operation number ``index`` (from 1; 0 for none)."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.count += 1
        log, output = self.folder / f"{self.count}.log", self.folder / f"{self.count}.out"
        trial = {"root": str(root), "log": str(log), "output": str(output), "index": index, "action": action}
        self.process.stdin.write(json.dumps(trial | {"arguments": list(arguments)}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the server has ended"
        return Ended(read_log(log), output.read_text(errors="replace"), **json.loads(line))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End it: a server whose input ends leaves."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(timeout=20)


def build_shim(folder: Path) -> Path:
    """The compiled shim; the test is skipped, visibly, where it cannot be built or preloaded."""
    if sys.platform != "linux" or shutil.which("cc") is None:
        pytest.skip("needs Linux and a C compiler (cc) for the shim")
    shim = folder / "shim.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(shim), str(HERE / "shim.c"), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return shim


@contextmanager
def memory_folder() -> Generator[Path]:
    """A temporary folder, in memory where the system has such a place: flushing to a disk costs 20 ms each time."""
    memory = Path("/dev/shm")
    place = str(memory) if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="mlxft-", dir=place) as folder:
        yield Path(folder).resolve()


def base_name(call: str) -> str:
    """The name of a call without the variants of glibc and the kernel: openat64 is open, renameat2 is rename."""
    return re.sub(r"(at2?|64)+$", "", call)


def read_log(path: Path) -> list[Operation]:
    """The operations of a trial in order."""
    found: list[Operation] = []
    for line in path.read_text().splitlines():
        name, result, action, path_name, second = line.split("\t")
        found.append(Operation(base_name(name), int(result), action, path_name, second))
    return found


def applicable(operation: Operation) -> list[str]:
    """The actions that can happen to an operation."""
    actions = [action for action in ACTIONS if operation.name in ONLY.get(action, {operation.name})]
    return [action for action in actions if not (action in ("torn", "short") and operation.result < 2)]


def done_to(ended: Ended) -> list[str]:
    """What the shim did in a trial, each action once: a full disk stays full."""
    return sorted({operation.action for operation in ended.operations} - {"-"})


def render_table(verdicts: Iterable[Verdict]) -> str:
    """Trials by operation: how many there were, after how many every checkpoint was intact and the end was the same."""
    rows: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        rows.setdefault(verdict.name, []).append(verdict)
    rows = dict(sorted(rows.items())) | {"all": [verdict for row in rows.values() for verdict in row]}
    lines = [f"{'operation':<12}{'actions':>8}{'trials':>8}{'intact':>8}{'resumed':>9}{'problems':>10}"]
    for name, row in rows.items():
        counts = (len({v.action for v in row}), len(row), sum(v.is_intact for v in row), sum(v.goes_on for v in row))
        lines.append("{:<12}{:>8}{:>8}{:>8}{:>9}{:>10}".format(name, *counts, sum(bool(v.problems) for v in row)))
    return "\n".join(lines)


def read_strace(trace: Path, root: Path) -> list[str]:
    """The calls in a file of strace's that change something under ``root``, in order, named as the shim names them."""
    return [found for line in trace.read_text().splitlines() if (found := _traced(line, str(root)))]


def _traced(line: str, root: str) -> str:
    """The call on a line of strace's where it changes something under ``root``, else an empty string."""
    match = re.match(r"\d+ +(\w+)\((.*)", line)
    if not match or not re.search(rf'["<]{re.escape(root)}[/">]', match[2]):
        return ""
    call, rest = base_name(match[1]), match[2]
    if match[1] in READING or (call == "open" and not re.search(r"O_(WRONLY|RDWR|CREAT|TRUNC)", rest)):
        return ""
    return "" if call == "mmap" and "MAP_SHARED" not in rest else call
