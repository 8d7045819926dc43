"""What a training step on a CPU holds, array by array: block by block, a microbatch in two pieces, one a thread.

A piece's forward pass keeps a *tape* for each block that learns (``model.cpu.tape``, ``model.cpu.blockwise``). Two
moments can be the peak. The *loss*: some rows of logits and their gradient, all tapes still there. The *backward pass
of a block*: the last one has all tapes beside it, the lowest one the gradients of all others. While a gradient is
traced MLX keeps every array it has computed, so inside a block this is a sum over its operations, forward and backward,
up to the innermost point: attention's strips (``model.cpu.cpu_math``). Both pieces are taken to be there at the same
time.

Counts are float32 numbers for each position of a piece unless said otherwise, of mlx 0.32.4 on a CPU, where norms and
rotations have no kernel and are made of several arrays. They were derived from the code, and each agrees with peaks of
single blocks of random sizes, solved for the sizes (to 0.1 of a vector; ``benchmarks/memory_terms.py``, 2026-11-26).
"""

from dataclasses import dataclass

from mlx_finetune.hardware.planning.microbatch import Layout, Learned
from mlx_finetune.hardware.planning.shapes import Linear, ModelShape

FLOAT = 4
STRIP = 128  # queries at once: model.cpu_math.STRIP
SHORTEST = 64  # positions of a single row that is cut in two: model.context_parallel.SHORTEST
CHUNK_BYTES = 2**25  # of logits in fp32 at once: 170 rows of 49,152; larger is no faster (SmolLM2, 2 cores)
RMS_NORM, LAYER_NORM = 3, 5  # vectors that a norm makes
RMS_NORM_BACK, LAYER_NORM_BACK = 6, 8  # vectors that its gradient makes, the sum with the residual's included
#: Vectors of the MLP's width that a gelu and its gradient take beyond a SwiGLU or gelu in numpy.
GELU = {"": 0, "product": 2, "exact": 15}


@dataclass(frozen=True, slots=True)
class Piece:
    """What one thread computes: ``rows`` sequences of ``length`` positions.

    Of a single row in two parts the second has ``before`` positions of the other thread before its own, whose keys and
    values it is handed, the first ``behind`` after its own. Both form the final norm of all and half of the losses.
    """

    rows: int
    length: int
    before: int = 0
    behind: int = 0

    @property
    def positions(self) -> int:
        """Its own."""
        return self.rows * self.length

    @property
    def keys(self) -> int:
        """Positions whose keys it has."""
        return self.rows * (self.before + self.length)

    @property
    def at_loss(self) -> int:
        """Positions whose last hidden states it has."""
        return self.rows * (self.before + self.length + self.behind)

    @property
    def is_part(self) -> bool:
        """True for a part of a row."""
        return self.before + self.behind > 0

    @property
    def is_second(self) -> bool:
        """True for the second part of a row."""
        return self.before > 0


def pieces(shape: ModelShape, layout: Layout) -> tuple[Piece, ...]:
    """As ``train.both_cores`` divides a microbatch: equal rows in two halves, one row's positions in two parts.

    Short or packed single rows stay whole; so do models that ``model.cpu.context_parallel`` cannot divide, but those
    are of families whose shapes are guesses here.
    """
    length = layout.length
    if layout.is_whole:
        return (Piece(layout.batch_size, length),)
    if layout.batch_size > 1:
        smaller = layout.batch_size // 2
        return (Piece(layout.batch_size - smaller, length), Piece(smaller, length))
    if layout.is_packed or length < SHORTEST:
        return (Piece(1, length),)
    cut = cut_of(shape.hidden_size, length)
    return (Piece(1, cut, behind=length - cut), Piece(1, length - cut, before=cut))


def cut_of(hidden_size: int, num_positions: int) -> int:
    """Positions of the first part of a row: ``model.cpu.context_parallel.cut_of``."""
    reach = 2 * hidden_size
    half = (num_positions + num_positions**2 / (2 * reach)) / 2
    return round(reach * ((1 + 2 * half / reach) ** 0.5 - 1))


def tape_floats(shape: ModelShape, learned: Learned, *, recompute: bool) -> int:
    """What a block keeps for its backward pass: what entered it; else also frozen products and attention's output."""
    if recompute:
        return shape.hidden_size
    products = sum(linear.outputs for linear in shape.linears if _is_taped(linear, learned))
    return shape.hidden_size + products + shape.attention_width + shape.num_heads


def kept_floats(shape: ModelShape, learned: Learned, piece: Piece, *, recompute: bool) -> int:
    """What one block keeps of a whole piece: its tape, and keys and values that were handed over."""
    tape = piece.positions * tape_floats(shape, learned, recompute=recompute)
    return tape + 2 * piece.rows * piece.before * shape.key_width


def backward_bytes(shape: ModelShape, learned: Learned, layout: Layout, *, recompute: bool) -> int:
    """Both pieces in the backward pass of a block: the last one, or the lowest where gradients outweigh tapes.

    Of one row the second part is a block ahead, because the first waits for its gradients of keys and values.
    """
    divided = pieces(shape, layout)
    lag = 1 if divided[-1].is_second else 0
    most = 0.0
    for done in range(learned.blocks + lag):  # blocks that the last piece has done
        floats = 0.0
        for piece in divided:
            own = max(0, done - lag) if piece.behind else done
            kept = kept_floats(shape, learned, piece, recompute=recompute)
            floats += (learned.blocks - own) * kept + own * learned.in_block + learned.outside
            is_waiting = piece.behind > 0 and done < lag
            if own < learned.blocks and not is_waiting:
                floats += block_floats(shape, learned, piece, recompute=recompute) + _dora_floats(learned)
                floats += piece.positions * shape.hidden_size  # the gradient of its output
        most = max(most, floats)
    return round(FLOAT * most) + mask_bytes(layout)


def loss_bytes(shape: ModelShape, learned: Learned, layout: Layout, *, recompute: bool) -> int:
    """Both pieces at the loss: all tapes, and the logits of some rows."""
    total = 0
    for number, piece in enumerate(pieces(shape, layout)):
        kept = learned.blocks * kept_floats(shape, learned, piece, recompute=recompute)
        positions = piece.at_loss
        rows = max(1, round(positions * layout.target_share / (2 if piece.is_part else 1)))
        kept += positions * shape.hidden_size
        total += FLOAT * (kept + loss_floats(shape, learned, positions, rows, is_second=number > 0))
    return total + mask_bytes(layout)


def loss_floats(shape: ModelShape, learned: Learned, positions: int, rows: int, *, is_second: bool) -> int:
    """For ``rows`` targets: the final norm, the targets' rows, a copy of them, their gradient, and a chunk of logits.

    A chunk's logits become its gradient in place. What is learned outside the blocks has a gradient beside them, and
    behind the last chunk, without logits, the sum and that times the loss's own slope; both halves are there for long,
    the second array for a moment, so it is counted once.
    """
    vocab = shape.vocab_size
    chunk = min(rows, chunk_rows(vocab))
    norm = (LAYER_NORM if shape.kind.has_layer_norm else RMS_NORM) * positions * shape.hidden_size
    vectors = norm + (3 * rows + 2 * chunk) * shape.hidden_size
    if learned.outside:
        brief = 1 if is_second else 2
        return vectors + max(chunk * vocab + learned.outside, brief * learned.outside)
    return vectors + chunk * vocab


def chunk_rows(vocab_size: int) -> int:
    """Rows of logits formed at once (``train.losses``)."""
    return max(16, CHUNK_BYTES // (FLOAT * vocab_size))


def block_floats(shape: ModelShape, learned: Learned, piece: Piece, *, recompute: bool) -> float:
    """What a whole piece holds in the middle of a block's backward pass beside its tape: the larger of attention's last
    strip and the moment after it, when the three gradients exist."""
    held = forward_floats(shape, learned) + gradient_floats(shape, learned)
    if not recompute:
        held -= _taken_floats(shape, learned)
    scores = strip_floats(shape, piece)
    width, keys = shape.attention_width, shape.key_width
    strip = piece.rows * min(STRIP, piece.length) * width
    inside = 2 * scores + 2 * strip + piece.keys * keys
    after = 2 * scores + strip + piece.positions * width + 2 * piece.keys * keys
    return piece.positions * held + copied_floats(shape, piece) + shared_floats(shape, piece) + max(inside, after)


def shared_floats(shape: ModelShape, piece: Piece) -> int:
    """What a part of a row holds for the other's sake: keys and values of both side by side, or gradients received."""
    if piece.is_second:
        return 2 * piece.keys * shape.key_width
    return 2 * piece.positions * shape.key_width if piece.is_part else 0


def forward_floats(shape: ModelShape, learned: Learned) -> float:
    """A block's forward pass, without its last product, which no gradient asks for: norms, linear layers with their
    adapters, rotations (1 vector and 3 more of the rotated share), attention's output twice and its normalisers, the
    residual, the activation."""
    kind, hidden = shape.kind, shape.hidden_size
    norm = LAYER_NORM if kind.has_layer_norm else RMS_NORM
    turned = shape.attention_width + shape.key_width
    floats = kind.norms * norm * hidden + shape.attention_width + shape.num_heads + _inner_width(shape)
    if kind.has_head_norms:
        floats += RMS_NORM * turned
    if kind.rotated:
        floats += (1 + 3 * kind.rotated) * turned
    if not kind.is_parallel:
        floats += shape.attention_width + hidden  # attention's output with heads side by side, and the residual
    for linear in _evaluated(shape):
        floats += linear.outputs
        if linear in learned.adapted:  # x A, the sum; DoRA's gain
            floats += learned.rank + (2 if learned.use_dora else 1) * linear.outputs
    floats += dropped_floats(shape, learned)
    if _is_mlp_later(shape):
        return floats - (_inner_width(shape) if learned.adapted else 0)
    return floats + GELU[kind.gelu] * _inner_width(shape)


def dropped_floats(shape: ModelShape, learned: Learned) -> int:
    """With dropout each adapter has an input of its own: its mask, and what the mask leaves."""
    if not learned.has_dropout:
        return 0
    is_mlp_there = not _is_mlp_later(shape)
    return 2 * sum(linear.inputs for linear in learned.adapted if linear.is_attention or is_mlp_there)


def gradient_floats(shape: ModelShape, learned: Learned) -> int:
    """Gradients formed before attention's: through the MLP, its norm and attention's last product.

    With a parallel MLP only those that attention waits for, and the activation's.
    """
    kind, hidden = shape.kind, shape.hidden_size
    *inner, last = _mlp(shape)
    floats = shape.attention_width + _through_adapter(learned, _attention_output(shape), keeps_input=True)
    if _is_mlp_later(shape):
        return floats
    floats += sum(linear.outputs for linear in inner)
    floats += _through_adapter(learned, last, keeps_input=kind.gelu != "")
    if kind.gelu == "product" and learned.has_dropout and last in learned.adapted:
        floats += 3 * last.inputs  # the masked product's, before both factors have theirs
    if kind.is_parallel:
        return floats
    back = LAYER_NORM_BACK if kind.has_layer_norm else RMS_NORM_BACK
    floats += (back * (kind.norms - 1) + 2 * len(inner) - 1) * hidden
    return floats + sum(_through_adapter(learned, linear, keeps_input=True) for linear in inner)


def copied_floats(shape: ModelShape, piece: Piece) -> int:
    """Copies without a graph: queries, keys, values, attention's output and its gradient, and the product of the two.

    A part of a fused product that nothing has turned is copied with the whole of it.
    """
    width, keys = shape.attention_width, shape.key_width
    first = shape.linears[0]
    is_fused = first.outputs == width + 2 * keys
    whole = first.outputs if is_fused else keys
    queries = whole if is_fused and not shape.kind.rotated else width
    if piece.is_second:
        return piece.positions * (queries + 3 * width) + 2 * piece.keys * keys
    if is_fused and not shape.kind.rotated:
        return piece.positions * (3 * whole + 3 * width)
    return piece.positions * (width + keys + whole + 3 * width)


def strip_floats(shape: ModelShape, piece: Piece) -> int:
    """The largest strip of scores: 128 queries with all keys before them."""
    length, before = piece.length, piece.before
    strips = ((min(STRIP, length - start), before + min(length, start + STRIP)) for start in range(0, length, STRIP))
    return piece.rows * shape.num_heads * max(rows * columns for rows, columns in strips)


def mask_bytes(layout: Layout) -> int:
    """Which position sees which in packed rows: a byte each."""
    return layout.batch_size * layout.length**2 if layout.is_packed else 0


def _taken_floats(shape: ModelShape, learned: Learned) -> int:
    """What the second forward pass takes from the tape instead of computing it."""
    products = sum(linear.outputs for linear in _evaluated(shape) if _is_taped(linear, learned))
    return products + shape.attention_width + shape.num_heads


def _is_taped(linear: Linear, learned: Learned) -> bool:
    """Frozen linear layers are; DoRA multiplies with the weight itself, and without adapters nothing is frozen."""
    if not learned.adapted:
        return False
    return not (learned.use_dora and linear in learned.adapted)


def _through_adapter(learned: Learned, linear: Linear, *, keeps_input: bool) -> int:
    """The scaled gradient, that of x A, the input's and its sum with the other; DoRA's gain once more.

    With dropout the input's comes before and after the mask. Where ``keeps_input`` is False, the sum is not kept, nor
    is the input's gradient unless a mask follows it.
    """
    if linear not in learned.adapted:
        return 0
    scaled = 2 if learned.use_dora else 1
    vectors = (3 if keeps_input else 2) if learned.has_dropout else (2 if keeps_input else 0)
    return scaled * linear.outputs + learned.rank + vectors * linear.inputs


def _dora_floats(learned: Learned) -> int:
    """DoRA's row norms: four arrays of the size of B for each adapter."""
    return 4 * learned.rank * sum(one.outputs for one in learned.adapted) if learned.use_dora else 0


def _evaluated(shape: ModelShape) -> list[Linear]:
    """The linear layers of which a backward pass needs the output."""
    skipped = {_mlp(shape)[-1]} | ({_attention_output(shape)} if shape.kind.is_parallel else set())
    return [linear for linear in shape.linears if linear not in skipped]


def _mlp(shape: ModelShape) -> list[Linear]:
    return [linear for linear in shape.linears if not linear.is_attention]


def _attention_output(shape: ModelShape) -> Linear:
    return [linear for linear in shape.linears if linear.is_attention][-1]


def _is_mlp_later(shape: ModelShape) -> bool:
    """A parallel MLP whose activation is MLX's: none of its gradients is asked for before attention's."""
    return shape.kind.is_parallel and shape.kind.gelu == "exact"


def _inner_width(shape: ModelShape) -> int:
    """Width of what enters the MLP's last layer."""
    return _mlp(shape)[-1].inputs
