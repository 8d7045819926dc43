"""Whether what leaves the frozen blocks is computed once and kept (``training.reuse_frozen_layers``), and where.

With adapters in the last blocks only, the hidden states that enter the lowest of them are the same in every epoch. One
pass over all rows computes them; after it a step spends ``3 f`` instead of ``1 + 2 f`` forward passes, ``f`` being the
share of blocks that learn. They take one vector of the hidden size for every token: 2.3 kB in SmolLM2-135M (fp32), so
small sets stay in memory and larger ones go to a file. Both give the same bits, so only whether it is done is recorded.
"""

from dataclasses import dataclass

from mlx_finetune.hardware.planning.memory import checkpoint_bytes, trainable_parameters
from mlx_finetune.hardware.planning.moments import moment_bytes
from mlx_finetune.hardware.planning.shapes import ModelShape, adapted_layers
from mlx_finetune.recipe.preference import TWO_ANSWER_TASKS
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.units import format_bytes, format_count

EVERY_BLOCK = "every block has an adapter"

LEAST_PASSES = 1.5  # over the rows; the pass before step 1 is one more
MEMORY_SHARE = 0.25  # of what the plan leaves of the memory limit
DISK_SHARE = 0.5  # of what is free beside the checkpoints
GROUP_POSITIONS = 2048  # rows computed at once before step 1, or those of a microbatch where these are fewer


@dataclass(frozen=True, slots=True)
class KeptStates:
    """States of ``num_positions`` behind the lowest ``num_blocks`` blocks, in memory or in a file of the run folder.

    ``group_positions`` go through the model at once while they are computed.
    """

    num_blocks: int
    num_positions: int
    num_bytes: int
    in_memory: bool
    group_positions: int

    @property
    def sentence(self) -> str:
        """What is kept, where, and how large it is."""
        place = "in memory" if self.in_memory else "in a file of the run folder until it ends"
        what = (
            "1 block learns nothing: what leaves it is computed once"
            if self.num_blocks == 1
            else f"{self.num_blocks} blocks learn nothing: what leaves them is computed once"
        )
        return f"{what}, {format_count(self.num_positions)} positions, {format_bytes(self.num_bytes)} kept {place}"


def state_bytes(shape: ModelShape, num_positions: int, *, value_bytes: int) -> int:
    """One vector of the hidden size for each position; arrays of numpy, so beside the peak of ``planning.memory``."""
    return num_positions * shape.hidden_size * value_bytes


def frozen_blocks(shape: ModelShape, recipe: Recipe) -> int:
    """Blocks below the lowest that has an adapter."""
    return 0 if recipe.lora is None else shape.num_layers - adapted_layers(shape, recipe.lora)


def way_out(reason: str) -> str:
    """The hint where the key was asked for, and is impossible for ``reason``."""
    hint = 'write reuse_frozen_layers = "auto" under [training]'
    return f"{hint}, or give fewer blocks an adapter: lora.num_layers" if reason == EVERY_BLOCK else hint


def why_impossible(recipe: Recipe, shape: ModelShape, num_processes: int) -> str:
    """Why the states of the frozen blocks cannot be kept, "" where they can, as far as arithmetic knows.

    What only the loaded model tells (blocks that are no chain) is looked at in ``train.start.frozen``.
    """
    if recipe.task == "grpo":
        return "the rows are other answers in every step"
    if recipe.lora is None:
        return "every weight is trained"
    if not frozen_blocks(shape, recipe):
        return EVERY_BLOCK
    if recipe.task in TWO_ANSWER_TASKS:
        return f"task {recipe.task!r} has two answers in a row, and each sees the prompt alone"
    if recipe.training.neftune_alpha:
        return "neftune_alpha changes what enters the blocks in every step"
    if num_processes > 1:
        return f"{num_processes} processes share the rows"
    return ""


def is_in_memory(num_bytes: int, *, peak_bytes: int, limit_bytes: int) -> bool:
    """True where the states are small against what the plan leaves of the limit."""
    return num_bytes <= MEMORY_SHARE * max(0, limit_bytes - peak_bytes)


def has_disk(num_bytes: int, recipe: Recipe, shape: ModelShape, free_bytes: int | None) -> bool:
    """True where a file of that size leaves room for the checkpoints and as much again; None is enough."""
    if free_bytes is None:
        return True
    training = recipe.training
    moments = moment_bytes(shape, recipe.lora, recipe.training.optimizer)
    each = checkpoint_bytes(trainable_parameters(shape, recipe.lora), is_adapter=True, moments=moments)
    kept = training.keep_checkpoints + len(training.save_at) + 3
    return num_bytes <= DISK_SHARE * (free_bytes - kept * each)
