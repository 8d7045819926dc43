"""What the page can do and show that this layer cannot: handed in by the command, each as a function of a run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mlx_finetune.rundir import RunDir

Json = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Hands:
    """Functions that raise ``MlxftError`` where they cannot; called in worker threads.

    ``rows`` takes a split, the number of the first row and how many. ``go_on`` is the command that a person
    copies into a new terminal, "" where the run does not tell it; ``copied`` makes one of a command as typed here.
    """

    stop: Callable[[RunDir], object]
    save_now: Callable[[RunDir], object]
    go_on: Callable[[RunDir], str]
    copied: Callable[[str], str]
    rows: Callable[[RunDir, str, int, int], Json]
    compare: Callable[[RunDir, RunDir], Json]
    settings: Callable[[RunDir], Json]
    num_bytes: Callable[[RunDir], int]
