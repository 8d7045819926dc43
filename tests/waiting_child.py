"""A training child without training that goes on until it is asked to stop; what sitecustomize puts in the real one's
place in the tests of detach, stop and monitor (see ``tests/processes.py``).

Its recipe's ``model`` says what it does: ``refuse``, ``fail`` before it has started, ``deaf`` (hears no signal),
``crash`` (aborts once, at step 3), ``finish`` (after a file FOLDER/finish is there), ``late`` (starts when FOLDER/go is
there), or anything else.
"""

import argparse
import dataclasses
import os
import resource
import signal
import sys
import time
import tomllib
from pathlib import Path

from fake_child import STARTED, step, wait_for_ever

from mlx_finetune import durable, rundir
from mlx_finetune.events import CheckpointSaved, Phase, Restarted, RunFailed, RunFinished, RunStopped
from mlx_finetune.journal import EventWriter
from mlx_finetune.rundir import RunDir

SAVES: list[int] = []  # requests for a checkpoint that are not carried out yet


def hear(number: int, arrived: list[int]) -> None:
    """As the real one does: only a second SIGINT leaves at once."""
    arrived.append(number)
    if arrived.count(signal.SIGINT) > 1:
        os._exit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", type=Path)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--parent-pid", type=int)
    parser.add_argument("--restarts")
    asked = parser.parse_args()
    recipe = tomllib.loads(asked.recipe.read_text())
    run, mode = RunDir(Path(recipe["output_dir"])), recipe["model"]
    arrived: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: hear(number, arrived))
    signal.signal(rundir.SAVE_SIGNAL, lambda number, _: SAVES.append(number))
    if mode == "refuse":
        sys.stderr.write("error: no such model\nhint: mlxft models list\n")
        return 1
    run.path.mkdir(parents=True, exist_ok=True)
    if rundir.take_lock(run.file(rundir.LOCK)) is None:
        raise AssertionError(f"{run.path} is taken")
    log = os.open(run.file(rundir.LOG), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    emit = EventWriter(run.file(rundir.EVENTS), clock=time.time)
    emit(Phase("load", "tiny"))
    if mode == "fail":
        emit(RunFailed("the data has no rows", "look at them", 1))
        return 1
    while mode.startswith("late") and not run.file("go").exists():
        if arrived:
            emit(RunStopped(0, arrived[0]))
            return 128 + arrived[0]
        time.sleep(0.01)
    info = {"status": "running", "recipe_path": str(asked.recipe), "overrides": asked.set}
    durable.write_json(run.file(rundir.RUN_INFO), info)
    done = int(run.checkpoints()[-1].name.split("-")[1]) if run.checkpoints() else 0
    if asked.restarts:
        emit(Restarted(done, 1, "SIGABRT", "a library aborted the training process (SIGABRT)", "", is_bitwise=True))
    emit(dataclasses.replace(STARTED, first_step=done, total_steps=10_000))
    if mode == "deaf":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        wait_for_ever()
    return train(run, emit, mode, arrived, asked, done)


def train(run: RunDir, emit: EventWriter, mode: str, arrived: list[int], asked: argparse.Namespace, done: int) -> int:
    """Steps until a signal comes, the parent goes, or the mode says otherwise; a checkpoint is all that is saved."""
    while True:
        done += 1
        emit(step(done))
        if os.getppid() != asked.parent_pid:
            arrived.append(signal.SIGHUP)
        if mode == "finish" and run.file("finish").exists():
            emit(RunFinished(done, "finished", 2.5, 1.5, done, 1.5, 12.0, 240, 2 * 10**8))
            return 0
        if arrived or done == 2 or SAVES:
            SAVES.clear()
            run.checkpoint(done).mkdir()
            (run.checkpoint(done) / rundir.MANIFEST).write_text("{}")
            emit(CheckpointSaved(done, f"checkpoint-{done}", 1, 0.1))
        if arrived:
            emit(RunStopped(done, arrived[0]))
            return 128 + arrived[0]
        if "crash" in mode and done == 3 and not asked.restarts:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.abort()
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main())
