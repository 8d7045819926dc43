"""A training child without training that crashes as told, with checkpoints and a run.json. Run by test_supervise.py.

    python crashing_child.py FOLDER PLAN [arguments of mlx_finetune.train.child]

PLAN is JSON: ``resolved`` for run.json, ``save_every``, ``total`` and ``crashes``, one object for each start: ``step``
(0 is before anything is decided), ``how`` (abort, a signal's name, an exit code, or abort-when-told, which is at
SIGTERM) and what it ``says`` last. A start beyond the list finishes. Its arguments go to FOLDER/../starts.jsonl.
"""

import argparse
import dataclasses
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

from fake_child import STARTED, step, wait_for_ever

from mlx_finetune import durable, rundir
from mlx_finetune.events import CheckpointSaved, Restarted, RunFailed, RunFinished
from mlx_finetune.journal import EventWriter
from mlx_finetune.rundir import RunDir


def main(folder: Path, plan: dict, arguments: list[str]) -> int:
    """Train as far as the plan lets this start come."""
    parser = argparse.ArgumentParser()
    for name in ("--resume", "--fork"):
        parser.add_argument(name, action="store_true")
    for name in ("--recipe", "--set", "--extend", "--parent-pid"):
        parser.add_argument(name)
    parser.add_argument("--restarts", type=json.loads, default=[])
    parser.add_argument("--safer", type=json.loads)
    asked = parser.parse_args(arguments)
    starts = folder.with_name("starts.jsonl")
    number = starts.read_text().count("\n") if starts.is_file() else 0
    with starts.open("a") as file:
        file.write(json.dumps(vars(asked)) + "\n")
    crash = plan["crashes"][number] if number < len(plan["crashes"]) else None
    if crash and crash["step"] == 0:
        return end(crash)
    return train(RunDir(folder), plan, asked, crash)


def train(run: RunDir, plan: dict, asked: argparse.Namespace, crash: dict | None) -> int:
    """From the newest checkpoint to the end or the crash."""
    run.path.mkdir(parents=True, exist_ok=True)
    lock = rundir.take_lock(run.file(rundir.LOCK))
    assert lock is not None
    log = os.open(run.file(rundir.LOG), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 2)
    done = int(run.checkpoints()[-1].name.split("-")[1]) if run.checkpoints() else 0
    sizes = json.loads(run.file("sizes.json").read_text()) if done else {}
    if run.file(rundir.EVENTS).is_file():
        os.truncate(run.file(rundir.EVENTS), sizes.get(str(done), 0))
    emit = EventWriter(run.file(rundir.EVENTS), clock=time.time)
    for one in asked.restarts:
        emit(Restarted(done, one["attempt"], one["cause"], one["message"], one["change"], one["is_bitwise"]))
    info = {"status": "running", "step": done, "resolved": plan["resolved"], "safer": asked.safer}
    durable.write_json(run.file(rundir.RUN_INFO), info)
    durable.write_text(run.file(rundir.RECIPE), Path(asked.recipe).read_text() if Path(asked.recipe).is_file() else "")
    emit(dataclasses.replace(STARTED, first_step=done))
    for number in range(done + 1, plan["total"] + 1):
        emit(step(number))
        if number % plan["save_every"] == 0:
            run.checkpoint(number).mkdir()
            emit(CheckpointSaved(number, f"checkpoint-{number}", 1, 0.1))
            sizes[str(number)] = run.file(rundir.EVENTS).stat().st_size
            run.file("sizes.json").write_text(json.dumps(sizes))
            (run.checkpoint(number) / rundir.MANIFEST).write_text("{}")
        if crash and crash["step"] == number:
            if "failed" in crash:
                message, hint = crash["failed"]
                emit(RunFailed(message, hint, 1))
            return end(crash)
    emit(RunFinished(6, "finished", 2.5, 1.5, 6, 1.5, 12.0, 240, 2 * 10**8))
    return 0


def end(crash: dict) -> int:
    """Say the last words and go, as the plan wants it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stderr.write(crash.get("says", "") + "\n")
    sys.stderr.flush()
    match crash["how"]:
        case "abort":
            os.abort()
        case "abort-when-told":
            signal.signal(signal.SIGTERM, lambda *_: os.abort())
            wait_for_ever()
        case int(code):
            return code
        case name:
            os.kill(os.getpid(), signal.Signals[name])
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:]))
