"""What every tracker is asked to do, and what it is told about the run at the beginning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mlx_finetune.app.trackers.metrics import Metrics

PROJECT = "mlxft"


@dataclass(frozen=True, slots=True)
class About:
    """One run. ``folder`` is where a tracker may write; ``run_id`` is the same whenever the run goes on.

    ``first_step`` is the first one that has not been told; ``num_starts`` counts how often the tracker was opened
    before; ``config`` is the resolved recipe.
    """

    project: str
    name: str
    run_id: str
    folder: Path
    config: Mapping[str, object]
    first_step: int
    num_starts: int


class Tracker(Protocol):
    """An open tracker. Whatever it raises ends its process and nothing else."""

    def log(self, step: int, metrics: Metrics) -> None:
        """Numbers of one step, or of the machine during it."""
        ...

    def log_samples(self, step: int, pairs: Sequence[tuple[str, str]]) -> None:
        """Prompts and what the weights of ``step`` answered."""
        ...

    def flush(self) -> None:
        """What was logged so far is safe when this returns, as far as the library can say."""
        ...

    def finish(self, summary: Metrics, *, has_failed: bool) -> None:
        """No more calls follow; the run may go on later under the same id."""
        ...
