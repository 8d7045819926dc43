"""What a memory plan is about: the largest microbatch, and what is learned. Plain values and counts of parameters."""

from dataclasses import dataclass

from mlx_finetune.hardware.planning.shapes import Linear, ModelShape, adapted_layers, adapter_parameters, target_linears
from mlx_finetune.recipe.schema import LoraRecipe


@dataclass(frozen=True, slots=True)
class Layout:
    """The largest microbatch: ``batch_size`` sequences of ``length`` positions.

    ``target_share`` of the positions have a target; ``is_packed`` means several rows in a sequence. ``is_whole``: a CPU
    does not compute it in two halves.
    """

    batch_size: int
    length: int
    accumulation: int = 1
    target_share: float = 1.0
    is_packed: bool = False
    is_whole: bool = False

    @property
    def positions(self) -> int:
        """Positions of the whole microbatch."""
        return self.batch_size * self.length


@dataclass(frozen=True, slots=True)
class Learned:
    """What is learned. ``adapted`` are the linear layers of a block with an adapter, empty where all weights learn.

    ``blocks`` learn something, each ``in_block`` parameters; ``outside`` are those of the embedding, head and norm,
    ``scores`` those of a score head.
    ``has_dropout``: what enters each adapter is masked.
    """

    blocks: int
    rank: int
    use_dora: bool
    adapted: tuple[Linear, ...]
    in_block: int
    outside: int
    has_dropout: bool = False
    scores: int = 0

    @property
    def total(self) -> int:
        """All parameters that are learned."""
        return self.blocks * self.in_block + self.outside + self.scores


def what_learns(shape: ModelShape, lora: LoraRecipe | None) -> Learned:
    """What ``lora`` makes learnable, or everything without it."""
    scores = shape.num_outputs * shape.hidden_size
    if lora is None:
        outside = shape.embedding_weights + shape.outside_parameters
        in_block = (shape.num_parameters - outside) // shape.num_layers
        outside = shape.num_parameters - in_block * shape.num_layers
        return Learned(shape.num_layers, 0, False, (), in_block, outside, scores=scores)
    blocks = adapted_layers(shape, lora)
    in_block = adapter_parameters(shape, lora) // blocks
    adapted = target_linears(shape, lora)
    has_dropout = lora.dropout > 0
    return Learned(blocks, lora.rank, lora.use_dora, adapted, in_block, 0, has_dropout, scores)
