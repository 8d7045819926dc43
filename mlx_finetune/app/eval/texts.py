"""Losses of texts under one model: joined by end marks, read in windows, each text with those of its own tokens.

Perplexity is ``exp(sum nll / n)`` over scored tokens, bits per byte ``sum nll / (ln 2 bytes)``; the first token of all
is not scored, nor are its bytes counted. A window is the model's context, its stride half of that, and of each window
only tokens that no earlier one scored count. An interval draws texts, not tokens; a text that stands alone is divided
into blocks for it, which are read as the one text they are.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlx_finetune.dataset.tokens import Tokenizer
from mlx_finetune.model.likelihoods import LikelihoodModel, Losses, stride_of, windows

#: With fewer texts an interval over them says nothing, so long ones are divided.
FEW_TEXTS = 8
BLOCK_CHARACTERS = 2000
_BLANK = re.compile(r"\s")


@dataclass(frozen=True, slots=True)
class TextLosses:
    """Losses of the scored tokens of one text, in nats, and the bytes that they are of."""

    losses: Losses
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Joined:
    """The tokens of all texts (n,), and for each the text that it is of."""

    ids: NDArray[np.int32]
    owners: NDArray[np.int64]


def blocks(text: str, size: int = BLOCK_CHARACTERS) -> list[str]:
    """``text`` in pieces of at least ``size`` characters that begin with a blank, which joined give it again."""
    found: list[str] = []
    start = 0
    while len(text) - start >= 2 * size:
        end = _BLANK.search(text, start + size)
        if end is None:
            break
        found.append(text[start : end.start()])
        start = end.start()
    return [*found, text[start:]]


def join(tokenizer: Tokenizer, texts: Sequence[str], continued: Sequence[bool]) -> Joined:
    """Tokens of ``texts`` with an end mark after each; one that is ``continued`` goes on with the text before it."""
    groups: list[list[int]] = []
    for place, goes_on in enumerate(continued):
        groups[-1].append(place) if goes_on and groups else groups.append([place])
    encodings = tokenizer.encode_batch(["".join(texts[place] for place in group) for group in groups])
    ids: list[NDArray[np.int32]] = []
    owners: list[NDArray[np.int64]] = []
    for group, encoding in zip(groups, encodings, strict=True):
        ids.append(np.array([*encoding.ids, tokenizer.eos_token_id], np.int32))
        if len(group) == 1:
            owners.append(np.full(len(ids[-1]), group[0], np.int64))
            continue
        ends = np.cumsum([len(texts[place]) for place in group])
        starts = np.array([start for start, _ in encoding.offsets], np.int64)
        which = np.minimum(np.searchsorted(ends, starts, side="right"), len(group) - 1)
        owners.append(np.array(group, np.int64)[np.append(which, len(group) - 1)])
    return Joined(np.concatenate(ids), np.concatenate(owners))


def text_losses(
    model: LikelihoodModel,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    continued: Sequence[bool],
    window: int,
    step: Callable[[int], None] | None = None,
) -> list[TextLosses]:
    """Those of each text, in their order; ``step`` is told how many windows are done."""
    joined = join(tokenizer, texts, continued)
    losses, places = model.text_losses(joined.ids, window, stride_of(window), step)
    owners = joined.owners[places]
    first = len(tokenizer.decode(joined.ids[:1].tolist(), skip_special_tokens=True).encode("utf-8"))
    sizes = [len(text.encode("utf-8")) - (first if place == 0 else 0) for place, text in enumerate(texts)]
    return [TextLosses(losses[owners == place], size) for place, size in enumerate(sizes)]


def num_windows(num_tokens: int, window: int) -> int:
    """How many windows a text of ``num_tokens`` is read in."""
    return len(windows(num_tokens, window, stride_of(window)))
