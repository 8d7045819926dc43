"""The shapes of a model by hand arithmetic from its ``config.json``: nothing is loaded.

Counts are exact for the families of ALGORITHMS.md section 1 without experts (tests compare them with loaded models);
an unknown family is taken to be llama-like and says so with ``is_exact = False``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from mlx_finetune.recipe.schema import LoraRecipe
from mlx_finetune.recipe.scratch import OWN_TYPE


@dataclass(frozen=True, slots=True)
class Linear:
    """One linear layer of a block. ``copies`` counts experts."""

    name: str
    inputs: int
    outputs: int
    is_attention: bool
    copies: int = 1

    @property
    def num_weights(self) -> int:
        """Entries of the matrix, all copies together; the bias is not counted."""
        return self.inputs * self.outputs * self.copies


@dataclass(frozen=True, slots=True)
class BlockKind:
    """How a block is built, as far as it decides which arrays a training step holds (``hardware.planning.memory``).

    ``rotated`` is the share of a head's width that is turned by position; ``norms`` counts those of the hidden size;
    ``is_parallel`` says that attention and MLP both start from what enters the block. ``gelu``: "product" where that of
    one product is multiplied by another, "exact" for the one that ``model.cpu.cpu_math`` leaves to MLX, else "".
    """

    has_layer_norm: bool = False
    norms: int = 2
    rotated: float = 1.0
    has_head_norms: bool = False
    is_parallel: bool = False
    gelu: Literal["", "product", "exact"] = ""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the arithmetic needs to know. ``linears`` are those of one block, attention's first, each part's last layer
    last. ``other_parameters`` of the whole model are neither in them nor in the embedding and the head: norms, biases,
    learned positions; ``outside_parameters`` of these are in no block. ``num_outputs`` are those of a score head, which
    always learns. A token goes through ``experts_per_token`` MLPs of a block with experts; 0 without. Of an
    encoder-decoder model, which has ``decoder_layers``, a block here is one of the encoder with one of the decoder."""

    model_type: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    has_own_head: bool
    context_length: int | None
    linears: tuple[Linear, ...]
    other_parameters: int
    is_exact: bool
    kind: BlockKind = BlockKind()
    outside_parameters: int = 0
    decoder_layers: int = 0
    num_outputs: int = 0
    experts_per_token: int = 0

    @property
    def attention_width(self) -> int:
        """Width of all queries of a position."""
        return self.num_heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Width of all keys of a position; that of the values is the same."""
        return self.num_kv_heads * self.head_dim

    @property
    def block_weights(self) -> int:
        """Entries of the matrices of one block."""
        return sum(linear.num_weights for linear in self.linears)

    @property
    def embedding_weights(self) -> int:
        """Entries of the token embedding and, where it is its own matrix, of the head."""
        return self.vocab_size * self.hidden_size * (2 if self.has_own_head else 1)

    @property
    def num_parameters(self) -> int:
        """All parameters of the base model."""
        return self.num_layers * self.block_weights + self.embedding_weights + self.other_parameters


def read_shape(config: Mapping[str, object]) -> ModelShape:
    """The shape that a ``config.json`` describes. Raises ``ValueError`` naming a size that is missing."""
    inner = config.get("text_config")
    if isinstance(inner, Mapping):
        config = {**config, **inner}
    model_type = str(config.get("model_type", "unknown"))
    family = _FAMILIES.get(model_type)
    make = family if family is not None else _llama_like
    return make(_Sizes(config, model_type, is_known=family is not None))


def guess_shape(num_parameters: int) -> ModelShape:
    """A llama-like shape of about that many parameters, for a model whose config is not on this machine yet.

    ``N = V H + 12 L H^2`` with a vocabulary of 50,000 and blocks that are 50 times as wide as there are many.
    """
    layers = max(2, min(80, round((num_parameters / (12 * 50**2)) ** (1 / 3))))
    hidden = 64 * max(1, int((num_parameters / (12 * layers + 75)) ** 0.5 / 64))
    config = {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": 8 * hidden // 3,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, hidden // 64),
        "vocab_size": 50_000,
        "tie_word_embeddings": True,
    }
    shape = replace(read_shape(config), model_type="not here yet", is_exact=False)
    rest = max(0, num_parameters - shape.num_parameters)
    return replace(shape, other_parameters=shape.other_parameters + rest)


def target_linears(shape: ModelShape, lora: LoraRecipe) -> tuple[Linear, ...]:
    """The linear layers of one block that get an adapter; empty where the names match nothing here."""
    if lora.target_modules == "all-linear":
        return shape.linears
    if lora.target_modules == "attention":
        return tuple(linear for linear in shape.linears if linear.is_attention)
    names = set(lora.target_modules)
    return tuple(one for one in shape.linears if one.name in names or one.name.rpartition(".")[2] in names)


def adapted_layers(shape: ModelShape, lora: LoraRecipe) -> int:
    """Blocks that get an adapter."""
    return shape.num_layers if lora.num_layers == "all" else min(lora.num_layers, shape.num_layers)


def adapter_parameters(shape: ModelShape, lora: LoraRecipe) -> int:
    """``sum r (in + out)`` over the adapted layers, and ``out`` more for each with DoRA."""
    per_block = sum(
        one.copies * (lora.rank * (one.inputs + one.outputs) + (one.outputs if lora.use_dora else 0))
        for one in target_linears(shape, lora)
    )
    return per_block * adapted_layers(shape, lora)


class _Sizes:
    """Reads the sizes of one config under the names that different families use."""

    def __init__(self, config: Mapping[str, object], model_type: str, *, is_known: bool) -> None:
        self._config = config
        self.model_type = model_type
        self.is_known = is_known
        self.hidden = self.need("hidden_size", "n_embd", "d_model")
        self.layers = self.need("num_hidden_layers", "n_layer", "num_layers")
        self.vocab = self.need("vocab_size")
        self.heads = self.need("num_attention_heads", "n_head", "num_heads")
        self.kv_heads = self.find("num_key_value_heads") or self.heads
        self.head_dim = self.find("head_dim", "d_kv") or self.hidden // self.heads
        self.num_experts = self.find("num_local_experts", "num_experts") or 1
        self.context = self.find("max_position_embeddings", "n_positions", "n_ctx")

    def find(self, *names: str) -> int | None:
        for name in names:
            value = self._config.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        return None

    def need(self, *names: str) -> int:
        value = self.find(*names)
        if value is None:
            raise ValueError(f"config.json of this {self.model_type} model has no `{names[0]}`")
        return value

    def share(self, name: str, *, default: float) -> float:
        value = self._config.get(name, default)
        return float(value) if isinstance(value, int | float) and 0 <= value <= 1 else default

    def text(self, name: str) -> str:
        return str(self._config.get(name, ""))

    def is_set(self, name: str, *, default: bool) -> bool:
        value = self._config.get(name, default)
        return value if isinstance(value, bool) else default

    def exact_gelu(self, name: str, default: str) -> Literal["", "exact"]:
        """As ``model.files.repairs`` reads the activation's name: all others are the tanh approximation."""
        return "exact" if self._config.get(name, default) == "gelu" else ""

    def shape(
        self,
        linears: tuple[Linear, ...],
        *,
        intermediate: int,
        has_own_head: bool,
        in_block: int,
        outside: int,
        is_exact: bool = True,
        kind: BlockKind = BlockKind(),
    ) -> ModelShape:
        return ModelShape(
            model_type=self.model_type,
            num_layers=self.layers,
            hidden_size=self.hidden,
            intermediate_size=intermediate,
            num_heads=self.heads,
            num_kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            vocab_size=self.vocab,
            has_own_head=has_own_head,
            context_length=self.context,
            linears=linears,
            other_parameters=self.layers * in_block + outside,
            outside_parameters=outside,
            is_exact=is_exact and self.is_known,
            kind=kind,
            experts_per_token=(self.find("num_experts_per_tok") or 2) if self.num_experts > 1 else 0,
        )


_TIED_BY_DEFAULT = frozenset({"gemma", "gemma2", "gemma3", "gemma3_text", "gpt2"})


def _llama_like(sizes: _Sizes) -> ModelShape:
    """q, k, v, o and gate, up, down; RMS norms."""
    hidden, width, kv_width = sizes.hidden, sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    intermediate = sizes.find("intermediate_size", "ffn_dim", "n_inner") or 4 * hidden
    experts = sizes.num_experts
    expert_width = sizes.find("moe_intermediate_size") if experts > 1 else None
    inner = expert_width or intermediate
    linears = (
        Linear("self_attn.q_proj", hidden, width, is_attention=True),
        Linear("self_attn.k_proj", hidden, kv_width, is_attention=True),
        Linear("self_attn.v_proj", hidden, kv_width, is_attention=True),
        Linear("self_attn.o_proj", width, hidden, is_attention=True),
        Linear("mlp.gate_proj", hidden, inner, is_attention=False, copies=experts),
        Linear("mlp.up_proj", hidden, inner, is_attention=False, copies=experts),
        Linear("mlp.down_proj", inner, hidden, is_attention=False, copies=experts),
    )
    kind = BlockKind(
        norms=4 if sizes.model_type in ("gemma2", "gemma3", "gemma3_text") else 2,
        gelu="product" if sizes.model_type == "gemma" else "",
        has_head_norms=sizes.model_type in ("qwen3", "gemma3", "gemma3_text", "qwen3_moe"),
    )
    norms = kind.norms * hidden + (2 * sizes.head_dim if kind.has_head_norms else 0)
    biases = 0
    if sizes.model_type == "qwen2" or sizes.is_set("attention_bias", default=False):
        biases += width + 2 * kv_width
    if sizes.is_set("attention_bias", default=False) and sizes.model_type == "llama":
        biases += hidden
    if sizes.is_set("mlp_bias", default=False):
        biases += 2 * inner + hidden
    router = experts * hidden if experts > 1 else 0
    router += sizes.heads if sizes.is_set("attention_sinks", default=False) else 0
    return sizes.shape(
        linears,
        intermediate=inner,
        has_own_head=not sizes.is_set("tie_word_embeddings", default=sizes.model_type in _TIED_BY_DEFAULT),
        in_block=norms + biases + router,
        outside=hidden,
        is_exact=experts == 1,
        kind=kind,
    )


def _gpt2(sizes: _Sizes) -> ModelShape:
    """c_attn, c_proj, c_fc, c_proj with biases; learned positions; the head is the embedding."""
    hidden = sizes.hidden
    inner = sizes.find("n_inner") or 4 * hidden
    linears = (
        Linear("attn.c_attn", hidden, 3 * hidden, is_attention=True),
        Linear("attn.c_proj", hidden, hidden, is_attention=True),
        Linear("mlp.c_fc", hidden, inner, is_attention=False),
        Linear("mlp.c_proj", inner, hidden, is_attention=False),
    )
    per_block = sum(one.outputs for one in linears) + 4 * hidden
    positions = (sizes.context or 1024) * hidden
    kind = BlockKind(has_layer_norm=True, rotated=0.0, gelu=sizes.exact_gelu("activation_function", "gelu_new"))
    return sizes.shape(
        linears, intermediate=inner, has_own_head=False, in_block=per_block, outside=positions + 2 * hidden, kind=kind
    )


def _gpt_neox(sizes: _Sizes) -> ModelShape:
    """query_key_value, dense and the two MLP layers with biases; layer norms; an own head."""
    hidden = sizes.hidden
    inner = sizes.find("intermediate_size") or 4 * hidden
    linears = (
        Linear("attention.query_key_value", hidden, 3 * hidden, is_attention=True),
        Linear("attention.dense", hidden, hidden, is_attention=True),
        Linear("mlp.dense_h_to_4h", hidden, inner, is_attention=False),
        Linear("mlp.dense_4h_to_h", inner, hidden, is_attention=False),
    )
    per_block = sum(one.outputs for one in linears) + 4 * hidden
    kind = BlockKind(
        has_layer_norm=True,
        rotated=sizes.share("rotary_pct", default=0.25),
        is_parallel=sizes.is_set("use_parallel_residual", default=True),
        gelu=sizes.exact_gelu("hidden_act", "gelu"),
    )
    return sizes.shape(
        linears, intermediate=inner, has_own_head=True, in_block=per_block, outside=2 * hidden, kind=kind
    )


def _phi3(sizes: _Sizes) -> ModelShape:
    """One matrix for q, k, v and one for gate and up; RMS norms."""
    hidden, width, kv_width = sizes.hidden, sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    inner = sizes.need("intermediate_size")
    linears = (
        Linear("self_attn.qkv_proj", hidden, width + 2 * kv_width, is_attention=True),
        Linear("self_attn.o_proj", width, hidden, is_attention=True),
        Linear("mlp.gate_up_proj", hidden, 2 * inner, is_attention=False),
        Linear("mlp.down_proj", inner, hidden, is_attention=False),
    )
    own_head = not sizes.is_set("tie_word_embeddings", default=False)
    return sizes.shape(linears, intermediate=inner, has_own_head=own_head, in_block=2 * hidden, outside=hidden)


def _t5(sizes: _Sizes) -> ModelShape:
    """A block of the encoder (q, k, v, o, feed-forward) with one of the decoder, which has two attentions.

    RMS norms, a table of relative positions for each stack, no end of the context. With stacks of different heights
    what the higher one has more counts as outside of blocks.
    """
    hidden, width, inner = sizes.hidden, sizes.heads * sizes.head_dim, sizes.need("d_ff")
    is_gated = sizes.text("feed_forward_proj").startswith("gated-")
    attention = (("q", hidden, width), ("k", hidden, width), ("v", hidden, width), ("o", width, hidden))
    feeding = [(name, hidden, inner) for name in (("wi_0", "wi_1") if is_gated else ("wi",))] + [("wo", inner, hidden)]
    places = ("encoder.SelfAttention", "decoder.SelfAttention", "decoder.EncDecAttention")
    linears = [Linear(f"{place}.{name}", rows, columns, True) for place in places for name, rows, columns in attention]
    linears += [
        Linear(f"{stack}.DenseReluDense.{name}", rows, columns, False)
        for stack in ("encoder", "decoder")
        for name, rows, columns in feeding
    ]
    decoders = sizes.find("num_decoder_layers") or sizes.layers
    one_encoder = sum(one.num_weights for one in linears if one.name.startswith("encoder")) + 2 * hidden
    one_decoder = sum(one.num_weights for one in linears if one.name.startswith("decoder")) + 3 * hidden
    more = max(0, sizes.layers - decoders) * one_encoder + max(0, decoders - sizes.layers) * one_decoder
    tables = 2 * (sizes.find("relative_attention_num_buckets") or 32) * sizes.heads
    is_tied = sizes.is_set("tie_word_embeddings", default=True)
    is_even = decoders == sizes.layers
    sizes.layers, sizes.context = min(sizes.layers, decoders), None
    shape = sizes.shape(
        tuple(linears),
        intermediate=inner,
        has_own_head=not sizes.is_set("scale_decoder_outputs", default=is_tied) or not is_tied,
        in_block=5 * hidden,
        outside=2 * hidden + tables + more,
        is_exact=is_even,
    )
    return replace(shape, decoder_layers=decoders)


_FAMILIES: dict[str, Callable[[_Sizes], ModelShape]] = {
    **dict.fromkeys(
        ("llama", "mistral", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3", "mixtral", "qwen3_moe", OWN_TYPE),
        _llama_like,
    ),
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "phi3": _phi3,
    "t5": _t5,
}
