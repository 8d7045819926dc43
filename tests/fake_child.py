"""A training child without training: writes a journal, obeys signals, ends as told. Run by test_launch.py."""

import os
import signal
import sys
import time
from pathlib import Path

from mlx_finetune.events import (
    CheckpointSaved,
    Evaluated,
    Phase,
    RunFailed,
    RunFinished,
    RunStarted,
    RunStopped,
    Sampled,
    StepDone,
)
from mlx_finetune.journal import EventWriter

STARTED = RunStarted("demo", "tiny", "sft", 0, 6, 3, 24, 4, 1000, 50_000, "cpu", "float32", 8 * 10**9)

#: What is said on stderr, and the exit code, of a child that ends before it has begun.
AT_ONCE = {
    "refuse": ("error: the folder holds a finished run\nhint: mlxft train RECIPE --resume\n", 1),
    "full": ("", 74),
}


def step(number: int) -> StepDone:
    """Step ``number``, with a loss of 2.0 that falls by a tenth each step."""
    return StepDone(number, number / 3, 2.0 - 0.1 * number, 1e-3, 0.5, 40, 50, 0.1, 0.01, 4000.0, 10**8, 2 * 10**8)


def cut_back(journal: Path) -> None:
    """What a resumed run does first: back to its checkpoint, here the first four lines."""
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:4]))


def hear(number: int, arrived: list[int]) -> None:
    """As the real one does: only a second SIGINT leaves at once."""
    arrived.append(number)
    if arrived.count(signal.SIGINT) > 1:
        os._exit(128 + number)


def wait_for_ever() -> None:
    while True:
        time.sleep(0.01)


def main(folder: Path, mode: str) -> int:
    """Do what ``mode`` says and return the exit code."""
    if mode in AT_ONCE:
        words, code = AT_ONCE[mode]
        sys.stderr.write(words)
        return code
    arrived: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: hear(number, arrived))
    folder.mkdir(parents=True, exist_ok=True)
    if mode == "cut":
        cut_back(folder / "events.jsonl")
    emit = EventWriter(folder / "events.jsonl", clock=time.time)
    emit(Phase("load", "tiny", 0, 10, "files"))
    emit(Evaluated(0, 2.5, 100, True, 0.1))
    emit(Sampled(0, "Hello?", "I do not know."))
    emit(STARTED)
    for number in range(1, 7):
        emit(step(number))
        if mode == "wait":
            (folder / "ready").touch()
            while not arrived:
                time.sleep(0.01)
            emit(RunStopped(number, arrived[0]))
            return 128 + arrived[0]
        if mode == "deaf":
            for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(one, signal.SIG_IGN)
        if mode in ("hang", "deaf"):
            (folder / "ready").touch()
            wait_for_ever()
        if mode == "kill" and number == 3:
            sys.stderr.write("the last thing it said\n")
            sys.stderr.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        if mode == "fail" and number == 2:
            emit(RunFailed("the loss is not finite", "lower the learning rate", 1))
            return 1
    emit(CheckpointSaved(6, "checkpoint-6", 4000, 0.01))
    emit(Evaluated(6, 1.5, 100, True, 0.1))
    emit(Sampled(6, "Hello?", "Good day to you."))
    emit(RunFinished(6, "all steps done", 2.5, 1.5, 6, 1.5, 12.0, 240, 2 * 10**8))
    emit.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
