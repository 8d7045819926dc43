"""Where the parts of a model are, whatever its architecture calls them: embedding, blocks, head."""

from collections.abc import Iterable
from typing import cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_finetune.errors import ModelError

_EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "embeddings", "tok_embeddings", "word_embeddings", "shared")
_HEADS = ("lm_head", "embed_out", "output")
SCORE = "score"  # where a model has a head of numbers instead of tokens (``model.heads.score``)


def embedding(model: nn.Module) -> nn.Module:
    """The module that turns token ids into vectors. Raises ``ModelError`` where none has a known name."""
    found = _find_embedding(model)
    if found is None:
        raise ModelError(f"no token embedding was found in a {type(model).__module__.rpartition('.')[2]} model")
    return found


def _find_embedding(model: nn.Module) -> nn.Module | None:
    for path, module in model.named_modules():
        if path.rpartition(".")[2] in _EMBEDDINGS and isinstance(module, nn.Embedding | nn.QuantizedEmbedding):
            return module
    return None


def num_embeddings(model: nn.Module) -> int | None:
    """Rows of the token embedding; None for an architecture that calls it by another name."""
    table = _find_embedding(model)
    return None if table is None else cast("mx.array", table["weight"]).shape[0]


def check_ids(model: nn.Module, ids: Iterable[int], what: str) -> None:
    """Raise ``ModelError`` where ``what`` has a token id without a row in the embedding: MLX would read past its end.

    Tokenizers may have fewer tokens than the embedding has rows; some have more, for pictures that nobody shows them.
    """
    table = _find_embedding(model)
    if table is None:
        return  # an architecture that calls it by another name
    largest, rows = max(ids, default=0), cast("mx.array", table["weight"]).shape[0]
    if largest >= rows:
        raise ModelError(
            f"{what} has the token id {largest}, but the model has embeddings for {rows} tokens only",
            "the tokenizer files are those of another model, or have tokens added to them: fetch the model again",
        )


def blocks(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks in order. Raises ``ModelError`` for a model without ``layers``."""
    layers = getattr(model, "layers", None)
    if not isinstance(layers, list) or not layers:
        raise ModelError(f"no blocks were found in a {type(model).__module__.rpartition('.')[2]} model")
    return cast("list[nn.Module]", layers)


def inside_blocks(model: nn.Module, names: Iterable[str]) -> frozenset[str]:
    """Those of the parameter names that belong to a transformer block; none in a model without blocks."""
    members = {id(block) for block in getattr(model, "layers", None) or ()}
    if not members:
        return frozenset()
    named = cast("list[tuple[str, nn.Module]]", model.named_modules())
    prefixes = tuple(f"{path}." for path, module in named if id(module) in members)
    return frozenset(name for name in names if name.startswith(prefixes))


def is_above(name: str) -> bool:
    """True for a parameter above everything that hidden states come from: nothing below it needs a gradient for it."""
    return name.startswith(f"{SCORE}.")


def num_frozen_below(model: nn.Module, names: Iterable[str]) -> int:
    """Blocks below the lowest that holds one of the parameters ``names``; 0 where one of them is below the blocks."""
    left = {name for name in names if not is_above(name)}
    if left - inside_blocks(model, left) or not left:
        return 0
    named = {id(module): path for path, module in cast("list[tuple[str, nn.Module]]", model.named_modules())}
    prefixes = [f"{named[id(block)]}." for block in blocks(model)]
    return next(index for index, prefix in enumerate(prefixes) if any(name.startswith(prefix) for name in left))


def flat_arrays(model: nn.Module) -> dict[str, mx.array]:
    """Every parameter by its dotted name, in the model's order."""
    return dict(cast("list[tuple[str, mx.array]]", tree_flatten(model.parameters())))


def head(model: nn.Module) -> nn.Module | None:
    """The linear layer from hidden states to logits, or None where the embedding is used for it."""
    for path, module in model.named_modules():
        if path.rpartition(".")[2] in _HEADS and isinstance(module, nn.Linear | nn.QuantizedLinear):
            return module
    return None
