"""What can be done from the monitor, handed in by whoever starts it: the monitor itself only reads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlx_finetune.rundir import RunDir


@dataclass(frozen=True, slots=True)
class Hands:
    """``stop`` and ``save_now`` ask the run at work and return at once; they raise ``MlxftError`` where they cannot.

    ``resume_command`` is what a person types to go on with a run, "" where the run does not tell. ``copy`` puts a text
    on the clipboard of this machine, False where that cannot be done and the terminal is asked.
    """

    list_runs: Callable[[], Sequence[RunDir]]
    stop: Callable[[RunDir], object]
    save_now: Callable[[RunDir], object]
    resume_command: Callable[[RunDir], str]
    copy: Callable[[str], bool] = lambda text: False
