"""The tokens that stand around texts: what begins and ends a document, and what stands between prompt and answer."""

from typing import NamedTuple

from mlx_finetune.dataset.tokens import Tokenizer


class Edges(NamedTuple):
    """What an encoder-decoder model has behind a prompt: its end mark, and what the answer begins with."""

    end: int
    start: int


def edges_of(tokenizer: Tokenizer) -> Edges | None:
    """None for a model whose answers go on where the prompt ends."""
    start = tokenizer.start_token_id
    return None if start is None else Edges(tokenizer.eos_token_id, start)


def token_text(tokenizer: Tokenizer, token_id: int | None) -> str:
    """The text of a control token; empty for None and for others."""
    return next((token for token, id_ in tokenizer.control_tokens.items() if id_ == token_id), "")


def bos_to_add(tokenizer: Tokenizer) -> int | None:
    """The beginning-of-text id if the tokenizer puts it before a text by itself, else None."""
    ids = tokenizer.encode("a", add_special_tokens=True).ids
    return tokenizer.bos_token_id if ids and ids[0] == tokenizer.bos_token_id else None
