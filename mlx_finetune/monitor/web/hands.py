"""What the page can do and show that this layer cannot: handed in by the command, each as a function of a run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mlx_finetune.rundir import RunDir

Json = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Hands:
    """Functions that raise ``MlxftError`` where they cannot; called in worker threads.

    ``rows`` takes a split, the number of the first row and how many. ``go_on`` and ``talk`` are commands that a person
    copies into a new terminal, the first "" where the run does not tell it.
    """

    stop: Callable[[RunDir], object]
    save_now: Callable[[RunDir], object]
    go_on: Callable[[RunDir], str]
    talk: Callable[[RunDir], str]
    rows: Callable[[RunDir, str, int, int], Json]
    compare: Callable[[RunDir, RunDir], Json]
    settings: Callable[[RunDir], Json]
    num_bytes: Callable[[RunDir], int]
