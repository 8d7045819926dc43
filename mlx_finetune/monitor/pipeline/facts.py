"""What is known of a pipeline, from pipeline.json and the folders of its stages; what is missing is left out."""

import hashlib
import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mlx_finetune import rundir
from mlx_finetune.errors import RunError
from mlx_finetune.monitor.report.evaluated import Evaluation, Figure, read_evaluations
from mlx_finetune.monitor.report.facts import ReportFacts, read_facts
from mlx_finetune.monitor.report.typed import read_json
from mlx_finetune.recipe.pipeline.record import PipelineRecord, StageRecord, read_record
from mlx_finetune.rundir import RunDir

_TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, slots=True)
class Way:
    """How often one way to pick an answer is right: a share of the problems with its interval."""

    name: str
    value: float
    low: float
    high: float
    num_right: int | None = None

    def figure(self, num_problems: int) -> Figure:
        """As a share in a table."""
        return Figure(self.value, self.low, self.high, num_problems, self.num_right or 0)


@dataclass(frozen=True, slots=True)
class Difference:
    """The share of the first way less that of the second, over the same problems."""

    first: str
    second: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Picks:
    """One comparison of ways to pick one of ``k`` answers, as ``mlxft sample`` and ``eval --samples`` keep it."""

    samples: str
    num_problems: int
    k: int
    ways: tuple[Way, ...]
    compared: tuple[Difference, ...] = ()
    scorer: str = "verifier"


@dataclass(frozen=True, slots=True)
class StageFacts:
    """One stage. ``run`` is None for a command and before a training began; ``evaluations`` are by name, and are those
    that the pipeline measured. ``vocabulary`` is equal for tokenizers that cut texts alike. ``earlier`` names the stage
    whose result has been made anew, or is gone, since this one was made from it, "" where there is none.
    ``went_on``: it was trained further since the pipeline has run it, and its figures are of the weights before."""

    record: StageRecord
    folder: Path
    run: ReportFacts | None
    evaluations: Mapping[str, Evaluation]
    picks: tuple[Picks, ...]
    vocabulary: str
    is_at_work: bool
    earlier: str = ""
    went_on: bool = False

    @property
    def status(self) -> str:
        """As the record says; a stage that has begun is running only while a process is, and what has no folder any
        more is removed."""
        if self.record.status == "finished" and not self.folder.is_dir():
            return "removed"
        if self.record.status != "begun":
            return self.record.status
        return "running" if self.is_at_work else "interrupted"

    @property
    def mark(self) -> str:
        """``, of an earlier sft`` behind its figures; "" where they are of what is there now."""
        if self.earlier:
            return f", of an earlier {self.earlier}"
        return ", from before it was trained further" if self.went_on else ""


@dataclass(frozen=True, slots=True)
class PipelineFacts:
    """All stages in order. ``is_running``: a process is at work on the pipeline."""

    name: str
    folder: Path
    record: PipelineRecord
    stages: tuple[StageFacts, ...]
    is_running: bool

    @property
    def seconds(self) -> float:
        """Time at work of all stages and evaluations, over all starts."""
        return sum(one.seconds for one in (*self.record.stages, *self.record.evaluations))

    def command(self, *options: str) -> str:
        """``mlxft pipeline FILE`` with the overrides of the last start and ``options``, quoted for a shell."""
        given = [part for one in self.record.overrides for part in ("--set", one)]
        return shlex.join(["mlxft", "pipeline", self.record.file, *given, *options])


def read_pipeline(
    folder: Path, seen: Callable[[PipelineRecord], PipelineRecord] = lambda record: record
) -> PipelineFacts:
    """The pipeline in ``folder``, by the record as it is ``seen`` while no process is at work on it.

    Raises ``RunError`` where there is none.
    """
    record = read_record(folder)
    if record is None:
        raise RunError(f"no pipeline has run in {folder}", "start it: mlxft pipeline FILE")
    is_running = rundir.lock_holder(folder / rundir.LOCK) is not None
    record = record if is_running else seen(record)
    stages = [_stage(one, folder / one.name, record, is_running=is_running) for one in record.stages]
    there = tuple(
        replace(one.record, result_sha256="") if one.status == "removed" or one.went_on else one.record
        for one in stages
    )
    earlier = replace(record, stages=there).outdated()
    found = tuple(replace(one, earlier=earlier.get(one.record.name, "")) for one in stages)
    return PipelineFacts(folder.resolve().name, folder, record, found, is_running)


def _stage(record: StageRecord, folder: Path, pipeline: PipelineRecord, *, is_running: bool) -> StageFacts:
    run = RunDir(folder)
    facts = read_facts(run) if record.kind == "train" and run.is_run() else None
    measured = {one.name for one in pipeline.evaluations if one.stage == record.name and pipeline.is_measured(one)}
    found, _ = read_evaluations(run) if facts is not None else ([], [])
    is_at_work = is_running or (facts is not None and facts.run.is_running)
    own = {one.name: one for one in found if one.name in measured}
    picks = tuple(_picks(folder)) if record.kind == "command" else ()
    was_done = record.status == "finished" and record.step is not None
    went_on = was_done and rundir.weights_step(run) not in (None, record.step)
    return StageFacts(record, folder, facts, own, picks, _vocabulary(folder), is_at_work, went_on=went_on)


def _vocabulary(folder: Path) -> str:
    """SHA-256 of what cuts a text into tokens, whatever template goes with it; "" where nothing tells."""
    for path in (folder / rundir.MODEL_FOLDER / _TOKENIZER, folder / _TOKENIZER):
        try:
            found = json.loads(path.read_bytes())
            parts = [found[key] for key in ("model", "normalizer", "pre_tokenizer")]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return ""


def _picks(folder: Path) -> Iterator[Picks]:
    """Every comparison in the folder of a command, by name; other files are passed over."""
    for path in sorted(folder.glob("*.json")):
        found = read_json(path, Picks)
        if found is not None and found.ways:
            yield found
