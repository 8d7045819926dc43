"""What the folder of a small run holds after a kill, and what a finished one must share with its reference."""

import hashlib
import json
import re
from dataclasses import dataclass

from mlx_finetune import rundir
from mlx_finetune.events import CheckpointSaved, RunStopped, from_json
from mlx_finetune.rundir import RunDir
from mlx_finetune.train.checkpoints.commit import newest_checkpoint, read_checkpoint


@dataclass(frozen=True, slots=True)
class State:
    """What a run folder holds: the newest valid checkpoint's step, the last one announced, what cannot be read.

    ``stopped`` is the step after which the run says it was stopped, where that is its last word.
    """

    step: int
    announced: int
    unreadable: tuple[str, ...]
    stopped: int | None = None


def read_state(run: RunDir, announced: int) -> State:
    """Read everything a resume would need. ``announced``: the latest step ever announced as saved."""
    problems: list[str] = []
    for folder in sorted(run.path.glob("checkpoint-*")):
        if re.fullmatch(r"checkpoint-\d+", folder.name) and read_checkpoint(folder) is None:
            problems.append(f"{folder.name} is not whole")
    lines = run.file(rundir.EVENTS).read_bytes().split(b"\n") if run.file(rundir.EVENTS).is_file() else []
    stopped = None
    for number, line in enumerate(lines[:-1], 1):
        record = from_json(line)
        stopped = record.event.step if record and isinstance(record.event, RunStopped) else None
        if record is None:
            problems.append(f"line {number} of the journal cannot be read")
        elif isinstance(record.event, CheckpointSaved):
            announced = max(announced, record.event.step)
    newest = newest_checkpoint(run, on_damage=problems.append)
    if newest is None and announced:
        problems.append(f"step {announced} was announced as saved, and there is no valid checkpoint")
    try:
        read_status(run)
    except ValueError as error:
        problems.append(f"run.json cannot be read ({error})")
    return State(newest.step if newest else 0, announced, tuple(problems), stopped)


def read_status(run: RunDir) -> str:
    """The status in run.json, "" before there is one. Raises ``ValueError`` where the file is damaged."""
    path = run.file(rundir.RUN_INFO)
    return json.loads(path.read_bytes())["status"] if path.is_file() else ""


def fingerprint(run: RunDir) -> dict[str, object]:
    """What a finished run must share with its reference: hashes of the results by name, and its course."""
    from small_runs import course

    folders = (run.path, run.file(rundir.MODEL_FOLDER), *run.checkpoints()[-1:])
    files = [path for folder in folders for path in folder.glob("*.safetensors")]
    samples = run.file(rundir.SAMPLES)
    hashes = {
        str(path.relative_to(run.path)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in [*files, *([samples] if samples.exists() else [])]
    }
    return {**hashes, "course": course(run)}
