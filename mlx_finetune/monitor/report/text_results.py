"""What ``mlxft eval --checkpoints`` and ``--sinks`` keep in a run folder; a file that cannot be read is named."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlx_finetune import rundir
from mlx_finetune.journal import NOT_NOTED
from mlx_finetune.monitor.report.evaluated import Change, Figure
from mlx_finetune.monitor.report.typed import read_kept
from mlx_finetune.rundir import RunDir
from mlx_finetune.scoring.positions import Bucket


@dataclass(frozen=True, slots=True)
class At:
    """One checkpoint: figures by name (loss, perplexity, bits_per_byte), and the change from the one before."""

    step: int
    figures: Mapping[str, Figure]
    change: Change | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt as it was answered at one checkpoint."""

    step: int
    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Course:
    """One eval/checkpoints/NAME.json. ``how`` says how texts were read, "" where rows are answers."""

    name: str
    measured: str
    what: str
    source: str
    split: str
    num_rows: int
    num_tokens: int
    num_bytes: int
    tokenizer: str
    sentence: str
    points: tuple[At, ...]
    samples: tuple[Sample, ...] = ()
    unit: str = "row"
    how: str = ""


@dataclass(frozen=True, slots=True)
class SinkExperiment:
    """One eval/sinks/NAME.json; ``meaning`` says what each method keeps."""

    name: str
    measured: str
    source: str
    context: int
    num_texts: int
    num_tokens: int
    tokenizer: str
    sentence: str
    methods: tuple[str, ...]
    meaning: Mapping[str, str]
    buckets: tuple[Bucket, ...]
    subject: str = ""
    step: int | None = NOT_NOTED


@dataclass(frozen=True, slots=True)
class TextResults:
    """All of a run, the newest first; ``damaged`` are names inside its eval/ folder."""

    courses: tuple[Course, ...] = ()
    experiments: tuple[SinkExperiment, ...] = ()
    damaged: tuple[str, ...] = field(default=())


def read_text_results(run: RunDir) -> TextResults:
    """What there is."""
    courses, bad = read_kept(run.file(rundir.CHECKPOINT_EVALUATIONS), Course)
    experiments, worse = read_kept(run.file(rundir.SINK_EXPERIMENTS), SinkExperiment)
    damaged = [f"{Path(rundir.CHECKPOINT_EVALUATIONS).name}/{name}" for name in bad]
    damaged += [f"{Path(rundir.SINK_EXPERIMENTS).name}/{name}" for name in worse]
    return TextResults(tuple(courses), tuple(experiments), tuple(damaged))
