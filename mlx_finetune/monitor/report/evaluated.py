"""The evaluations that a run folder keeps, as ``mlxft eval`` wrote them; a file that cannot be read is named."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from mlx_finetune.errors import Problem
from mlx_finetune.journal import NOT_NOTED, of_other_weights
from mlx_finetune.monitor.report.typed import read_kept
from mlx_finetune.rundir import EVALUATIONS, RunDir

_MOST_TAUGHT = 0.05  # of the rows; short ones are alike by chance


@dataclass(frozen=True, slots=True)
class Verdict:
    """One sentence, and what it comes to: learned, unproven, worse or alone."""

    outcome: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Baseline:
    """What the commonest class would be right for, in a sentence."""

    sentence: str


@dataclass(frozen=True, slots=True)
class Rows:
    """What was measured on: so many rows, or blocks of long texts."""

    source: str
    split: str
    num_rows: int
    unit: str = "row"
    num_in_training: int | None = None
    num_in_validation: int | None = None

    @property
    def is_taught(self) -> bool:
        """Whether more of them taught the run than the odd one that is alike, so that it cannot be ranked by them."""
        return (self.num_in_training or 0) > _MOST_TAUGHT * self.num_rows


@dataclass(frozen=True, slots=True)
class Figure:
    """A value with its 95 % interval, None where the rows give none; ``num_right`` of a rate."""

    value: float
    low: float | None
    high: float | None
    num_rows: int
    num_right: int | float | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """From base to tuned over the same rows."""

    value: float
    low: float | None
    high: float | None
    is_factor: bool = False


@dataclass(frozen=True, slots=True)
class Measured:
    """One measure on every side."""

    title: str
    is_higher_better: bool
    sides: Mapping[str, Figure]
    change: Change | None = None
    is_tested: bool = False
    is_better: bool = False
    is_worse: bool = False
    is_shown: bool = True
    name: str = ""


@dataclass(frozen=True, slots=True)
class Changed:
    """A row whose leading measure changed, with both answers."""

    where: str
    question: str
    before: float
    after: float
    base_answer: str = ""
    tuned_answer: str = ""


@dataclass(frozen=True, slots=True)
class Category:
    """Everything measured over the rows of one category."""

    name: str
    num_rows: int
    measures: tuple[Measured, ...]


@dataclass(frozen=True, slots=True)
class Gate:
    """A limit from the recipe or the command line, and whether the result keeps it."""

    gate: str
    value: float | None
    is_met: bool


@dataclass(frozen=True, slots=True)
class Classes:
    """``counts[i][j]`` rows of class i were taken for class j; the last column are rows where none was named."""

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One eval/NAME.json; what it has beside this is left to the file.

    ``other_weights`` says of which step it is, where the run has other weights by now.
    """

    name: str
    measured: str
    data: Rows
    verdict: Verdict
    measures: tuple[Measured, ...]
    lead: str = ""
    is_whole: bool = True
    categories: tuple[Category, ...] = ()
    gained: tuple[Changed, ...] = ()
    lost: tuple[Changed, ...] = ()
    gates: tuple[Gate, ...] = ()
    classes: Mapping[str, Classes] = field(default_factory=dict[str, Classes])
    baseline: Baseline | None = None
    failed: tuple[Problem, ...] = field(default=())
    identity: Mapping[str, object] = field(default_factory=dict[str, object])
    texts: Mapping[str, Mapping[str, object]] = field(default_factory=dict[str, Mapping[str, object]])
    subject: str = ""
    step: int | None = NOT_NOTED
    other_weights: str = ""


def read_evaluations(run: RunDir) -> tuple[list[Evaluation], list[str]]:
    """Every eval/NAME.json of ``run``, the newest first, and the names of those that cannot be read."""
    found, damaged = read_kept(run.file(EVALUATIONS), Evaluation)
    return [
        replace(one, other_weights=of_other_weights(run, one.step, measured=one.measured, subject=one.subject))
        for one in found
    ], damaged
