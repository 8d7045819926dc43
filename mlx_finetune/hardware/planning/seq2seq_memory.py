"""What a training step of an encoder-decoder model holds: one graph, on a CPU too, with attention written out.

A row of a microbatch has prompt and answer positions: as many answer positions as the row with most targets, the rest
is prompt. Counted are the arrays that gradients read. Held against peaks of T5s of random sizes on a CPU
(``benchmarks/seq2seq_memory.py``): from 0.85 to 1.2 of them. Metal was not measured.
"""

from dataclasses import dataclass

from mlx_finetune.hardware.planning.blockwise_memory import chunk_rows
from mlx_finetune.hardware.planning.graph_memory import GPU_CHUNKS
from mlx_finetune.hardware.planning.microbatch import Layout, Learned
from mlx_finetune.hardware.planning.shapes import ModelShape

FLOAT = 4


@dataclass(frozen=True, slots=True)
class Sides:
    """Positions of one row on each side, and the rows."""

    rows: int
    prompt: int
    answer: int


def sides_of(layout: Layout) -> Sides:
    """How the largest microbatch divides."""
    answer = max(1, round(layout.length * layout.target_share))
    return Sides(layout.batch_size, max(1, layout.length - answer), answer)


def backward_bytes(shape: ModelShape, learned: Learned, layout: Layout, *, value_bytes: int, recompute: bool) -> int:
    """What all blocks keep and the gradients of one, and those of the weights, summed and divided; recomputed: what
    enters each block, and 2.6 blocks (measured)."""
    sides = sides_of(layout)
    block = block_floats(shape, learned, sides)
    entered = sides.rows * (sides.prompt + sides.answer) * shape.hidden_size
    kept = shape.num_layers * entered + 2.6 * block if recompute else (shape.num_layers + 1) * block
    return round(kept * value_bytes) + round(2.5 * FLOAT * learned.total)


def loss_bytes(shape: ModelShape, learned: Learned, layout: Layout, *, value_bytes: int, recompute: bool) -> int:
    """What all blocks keep, and a chunk of logits: as the head gives them, in fp32, and the gradient in both types."""
    sides = sides_of(layout)
    entered = sides.rows * (sides.prompt + sides.answer) * shape.hidden_size
    kept = shape.num_layers * (entered if recompute else block_floats(shape, learned, sides))
    rows = min(sides.rows * sides.answer, GPU_CHUNKS * chunk_rows(shape.vocab_size))
    logits = rows * shape.vocab_size * 2 * (value_bytes + FLOAT)
    return round(kept * value_bytes) + logits + FLOAT * learned.outside


def block_floats(shape: ModelShape, learned: Learned, sides: Sides) -> float:
    """Numbers that the gradients of a block of the encoder with one of the decoder read, for all rows.

    For each attention: what enters its norm and what leaves it, queries, keys, values, the probabilities and their
    product with the values. For each feed-forward network: what enters its norm and what leaves it, its products and
    activations. With an adapter each of its layers also keeps its narrow product, and its output scaled.
    """
    hidden, width, inner = shape.hidden_size, shape.attention_width, shape.intermediate_size
    feeds = sum(1 for one in shape.linears if not one.is_attention) // 2  # wi, wo or wi_0, wi_1, wo
    active = 2 * inner if feeds == 2 else 7 * inner
    both = sides.prompt + sides.answer
    vectors = both * (2 * hidden + 4 * width + 2 * hidden + active)
    cross = sides.answer * (2 * hidden + 2 * width) + sides.prompt * 2 * width
    scores = shape.num_heads * (sides.prompt**2 + sides.answer**2 + sides.answer * sides.prompt)
    narrow = sum(learned.rank for _ in learned.adapted) * both / 2
    return sides.rows * (vectors + cross + scores + narrow)
