"""T5 (v1.0, v1.1, FLAN): an encoder reads the prompt, a decoder writes the answer (Raffel et al. 2019, 1910.10683).

Not in mlx-lm. Modules have the names of transformers' state dict, so its files load as they are. What differs from
other transformers: norms without mean or bias, no ``1 / sqrt(D)`` in attention, positions as biases that the first
block of each stack has for all of them, and, where the head is the embedding (v1.0), states times ``d_model^-0.5``
before it. Attention is written out: its bias learns too, and no fused kernel of MLX promises a gradient for it; the
price is a score for each pair of positions in memory. The dropout of ``config.json`` is not applied, as for all models.

A *row* is one sequence: the prompt with its end mark, then ``decoder_start_token_id`` (the pad token 0, which no text
holds), then the answer. What reads rows (losses of tokens, generation) needs to know nothing of the two halves; the
states of a prompt's positions are zeros.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_finetune.model.seq2seq.caches import AnswerCache, Pair
from mlx_finetune.model.seq2seq.positions import buckets

_HIDDEN = -1e9  # in the place of a score; its exponential is exactly 0
_ACTIVATIONS = ("relu", "gelu", "gelu_new", "silu")
#: Copies of ``shared`` in files, and a table that the first public T5 files have and nothing reads.
_IGNORED = (
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
)


@dataclass(frozen=True)
class ModelArgs:
    """What ``config.json`` says, under its names."""

    model_type: str
    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_heads: int
    num_layers: int
    num_decoder_layers: int | None = None
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "relu"
    tie_word_embeddings: bool = True
    scale_decoder_outputs: bool | None = None
    decoder_start_token_id: int = 0

    @classmethod
    def from_dict(cls, config: Mapping[str, object]) -> "ModelArgs":
        """The known keys of ``config``. Raises ``TypeError`` or ``ValueError`` for what cannot be a T5."""
        known = {one.name for one in fields(cls)}
        args = cls(**cast(Any, {name: value for name, value in config.items() if name in known and value is not None}))
        sizes = ("vocab_size", "d_model", "d_kv", "d_ff", "num_heads", "num_layers", "relative_attention_num_buckets")
        for name in sizes:
            if not isinstance(getattr(args, name), int) or not 0 < getattr(args, name) < 2**31:
                raise ValueError(f"`{name}` = {getattr(args, name)!r}")
        if args.activation not in _ACTIVATIONS:
            raise ValueError(f"`feed_forward_proj` = {args.feed_forward_proj!r} is not known")
        if args.relative_attention_num_buckets < 4 or args.relative_attention_max_distance < 32:
            raise ValueError("there are too few relative positions")
        return args

    @property
    def is_gated(self) -> bool:
        """True from v1.1 on: the activation of one product is multiplied by another."""
        return self.feed_forward_proj.startswith("gated-")

    @property
    def activation(self) -> str:
        """``gated-gelu`` has always meant the tanh approximation."""
        return "gelu_new" if self.feed_forward_proj == "gated-gelu" else self.feed_forward_proj.removeprefix("gated-")

    @property
    def is_scaled(self) -> bool:
        """Whether states are scaled before the head; transformers 5 writes it, and ties whatever v1.1 says."""
        return self.tie_word_embeddings if self.scale_decoder_outputs is None else self.scale_decoder_outputs


class Attention(nn.Module):
    """Queries of one sequence over keys and values, which may be another's."""

    def __init__(self, args: ModelArgs, *, has_bias: bool) -> None:
        super().__init__()
        width = args.num_heads * args.d_kv
        self.num_heads = args.num_heads
        self.q = nn.Linear(args.d_model, width, bias=False)
        self.k = nn.Linear(args.d_model, width, bias=False)
        self.v = nn.Linear(args.d_model, width, bias=False)
        self.o = nn.Linear(width, args.d_model, bias=False)
        if has_bias:
            self.relative_attention_bias = nn.Embedding(args.relative_attention_num_buckets, args.num_heads)

    def __call__(self, x: mx.array, pair: Pair, bias: mx.array | None) -> mx.array:
        """``x`` (B, Q, H), keys and values (B, heads, K, D), what is added to scores (B or 1, heads or 1, Q, K)."""
        keys, values = pair
        scores = self._heads(self.q(x)) @ mx.swapaxes(keys, 2, 3)  # (B, heads, Q, K)
        if bias is not None:
            scores = scores + bias.astype(scores.dtype)
        shares = mx.softmax(scores, axis=-1, precise=True)
        y = mx.swapaxes(shares @ values, 1, 2)  # (B, Q, heads, D)
        return self.o(y.reshape(*x.shape[:2], -1))

    def keys_and_values(self, states: mx.array) -> Pair:
        """Of ``states`` (B, K, H)."""
        return self._heads(self.k(states)), self._heads(self.v(states))

    def _heads(self, x: mx.array) -> mx.array:
        """(B, T, heads D) to (B, heads, T, D)."""
        return mx.swapaxes(x.reshape(*x.shape[:2], self.num_heads, -1), 1, 2)


class SelfAttentionLayer(nn.Module):
    """Attention of a stack to itself, with what stands around it."""

    def __init__(self, args: ModelArgs, *, has_bias: bool) -> None:
        super().__init__()
        self.SelfAttention = Attention(args, has_bias=has_bias)
        self.layer_norm = nn.RMSNorm(args.d_model, eps=args.layer_norm_epsilon)


class CrossAttentionLayer(nn.Module):
    """The decoder's attention to the encoder's states."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.EncDecAttention = Attention(args, has_bias=False)
        self.layer_norm = nn.RMSNorm(args.d_model, eps=args.layer_norm_epsilon)


class DenseReluDense(nn.Module):
    """The feed-forward network, gated or not."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.activation, self.is_gated = args.activation, args.is_gated
        if args.is_gated:
            self.wi_0 = nn.Linear(args.d_model, args.d_ff, bias=False)
            self.wi_1 = nn.Linear(args.d_model, args.d_ff, bias=False)
        else:
            self.wi = nn.Linear(args.d_model, args.d_ff, bias=False)
        self.wo = nn.Linear(args.d_ff, args.d_model, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        if self.is_gated:
            return self.wo(self._active(self.wi_0(x)) * self.wi_1(x))
        return self.wo(self._active(self.wi(x)))

    def _active(self, x: mx.array) -> mx.array:
        names = {"relu": nn.relu, "gelu": nn.gelu, "gelu_new": nn.gelu_approx, "silu": nn.silu}
        return names[self.activation](x)


class FeedForwardLayer(nn.Module):
    """The feed-forward network, with what stands around it."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.DenseReluDense = DenseReluDense(args)
        self.layer_norm = nn.RMSNorm(args.d_model, eps=args.layer_norm_epsilon)


class Block(nn.Module):
    """Attention to itself, in a decoder attention to the encoder, then the feed-forward network."""

    def __init__(self, args: ModelArgs, *, is_decoder: bool, has_bias: bool) -> None:
        super().__init__()
        cross = [CrossAttentionLayer(args)] if is_decoder else []
        self.layer: list[Any] = [SelfAttentionLayer(args, has_bias=has_bias), *cross, FeedForwardLayer(args)]

    def __call__(
        self,
        x: mx.array,
        bias: mx.array,
        states: mx.array | None = None,
        source_bias: mx.array | None = None,
        cache: AnswerCache | None = None,
        number: int = 0,
    ) -> mx.array:
        """``x`` (B, T, H). A decoder's block has the encoder's ``states``, or a ``cache`` with its keys and values."""
        attention = self.layer[0].SelfAttention
        normed = self.layer[0].layer_norm(x)
        pair = attention.keys_and_values(normed)
        if cache is not None:
            pair = cache.add(number, *pair)
        x = x + attention(normed, pair, bias)
        if len(self.layer) == 3:
            cross = self.layer[1].EncDecAttention
            source = cross.keys_and_values(states) if cache is None else cache.sources[number]
            x = x + cross(self.layer[1].layer_norm(x), source, source_bias)
        return x + self.layer[-1].DenseReluDense(self.layer[-1].layer_norm(x))


class Stack(nn.Module):
    """The encoder or the decoder."""

    def __init__(self, args: ModelArgs, *, is_decoder: bool) -> None:
        super().__init__()
        count = (args.num_decoder_layers or args.num_layers) if is_decoder else args.num_layers
        self.block = [Block(args, is_decoder=is_decoder, has_bias=number == 0) for number in range(count)]
        self.final_layer_norm = nn.RMSNorm(args.d_model, eps=args.layer_norm_epsilon)
        self.args, self.is_decoder = args, is_decoder

    def bias(self, num_queries: int, num_keys: int) -> mx.array:
        """What the distances of the last queries to all keys add to scores, (1, heads, Q, K)."""
        table = self.block[0].layer[0].SelfAttention.relative_attention_bias
        found = buckets(
            num_queries,
            num_keys,
            is_bidirectional=not self.is_decoder,
            num_buckets=self.args.relative_attention_num_buckets,
            max_distance=self.args.relative_attention_max_distance,
        )
        return mx.transpose(table(mx.array(found)), (2, 0, 1))[None]


class Model(nn.Module):
    """An encoder, a decoder, and the head. Called like mlx-lm's models, with rows for tokens."""

    #: Prompts by which ``batches`` tries whether rows of different length can be answered at once.
    probe_prompts = ([2, 3, 0], [4, 0])

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.args = args
        self.model_type = args.model_type
        self.shared = nn.Embedding(args.vocab_size, args.d_model)
        self.encoder = Stack(args, is_decoder=False)
        self.decoder = Stack(args, is_decoder=True)
        if not args.tie_word_embeddings or not args.is_scaled:
            self.lm_head = nn.Linear(args.d_model, args.vocab_size, bias=False)

    @property
    def layers(self) -> list[Block]:
        """The blocks of the encoder, then those of the decoder."""
        return [*self.encoder.block, *self.decoder.block]

    def sanitize(self, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """The weights of a file without copies; a head that is missing is the embedding. Raises ``ValueError`` for a
        head that ``config.json`` does not speak of."""
        kept = {name: array for name, array in weights.items() if name not in _IGNORED}
        if "shared.weight" not in kept:  # some files have the table under the name of one of its users only
            user = next((name for name in _IGNORED[:2] if name in weights), None)
            kept |= {"shared.weight": weights[user]} if user else {}
        if "lm_head" not in self:
            head = kept.pop("lm_head.weight", None)
            if head is not None and not mx.array_equal(head, kept.get("shared.weight", head)).item():
                raise ValueError("lm_head.weight is no copy of shared.weight, and tie_word_embeddings is not false")
        elif "lm_head.weight" not in kept and "shared.weight" in kept:
            kept["lm_head.weight"] = kept["shared.weight"]
        return kept

    def encode(self, tokens: mx.array, lengths: mx.array) -> mx.array:
        """States (B, S, H) of prompts ``tokens`` (B, S), of which the first ``lengths`` (B,) count."""
        x = self.shared(tokens)
        size = tokens.shape[1]
        bias = self.encoder.bias(size, size) + self._source_bias(size, lengths)
        for block in self.encoder.block:
            x = block(x, bias)
        return self.encoder.final_layer_norm(x)

    def decode(self, tokens: mx.array, states: mx.array, lengths: mx.array) -> mx.array:
        """Hidden states (B, T, H) before the head for answers ``tokens`` (B, T), which begin with the start token."""
        x = self.shared(tokens)
        size = tokens.shape[1]
        bias = self.decoder.bias(size, size) + _causal(size, size)
        source_bias = self._source_bias(states.shape[1], lengths)
        for block in self.decoder.block:
            x = block(x, bias, states, source_bias)
        return self.decoder.final_layer_norm(x)

    def logits(self, hidden: mx.array) -> mx.array:
        """(..., H) to (..., V)."""
        if self.args.is_scaled:
            hidden = hidden * self.args.d_model**-0.5
        return self.lm_head(hidden) if "lm_head" in self else self.shared.as_linear(hidden)

    def hidden(self, rows: mx.array, cache: Sequence[AnswerCache] | None = None) -> mx.array:
        """States (B, T, H) of ``rows`` (B, T), or of the next tokens of those whose beginning the cache has.

        Without a cache the rows are looked at while the graph is built, so it is not for ``mx.compile``.
        """
        return self._whole(rows) if cache is None else self._next(rows, cache[0])

    def __call__(self, tokens: mx.array, cache: Sequence[AnswerCache] | None = None) -> mx.array:
        """Logits (B, T, V); while a prompt is read into a cache they are (1, 1, V) and mean nothing."""
        return self.logits(self.hidden(tokens, cache))

    def make_cache(self) -> list[AnswerCache]:
        """Empty caches: one, for all blocks."""
        return [AnswerCache()]

    def _whole(self, rows: mx.array) -> mx.array:
        ids = np.array(rows)
        starts = start_columns(ids, self.args.decoder_start_token_id)  # (B,)
        num_said = int((ids.shape[1] - starts).max())
        columns = np.arange(num_said) + starts[:, None]  # (B, T'): where in its row each decoder position stands
        said = np.take_along_axis(ids, np.minimum(columns, ids.shape[1] - 1), axis=1)
        lengths = mx.array(starts)
        states = self.encode(rows[:, : int(starts.max())], lengths)
        hidden = self.decode(mx.array(said), states, lengths)
        places = np.arange(ids.shape[1]) - starts[:, None]  # (B, T)
        index = mx.array(np.maximum(places, 0))[:, :, None]
        spread = mx.take_along_axis(hidden, mx.broadcast_to(index, (*index.shape[:2], hidden.shape[2])), axis=1)
        return mx.where(mx.array(places >= 0)[:, :, None], spread, 0)

    def _next(self, tokens: mx.array, cache: AnswerCache) -> mx.array:
        if not cache.has_begun and len(cache.lengths) <= 1:
            ids = cast("list[int]", tokens[0].tolist())
            start = self.args.decoder_start_token_id
            cut = ids.index(start) if start in ids else len(ids)
            if cut or not cache.sources:
                self._read(cache, ids[:cut] or [start])
            if cut == len(ids):
                return mx.zeros((1, 1, self.args.d_model), self.shared.weight.dtype)
            tokens = tokens[:, cut:]
        x, size = self.shared(tokens), tokens.shape[1]
        num_keys = cache.num_said + size
        bias = self.decoder.bias(size, num_keys) + _causal(size, num_keys)
        if any(cache.padding):
            bias = bias + mx.where(mx.arange(num_keys) < mx.array(cache.padding)[:, None, None, None], _HIDDEN, 0)
        longest = cache.sources[0][0].shape[2]
        source_bias = self._source_bias(longest, mx.array(cache.lengths)) if min(cache.lengths) < longest else None
        for number, block in enumerate(self.decoder.block):
            x = block(x, bias, None, source_bias, cache, number)
        return self.decoder.final_layer_norm(x)

    def _read(self, cache: AnswerCache, ids: list[int]) -> None:
        """Encode the prompt as far as it has come: keys and values for the decoder, once for the whole answer.

        A prompt that comes in several pieces is encoded anew with each: pieces have 512 tokens.
        """
        cache.source_ids += ids
        cache.lengths = [len(cache.source_ids)]
        states = self.encode(mx.array([cache.source_ids]), mx.array(cache.lengths))
        cache.sources = [block.layer[1].EncDecAttention.keys_and_values(states) for block in self.decoder.block]

    def _source_bias(self, size: int, lengths: mx.array) -> mx.array:
        """(B, 1, 1, S) that hides what is behind the end of each prompt."""
        return mx.where(mx.arange(size) < lengths[:, None, None, None], 0.0, _HIDDEN)


def start_columns(ids: np.ndarray, start: int) -> np.ndarray:
    """Where the answer begins in each row (B, T): the first ``start`` behind the first column, else the last column."""
    found = ids[:, 1:] == start
    return np.where(found.any(axis=1), found.argmax(axis=1) + 1, ids.shape[1] - 1).astype(np.int32)


def _causal(num_queries: int, num_keys: int) -> mx.array:
    """(Q, K) that hides the keys behind each of the last queries."""
    queries = mx.arange(num_keys - num_queries, num_keys)[:, None]
    return mx.where(mx.arange(num_keys)[None] <= queries, 0.0, _HIDDEN)
