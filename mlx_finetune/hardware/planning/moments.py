"""What an optimizer keeps beside the weights, in bytes, by arithmetic (``train.optimizers``)."""

from mlx_finetune.hardware.planning.microbatch import Learned, what_learns
from mlx_finetune.hardware.planning.shapes import ModelShape
from mlx_finetune.recipe.schema import LoraRecipe
from mlx_finetune.recipe.training import OptimizerName


def moment_bytes(shape: ModelShape, lora: LoraRecipe | None, optimizer: OptimizerName) -> int:
    """fp32: two numbers a parameter for AdamW, one for Lion; one for each hidden matrix and two for the rest for Muon;
    for Adafactor a row and a column of each matrix."""
    learned = what_learns(shape, lora)
    if optimizer == "lion":
        return 4 * learned.total
    if optimizer == "muon":
        return 4 * (2 * learned.total - shape.num_layers * shape.block_weights)
    if optimizer == "adafactor":
        return 4 * _factored(shape, lora, learned)
    return 8 * learned.total


def _factored(shape: ModelShape, lora: LoraRecipe | None, learned: Learned) -> int:
    """Numbers that Adafactor keeps: those of vectors, and rows and columns of matrices."""
    if lora is not None:
        sides = sum(one.copies * (one.inputs + one.outputs + 2 * lora.rank) for one in learned.adapted)
        matrices = sum(one.copies * lora.rank * (one.inputs + one.outputs) for one in learned.adapted)
        return learned.blocks * (sides + learned.in_block - matrices)
    sides = sum(one.copies * (one.inputs + one.outputs) for one in shape.linears)
    heads = (2 if shape.has_own_head else 1) * (shape.vocab_size + shape.hidden_size)
    return shape.num_layers * sides + heads + shape.other_parameters
