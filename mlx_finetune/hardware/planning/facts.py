"""What the rules behind "auto" look at: the rows, the model and the machine, as plain values."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlx_finetune.hardware.limits import Machine
from mlx_finetune.hardware.planning.shapes import ModelShape
from mlx_finetune.hardware.tuned import NOTHING_TUNED, TunedSettings


@dataclass(frozen=True, slots=True)
class Facts:
    """What the rules look at. ``lengths`` are the tokens of each training row of one epoch, int array.

    ``unpackable`` says why rows of this model cannot share a sequence, "" where they can. ``stored_bits`` are those of
    a base that is quantised on disk. ``memory_factor`` is what earlier runs here took of what was predicted beyond the
    frozen weights (``hardware.profile``). ``most_targets`` are those of the row that has most (None: every token).
    ``train_positions`` and ``valid_positions`` are those of all rows, each once (0: those of ``lengths``, and none);
    ``num_valid`` rows are evaluated. ``answers`` are those marked good and bad by weight, where rows are marked.
    ``free_disk_bytes`` None is enough; ``num_processes`` train together. ``tuned`` is what ``mlxft tune`` found here,
    ``scorer_bytes`` what runs hold that reward answers.
    """

    lengths: NDArray[np.integer]
    shape: ModelShape
    machine: Machine
    unpackable: str = ""
    stored_bits: int | None = None
    memory_factor: float = 1.0
    most_targets: int | None = None
    train_positions: int = 0
    valid_positions: int = 0
    num_valid: int = 0
    free_disk_bytes: int | None = None
    num_processes: int = 1
    answers: tuple[float, float] | None = None
    tuned: TunedSettings = NOTHING_TUNED
    scorer_bytes: int = 0

    @property
    def epoch_positions(self) -> int:
        """Positions of the rows of an epoch without padding; the last token of a row is in none."""
        return int(np.sum(self.lengths)) - len(self.lengths)
