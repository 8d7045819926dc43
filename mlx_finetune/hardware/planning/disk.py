"""Room on the disk: what a run will need, by arithmetic, and what is free. Plan and trainer ask the same one."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlx_finetune.errors import DoesNotFitError
from mlx_finetune.hardware.planning.answering import kept_answers_bytes
from mlx_finetune.hardware.planning.memory import adapter_file_bytes, checkpoint_bytes, trainable_parameters
from mlx_finetune.hardware.planning.moments import moment_bytes
from mlx_finetune.hardware.planning.shapes import ModelShape
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.units import format_bytes

EVENT_BYTES = 420  # one line of the journal
#: Kept free beside a checkpoint: the journal, samples and small files must still find room until the next one.
SPARE_BYTES = 10_000_000


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """Bytes on the volume of the run folder. ``needed`` is for the whole run, what it has already is in there.

    ``answers`` are those of a drawing, at most: a checkpoint between two updates on them (grpo) holds them beside the
    ``checkpoint``.
    """

    adapter: int
    checkpoint: int
    needed: int
    free: int
    answers: int = 0

    @property
    def largest(self) -> int:
        """The most that a checkpoint may take."""
        return self.checkpoint + self.answers


def plan_disk(
    recipe: Recipe,
    trainable: int,
    total_steps: int,
    folder: Path,
    *,
    beside: int,
    moments: int | None = None,
    answers: int = 0,
) -> DiskPlan:
    """Room for ``keep_checkpoints + 2`` checkpoints, the adapter and the journal, on the volume of ``folder``.

    ``beside`` are the bytes of the tokenizer in each, ``moments`` those of the optimizer's state (None: of AdamW's),
    ``answers`` those of answers that a checkpoint may hold.
    """
    is_adapter = recipe.lora is not None
    adapter = adapter_file_bytes(trainable) * (2 if is_adapter else 1) + beside
    checkpoint = checkpoint_bytes(trainable, is_adapter=is_adapter, moments=moments) + beside
    kept = recipe.training.keep_checkpoints + len(recipe.training.save_at) + 2
    journal = EVENT_BYTES * total_steps // recipe.training.logging_steps
    needed = kept * (checkpoint + answers) + adapter + journal
    return DiskPlan(adapter, checkpoint, needed, free_bytes(folder), answers)


def plan_run_disk(
    recipe: Recipe, shape: ModelShape, lengths: NDArray[np.integer], total_steps: int, folder: Path, *, beside: int
) -> DiskPlan:
    """``plan_disk`` for what the resolved ``recipe`` trains of a model of this ``shape``, with its optimizer.

    ``lengths`` are the tokens of the rows, as they are planned; ``beside`` the bytes of the tokenizer.
    """
    moments = moment_bytes(shape, recipe.lora, recipe.training.optimizer)
    trainable = trainable_parameters(shape, recipe.lora)
    answers = kept_answers_bytes(recipe, int(lengths.max(initial=0)), shape.vocab_size)
    return plan_disk(recipe, trainable, total_steps, folder, beside=beside, moments=moments, answers=answers)


def free_bytes(folder: Path) -> int:
    """Bytes that this user may still write on the volume of ``folder``, which need not exist yet."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def check_room(plan: DiskPlan, folder: Path, *, num_existing: int) -> None:
    """Refuse a run that cannot be kept. ``num_existing`` checkpoints are there already.

    Two checkpoints more than there are is the least: the one being written beside the one that must stay. Raises
    ``DoesNotFitError``.
    """
    needed = max(plan.needed - num_existing * plan.checkpoint, 2 * plan.largest)
    if plan.free < needed + SPARE_BYTES:
        raise DoesNotFitError(
            f"the run needs {format_bytes(needed)} of disk for its checkpoints and {format_bytes(SPARE_BYTES)} to "
            f"spare, and {format_bytes(plan.free)} are free where {folder} lies",
            "make room, lower training.keep_checkpoints, or choose an output_dir on another volume",
        )
