"""How much memory a training will take, as pure arithmetic: one function for each term, no mlx, nothing measured here.

Bytes of a microbatch of ``B`` sequences of ``T`` positions through a model of which ``K`` blocks keep what they need
for the backward pass (all that have an adapter):

    weights      all parameters at the stored type; on a CPU everything is float32
    trainable    weight 4, gradient 4, two moments 8 bytes a parameter; 4 more while gradients are accumulated
    activations  (K + 1) blocks of B T (13 H + 3 I + heads T) b, where b is 2 or 4; one block is at work
    recomputed   instead: two blocks while one of them goes backward, and K B T H b for what enters each
    logits       4 B T V in fp32: the head's output, its fp32 copy, the softmax, the gradient
    update       12 bytes a trainable parameter, at another moment than the activations: the larger of the two counts

The factors were fitted to peaks measured with mlx 0.32.4 on a CPU (SmolLM2-135M, 4 to 30 adapted blocks, T 64 to 512:
within 2 %, with recomputation 5 %, 2026-11-21; ``benchmarks/memory_terms.py`` measures them
again). Metal was not measured.
"""

from dataclasses import dataclass

from mlx_finetune.hardware.shapes import ModelShape, adapted_layers, adapter_parameters
from mlx_finetune.recipe.schema import LoraRecipe

HIDDEN_COPIES = 13  # vectors of the hidden size that one block keeps for each position
MLP_COPIES = 3  # vectors of the inner size of the MLP
SCORE_COPIES = 1  # T x T matrices that one head keeps
RECOMPUTED_BLOCKS = 2  # what is recomputed of one block, and its gradients, in blocks
LOGIT_COPIES = 4  # copies of the logits in fp32 at the peak
GROUP_SIZE = 64  # rows of a quantised matrix share one scale and one bias (2 bytes each) in groups of this size


@dataclass(frozen=True, slots=True)
class Layout:
    """The largest microbatch: ``batch_size`` sequences of ``length`` positions."""

    batch_size: int
    length: int
    accumulation: int = 1


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes of each term; ``total`` is the predicted peak."""

    weights: int
    trainable: int
    activations: int
    logits: int
    update: int

    @property
    def total(self) -> int:
        """The peak: what is always there, and the larger of a backward pass and an update."""
        return self.weights + self.trainable + max(self.activations + self.logits, self.update)


def plan_memory(
    shape: ModelShape,
    lora: LoraRecipe | None,
    layout: Layout,
    *,
    value_bytes: int,
    stored_bits: int | None,
    recompute: bool,
) -> MemoryPlan:
    """The terms for one model, adapter and layout.

    ``value_bytes`` is the size of an activation (4 for float32, 2 otherwise), ``stored_bits`` of a quantised base.
    """
    trained = trainable_parameters(shape, lora)
    own_weights = 0 if lora is None else weight_bytes(shape, value_bytes=value_bytes, stored_bits=stored_bits)
    return MemoryPlan(
        weights=own_weights,
        trainable=trainable_bytes(trained, accumulation=layout.accumulation),
        activations=activation_bytes(shape, lora, layout, value_bytes=value_bytes, recompute=recompute),
        logits=logit_bytes(shape, layout),
        update=update_bytes(trained),
    )


def trainable_parameters(shape: ModelShape, lora: LoraRecipe | None) -> int:
    """Parameters that are learned: the adapter's, or all of them."""
    return shape.num_parameters if lora is None else adapter_parameters(shape, lora)


def weight_bytes(shape: ModelShape, *, value_bytes: int, stored_bits: int | None) -> int:
    """Bytes of the frozen base. Quantised matrices take ``bits + 32 / GROUP_SIZE`` bits an entry (scale and bias)."""
    matrices = shape.num_layers * shape.block_weights + shape.embedding_weights
    bits = 8 * value_bytes if stored_bits is None else stored_bits + 32 / GROUP_SIZE
    return round(matrices * bits / 8) + shape.other_parameters * value_bytes


def trainable_bytes(num_parameters: int, *, accumulation: int) -> int:
    """Weight, gradient and two moments in fp32; one more gradient while microbatches are added up."""
    return num_parameters * (20 if accumulation > 1 else 16)


def update_bytes(num_parameters: int) -> int:
    """What an update holds besides: new weights and moments before the old ones go, 12 bytes a parameter."""
    return num_parameters * 12


def activation_bytes(
    shape: ModelShape, lora: LoraRecipe | None, layout: Layout, *, value_bytes: int, recompute: bool
) -> int:
    """What the forward pass keeps for the backward pass."""
    kept = shape.num_layers if lora is None else adapted_layers(shape, lora)
    positions = layout.batch_size * layout.length
    width = HIDDEN_COPIES * shape.hidden_size + MLP_COPIES * shape.intermediate_size
    scores = SCORE_COPIES * shape.num_heads * layout.length
    block = positions * (width + scores) * value_bytes
    if not recompute:
        return (kept + 1) * block
    return RECOMPUTED_BLOCKS * block + kept * positions * shape.hidden_size * value_bytes


def logit_bytes(shape: ModelShape, layout: Layout) -> int:
    """The head's output for every position in fp32, its softmax and its gradient."""
    return layout.batch_size * layout.length * shape.vocab_size * 4 * LOGIT_COPIES


def adapter_file_bytes(num_parameters: int) -> int:
    """One file of trained weights in fp32."""
    return 4 * num_parameters


def checkpoint_bytes(num_parameters: int, *, is_adapter: bool) -> int:
    """A checkpoint: trained weights (an adapter twice, once for each reader) and two moments, fp32."""
    return num_parameters * (4 * (2 if is_adapter else 1) + 8)
