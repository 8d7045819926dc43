"""The runs a person may choose from: what became of each in a few words, the latest first."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlx_finetune.app.desktop.asking import choose
from mlx_finetune.app.desktop.desk import Desk
from mlx_finetune.app.running.follow import last_event_time
from mlx_finetune.errors import RunError
from mlx_finetune.rundir import (
    ADAPTER_CONFIG,
    MODEL_FOLDER,
    RUN_INFO,
    RunDir,
    find_run,
    list_runs,
    run_info,
    running_process,
)

Kind = Literal["none", "running", "finished", "unfinished"]


@dataclass(frozen=True, slots=True)
class RunState:
    """``step`` is the last one that run.json tells of; ``step`` and ``total`` are 0 where nothing is known."""

    kind: Kind
    step: int = 0
    total: int = 0

    @property
    def words(self) -> str:
        """``stopped at step 12``, ``finished``, ``at work``; "" where there is no run."""
        match self.kind:
            case "none":
                return ""
            case "running":
                return "at work"
            case "finished":
                return "finished"
            case "unfinished":
                return f"stopped at step {self.step}" if self.step else "stopped before its first checkpoint"


def read_state(run: RunDir) -> RunState:
    """What became of a run, from its locks and its run.json."""
    if running_process(run) is not None:
        return RunState("running")
    if not run.is_run():
        return RunState("none")
    info = run_info(run)
    if not info:
        return RunState("unfinished" if run.file(RUN_INFO).is_file() or run.checkpoint_folders() else "none")
    step = info.get("step")
    kind: Kind = "finished" if info.get("status") == "finished" else "unfinished"
    return RunState(kind, step if isinstance(step, int) else 0)


def has_result(run: RunDir) -> bool:
    """Is there something that can answer?"""
    return bool(run.checkpoints()) or run.file(ADAPTER_CONFIG).is_file() or run.file(MODEL_FOLDER).is_dir()


def known_runs(desk: Desk) -> Sequence[RunDir]:
    """The runs under adapters/, the latest first."""
    return sorted(list_runs(desk.adapters), key=last_event_time, reverse=True)


def at_work(desk: Desk) -> Sequence[RunDir]:
    """Those in which a training is at work."""
    return [run for run in known_runs(desk) if read_state(run).kind == "running"]


def pick_run(desk: Desk, given: Sequence[str], prompt: str) -> RunDir:
    """The run that is named, else the only one that can answer, else the one that is chosen.

    Raises ``RunError`` where there is none, and ``Cancelled``.
    """
    if given:
        return find_run(given[0], base=Path())
    runs = [run for run in known_runs(desk) if has_result(run)]
    runs.sort(key=lambda run: running_process(run) is not None)  # one at work is slowed by it: never what Return takes
    if not runs:
        raise RunError("nothing has been trained here yet", 'double-click "Train" first')
    if len(runs) == 1 or not desk.can_ask:
        return runs[0]
    picked = choose(desk, prompt, [label(run) for run in runs])
    assert isinstance(picked, int), "no path was asked for"
    return runs[picked]


def label(run: RunDir) -> str:
    """A run in a menu: its name and what became of it."""
    words = read_state(run).words
    return f"{run.path.name} ({words})" if words else run.path.name
