"""What a report is made from, read from the run folder alone; a file that is missing or damaged leaves its part out."""

import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlx_finetune import rundir
from mlx_finetune.dataset.card import DataCard
from mlx_finetune.dataset.token_losses import Microscope, read_microscope
from mlx_finetune.events import Continued, Paused, Record, RunStarted, TimeJump
from mlx_finetune.journal import read_events
from mlx_finetune.monitor.report.choices import Choice, read_choices
from mlx_finetune.monitor.report.evaluated import Evaluation, read_evaluations
from mlx_finetune.monitor.report.text_results import TextResults, read_text_results
from mlx_finetune.monitor.report.traced import Trace, read_trace
from mlx_finetune.monitor.report.typed import read_json
from mlx_finetune.monitor.run_report import RunFacts
from mlx_finetune.monitor.summary import Summary
from mlx_finetune.rundir import RunDir, folder_bytes

_MAX_TEXT_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Origin:
    """Hashes and versions of run.json: what must be the same for the same weights."""

    data_sha256: str = ""
    model_sha256: str = ""
    tokenizer_sha256: str = ""
    adapter_sha256: str = ""
    versions: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What run.json says of the run."""

    created: str = ""
    model: str = ""
    model_source: str = ""
    revision: str | None = None
    license: str | None = None
    full: bool = False
    recipe_path: str = ""
    overrides: tuple[str, ...] = ()
    resolved: Mapping[str, object] = field(default_factory=dict[str, object])
    identity: Origin = field(default_factory=Origin)


@dataclass(frozen=True, slots=True)
class Wait:
    """A time without training after ``step``; ``seconds`` is None where the journal ends in it."""

    step: int
    reason: str
    seconds: float | None


@dataclass(frozen=True, slots=True)
class ReportFacts:
    """One run. ``files`` are (name, bytes) of what lies in its folder, folders as one, without what only marks it."""

    run: RunFacts
    info: RunInfo
    recipe: str
    choices: tuple[Choice, ...]
    card: DataCard | None
    evaluations: tuple[Evaluation, ...]
    damaged: tuple[str, ...]
    waits: tuple[Wait, ...]
    microscope: Microscope | None
    files: tuple[tuple[str, int | None], ...]
    texts: TextResults = field(default_factory=TextResults)
    trace: Trace | None = None

    @property
    def shell_name(self) -> str:
        """What a user types for this run, from wherever the report is read; quoted for a shell."""
        path = Path(self.run.path)
        return shlex.quote(path.name if path.parent.name == "adapters" else self.run.path)

    @property
    def summary(self) -> Summary:
        """What the journal adds up to."""
        return self.run.summary


def read_facts(run: RunDir) -> ReportFacts:
    """Everything at once; the journal is read a single time."""
    summary, waits = _fold(read_events(run.file(rundir.EVENTS)))
    info = read_json(run.file(rundir.RUN_INFO), RunInfo) or RunInfo()
    recipe = _read_text(run.file(rundir.RECIPE))
    choices = read_choices(_read_text(run.file(rundir.RESOLVED)), recipe, info.overrides)
    evaluations, damaged = read_evaluations(run)
    files = tuple(_files(run))
    checkpoints = tuple((path.name, folder_bytes(path)) for path in run.checkpoints())
    is_running = rundir.running_process(run) is not None
    total = sum(size for _, size in files if size is not None)
    path = Path(os.path.abspath(run.path))  # not resolved: a link to a run has the name that the user gave it
    return ReportFacts(
        run=RunFacts(path.name, str(path), total, is_running, checkpoints, summary),
        info=info,
        recipe=recipe,
        choices=tuple(choices),
        card=read_json(run.file(rundir.DATA_CARD), DataCard),
        evaluations=tuple(evaluations),
        damaged=tuple(damaged),
        waits=tuple(waits),
        microscope=read_microscope(run),
        files=files,
        texts=read_text_results(run),
        trace=read_trace(run.file(rundir.TRACE)),
    )


def _fold(records: Iterable[Record]) -> tuple[Summary, list[Wait]]:
    """The summary, and every pause and sleep with the step after which it came."""
    summary, waits = Summary(), list[Wait]()
    for record in records:
        summary.add(record)
        event = record.event
        if isinstance(event, RunStarted):
            waits = [one for one in waits if one.step <= event.first_step and one.seconds is not None]
        elif isinstance(event, Paused):
            waits.append(Wait(event.step, event.reason, None))
        elif isinstance(event, Continued) and waits:
            waits[-1] = Wait(waits[-1].step, waits[-1].reason, event.seconds)
        elif isinstance(event, TimeJump) and event.was_asleep and summary.paused is None:
            waits.append(Wait(summary.steps_done, "the machine was asleep", event.seconds))
    return summary, waits


def _read_text(path: Path) -> str:
    """A small text file; "" where it is missing, "?" for what is not UTF-8."""
    try:
        with path.open("rb") as file:
            return file.read(_MAX_TEXT_BYTES).decode("utf-8", "replace").replace("\r\n", "\n")
    except OSError:
        return ""


def _files(run: RunDir) -> Iterable[tuple[str, int | None]]:
    """What lies in the folder, by name. What may go on growing after the report is made has no size."""
    if not run.path.is_dir():
        return
    for entry in sorted(run.path.iterdir()):
        if entry.name.startswith(".") or rundir.is_report(entry.name):
            continue
        if entry.name in (rundir.LOG, rundir.TRACKERS):
            yield entry.name + "/" * entry.is_dir(), None
        elif entry.is_dir() and not entry.is_symlink():
            yield f"{entry.name}/", folder_bytes(entry)
        else:
            yield entry.name, entry.lstat().st_size
