"""How much memory a training will take, as pure arithmetic: one function for each term, no mlx, nothing measured here.

    weights      all frozen parameters at the stored type; on a CPU everything is float32
    trainable    weight 4 and two moments 8 bytes a parameter; 4 or 8 more while gradients are added up
    activations  what the forward pass keeps, and a block going backward: ``blockwise_memory`` and ``graph_memory``
    logits       what the loss holds beyond that, at its own moment; often 0
    update       gradients, new weights and moments, at another moment than the activations: the larger counts
    drawing      answers that a run says to learn from, at a third moment (``hardware.planning.answering``)

The total is the peak that ``mx.get_peak_memory`` reports. Arrays of numpy, of which training on a CPU makes some, are
not in it. On a CPU within 5 % (``benchmarks/memory_terms.py``); Metal was not measured.
"""

from dataclasses import dataclass

from mlx_finetune.hardware.planning import blockwise_memory, graph_memory, seq2seq_memory
from mlx_finetune.hardware.planning.microbatch import Layout, Learned, what_learns
from mlx_finetune.hardware.planning.shapes import ModelShape
from mlx_finetune.recipe.schema import LoraRecipe

__all__ = [
    "Layout",
    "MemoryPlan",
    "adapter_file_bytes",
    "checkpoint_bytes",
    "plan_memory",
    "trainable_bytes",
    "trainable_parameters",
    "update_bytes",
    "weight_bytes",
]

GROUP_SIZE = 64  # rows of a quantised matrix share one scale and one bias (2 bytes each) in groups of this size


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes of each term; ``total`` is the predicted peak. ``drawing`` is what the answers take that a run says itself,
    less what it has let go of by then."""

    weights: int
    trainable: int
    activations: int
    logits: int
    update: int
    drawing: int = 0

    @property
    def total(self) -> int:
        """The peak: what is always there, and the largest of a backward pass, an update and a drawing."""
        return self.weights + self.trainable + max(self.activations + self.logits, self.update, self.drawing)

    def corrected(self, factor: float) -> int:
        """The peak where everything beyond the frozen weights, whose size is certain, is multiplied by ``factor``."""
        return self.weights + round((self.total - self.weights) * factor)

    def factor(self, peak_bytes: float) -> float:
        """The factor by which ``peak_bytes`` is the corrected peak."""
        return (peak_bytes - self.weights) / (self.total - self.weights)


def plan_memory(
    shape: ModelShape,
    lora: LoraRecipe | None,
    layout: Layout,
    *,
    value_bytes: int,
    stored_bits: int | None,
    recompute: bool,
    on_gpu: bool = False,
    has_fused_gradient: bool = True,
    moments: int | None = None,
) -> MemoryPlan:
    """The terms for one model, adapter and layout.

    ``value_bytes`` is the size of an activation (4 for float32, 2 otherwise), ``stored_bits`` of a quantised base.
    ``on_gpu`` takes the step as one compiled graph, else block by block; ``has_fused_gradient`` says that fused
    attention has a gradient, as it has from mlx 0.32.4 on. ``moments`` are the bytes of the optimizer's state, None for
    the two moments of AdamW.
    """
    learned = what_learns(shape, lora)
    if shape.decoder_layers:
        backward = seq2seq_memory.backward_bytes(shape, learned, layout, value_bytes=value_bytes, recompute=recompute)
        loss = seq2seq_memory.loss_bytes(shape, learned, layout, value_bytes=value_bytes, recompute=recompute)
        num_parts = 1
    elif on_gpu:
        terms = graph_memory.Terms(value_bytes, recompute=recompute, has_fused_gradient=has_fused_gradient)
        backward = graph_memory.backward_bytes(shape, learned, layout, terms)
        loss = graph_memory.loss_bytes(shape, learned, layout, terms)
        num_parts = 1
    else:
        backward = blockwise_memory.backward_bytes(shape, learned, layout, recompute=recompute)
        loss = blockwise_memory.loss_bytes(shape, learned, layout, recompute=recompute)
        backward += expert_bytes(shape, layout)
        num_parts = len(blockwise_memory.pieces(shape, layout))
    own_weights = 0 if lora is None else weight_bytes(shape, value_bytes=value_bytes, stored_bits=stored_bits)
    return MemoryPlan(
        weights=own_weights,
        trainable=trainable_bytes(learned.total, accumulation=layout.accumulation, moments=moments),
        activations=backward,
        logits=max(0, loss - backward),
        update=update_bytes(shape, learned, num_parts=num_parts, accumulation=layout.accumulation),
    )


def expert_bytes(shape: ModelShape, layout: Layout) -> int:
    """What a block with experts holds on a CPU beside what one MLP does: five arrays of the size of its inner states,
    one for each expert of a token, and the gradient of its stacks. Measured at four small shapes."""
    if not shape.experts_per_token:
        return 0
    inner = layout.positions * shape.experts_per_token * shape.intermediate_size
    stacks = sum(one.num_weights for one in shape.linears if one.copies > 1)
    return 4 * (5 * inner + stacks)


def trainable_parameters(shape: ModelShape, lora: LoraRecipe | None) -> int:
    """Parameters that are learned: the adapter's, or all of them."""
    return what_learns(shape, lora).total


def weight_bytes(shape: ModelShape, *, value_bytes: int, stored_bits: int | None) -> int:
    """Bytes of the frozen base. Quantised matrices take ``bits + 32 / GROUP_SIZE`` bits an entry (scale and bias)."""
    matrices = shape.num_layers * shape.block_weights + shape.embedding_weights
    bits = 8 * value_bytes if stored_bits is None else stored_bits + 32 / GROUP_SIZE
    return round(matrices * bits / 8) + shape.other_parameters * value_bytes


def trainable_bytes(num_parameters: int, *, accumulation: int, moments: int | None = None) -> int:
    """Weight and the optimizer's ``moments`` (two of AdamW) in fp32; the sum of gradients while microbatches are added
    up, and from the third on the last microbatch's beside it."""
    kept = 8 * num_parameters if moments is None else moments
    return num_parameters * (4 + 4 * _held_gradients(accumulation)) + kept


def _held_gradients(accumulation: int) -> int:
    """Sets of gradients that are there beside a microbatch's own."""
    return min(2, accumulation - 1)


def update_bytes(shape: ModelShape, learned: Learned, *, num_parts: int, accumulation: int = 1) -> int:
    """Beyond ``trainable_bytes``, the larger of two moments.

    Gradients of both halves, which are added in the place of one, and in each half the gradient of a learned embedding
    through what enters the first block; clipped gradients, new weights, and what MLX computes ahead of them: two arrays
    of the size of embedding and head, or of 1.5 blocks' parameters. That last moment comes when the gradients held
    between microbatches are gone.
    """
    embedding = shape.vocab_size * shape.hidden_size if learned.outside else 0
    front = num_parts * (learned.total + embedding)
    held = _held_gradients(accumulation) * learned.total
    applied = 2 * learned.total + max(2 * learned.outside, 3 * learned.in_block // 2) - held
    return 4 * max(front, applied)


def adapter_file_bytes(num_parameters: int) -> int:
    """One file of trained weights in fp32."""
    return 4 * num_parameters


def checkpoint_bytes(num_parameters: int, *, is_adapter: bool, moments: int | None = None) -> int:
    """A checkpoint: trained weights (an adapter twice, once for each reader) and the optimizer's ``moments``, fp32."""
    return num_parameters * 4 * (2 if is_adapter else 1) + (8 * num_parameters if moments is None else moments)
