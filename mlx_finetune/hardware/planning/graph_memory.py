"""What a training step on a GPU holds: one compiled graph, with kernels for norms, rotations and attention.

Not measured on Metal: counted from what each gradient reads, and held against reported peaks (MACOS.md section 2.1).
Bytes of a microbatch of ``B`` sequences of ``T`` positions.
"""

from dataclasses import dataclass

from mlx_finetune.hardware.planning.blockwise_memory import chunk_rows, mask_bytes
from mlx_finetune.hardware.planning.microbatch import Layout, Learned
from mlx_finetune.hardware.planning.shapes import ModelShape

GPU_CHUNKS = 8  # chunks of a CPU that are one on a GPU, which wants taller products: 520 rows of Llama 3's 128,256

FLOAT = 4


@dataclass(frozen=True, slots=True)
class Terms:
    """``value_bytes`` of an activation; ``has_fused_gradient``: fused attention has a gradient for a causal mask."""

    value_bytes: int
    recompute: bool
    has_fused_gradient: bool


def backward_bytes(shape: ModelShape, learned: Learned, layout: Layout, terms: Terms) -> int:
    """Blocks that keep what their gradients read, and one more at work; recomputed: two blocks, and what enters each.

    The second of the two are the gradients of what is recomputed.
    """
    block = layout.positions * block_bytes(shape, learned, terms) + scores_bytes(shape, layout, terms)
    entered = layout.positions * shape.hidden_size * terms.value_bytes
    kept = 2 * block + learned.blocks * entered if terms.recompute else (learned.blocks + 1) * block
    return kept + FLOAT * learned.total + mask_bytes(layout)


def block_bytes(shape: ModelShape, learned: Learned, terms: Terms) -> int:
    """What the gradients of one block read, for each position; a frozen layer's gradient does not read its input.

    What enters both norms; queries and keys before a norm of their own; turned queries and keys, values, attention's
    output and its normaliser; what the MLP's first layers give. The input of each layer that learns, in fp32 for an
    adapter (one copy for all that share it; with dropout one for each, and its mask), with the adapter's narrow
    product; DoRA's output before the gain.
    """
    width, keys = shape.attention_width, shape.key_width
    mlp = [linear for linear in shape.linears if not linear.is_attention]
    vectors = 2 * shape.hidden_size + 2 * width + 2 * keys + sum(one.outputs for one in mlp[:-1])
    if shape.kind.has_head_norms:
        vectors += width + keys
    learning = learned.adapted or shape.linears
    read = {(one.is_attention, one.inputs, one.name if one in _last(shape) else "") for one in learning}
    narrow = learned.rank * len(learned.adapted)
    gained = sum(one.outputs for one in learned.adapted) if learned.use_dora else 0
    inputs = sum(inputs for _, inputs, _ in read)
    read_bytes = FLOAT if learned.adapted else terms.value_bytes
    if learned.has_dropout:
        inputs, read_bytes = sum(one.inputs for one in learned.adapted), FLOAT + terms.value_bytes
    return vectors * terms.value_bytes + inputs * read_bytes + FLOAT * (narrow + gained + shape.num_heads)


def scores_bytes(shape: ModelShape, layout: Layout, terms: Terms) -> int:
    """``B heads T T b``: the probabilities that attention's gradient reads where it is not fused.

    So it was for every mask before mlx 0.32.4, and is for the block-diagonal mask of packed rows.
    """
    if terms.has_fused_gradient and not layout.is_packed:
        return 0
    return layout.positions * layout.length * shape.num_heads * terms.value_bytes


def loss_bytes(shape: ModelShape, learned: Learned, layout: Layout, terms: Terms) -> int:
    """All that is kept, and a chunk of logits: as the head gives them, in fp32, and the gradient in both types."""
    block = layout.positions * block_bytes(shape, learned, terms) + scores_bytes(shape, layout, terms)
    entered = layout.positions * shape.hidden_size * terms.value_bytes
    kept = learned.blocks * (entered if terms.recompute else block)
    rows = max(1, round(layout.positions * layout.target_share))
    logits = min(rows, GPU_CHUNKS * chunk_rows(shape.vocab_size)) * shape.vocab_size * 2 * (terms.value_bytes + FLOAT)
    vectors = (2 * layout.positions + 2 * rows) * shape.hidden_size * terms.value_bytes
    return kept + logits + vectors + FLOAT * learned.outside + mask_bytes(layout)


def _last(shape: ModelShape) -> tuple[object, object]:
    """The last layers of attention and of the MLP: no other layer shares their input."""
    attention = [linear for linear in shape.linears if linear.is_attention]
    return attention[-1], shape.linears[-1]
