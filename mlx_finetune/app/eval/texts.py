"""Losses of texts under one model, each text read as it was trained.

A text that fits into the model's context is read by itself, from its own beginning to its end mark, and no other text
stands before it. A longer one is read in windows: a window is the context, its stride half of that, and of each window
only tokens that no earlier one scored count. Of a file that is one text, what is held out is read as one, with an end
mark between its stretches. Perplexity is ``exp(sum nll / n)`` over scored tokens, bits per byte
``sum nll / (ln 2 bytes)``; the first token of a text is scored only behind a mark that begins texts, else its bytes are
not counted either. Where it ends inside a character the rest of that is left out with it. An interval draws rows, not
tokens; a text that stands alone is divided into blocks for it, which are read as the one text they are.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mlx_finetune.dataset.edges import bos_to_add, token_text
from mlx_finetune.dataset.tokens import Encoded, Tokenizer
from mlx_finetune.model.likelihoods import LikelihoodModel, Losses, stride_of, windows

#: With fewer texts an interval over them says nothing, so long ones are divided.
FEW_TEXTS = 8
BLOCK_CHARACTERS = 2000
_BLANK = re.compile(r"\s")


@dataclass(frozen=True, slots=True)
class Part:
    """One row of text. It is of the same text as the part before it where it ``is_continued``; an end mark follows it
    where it ``ends``, which it also does in front of a part that is not its next."""

    text: str
    is_continued: bool = False
    ends: bool = True


@dataclass(frozen=True, slots=True)
class TextLosses:
    """Losses of the scored tokens of one part, in nats, and the bytes that they are of."""

    losses: Losses
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Document:
    """The tokens of one text (n,) and for each the number of its part; ``num_unscored`` bytes are of the tokens before
    ``first``, of which nothing predicts the first."""

    ids: NDArray[np.int32]
    owners: NDArray[np.int64]
    first: int
    num_unscored: int


@dataclass(frozen=True, slots=True)
class Reading:
    """How texts are read: what a perplexity says nothing without. ``num_long`` of ``num_texts`` are longer than the
    window."""

    window: int
    stride: int
    num_texts: int
    num_long: int
    num_windows: int

    def described(self, unit: str = "row") -> str:
        """``each row by itself``, ``in windows of 256 with stride 128``."""
        how = f"in windows of {self.window} with stride {self.stride}"
        if not self.num_long:
            return f"each {unit} by itself"
        return how if self.num_long == self.num_texts else f"each {unit} by itself, the longest {self.num_long} {how}"


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


def documents(tokenizer: Tokenizer, parts: Sequence[Part]) -> list[Document]:
    """The texts that ``parts`` make up, with the marks that training puts around them."""
    runs: list[list[int]] = []  # parts that are read as one string
    for place, part in enumerate(parts):
        goes_on = part.is_continued and place > 0 and not parts[place - 1].ends
        runs[-1].append(place) if goes_on else runs.append([place])
    bos = bos_to_add(tokenizer)
    front, end = token_text(tokenizer, bos), token_text(tokenizer, tokenizer.eos_token_id)
    texts = [part.text for part in parts]
    for run in runs:  # a text may bring marks of its own
        texts[run[0]] = texts[run[0]].removeprefix(front)
        texts[run[-1]] = texts[run[-1]].removesuffix(end)
    encodings = tokenizer.encode_batch(["".join(texts[place] for place in run) for run in runs])
    found: list[Document] = []
    for run, encoding in zip(runs, encodings, strict=True):
        is_new = not (parts[run[0]].is_continued and found)
        head = [bos] if is_new and bos is not None else []
        tail = [tokenizer.eos_token_id] if parts[run[-1]].ends else []
        ids = np.array([*head, *encoding.ids, *tail], np.int32)
        own = _owners(run, [len(texts[place]) for place in run], encoding)
        owners = np.concatenate([np.full(len(head), run[0]), own, np.full(len(tail), run[-1])]).astype(np.int64)
        if is_new:
            end = encoding.span(0)[1] if encoding.ids and not head else 0  # of the characters of the first token
            first = encoding.first_from(end) if end else 0
            found.append(Document(ids, owners, first, len(texts[run[0]][:end].encode("utf-8"))))
        else:
            before = found.pop()
            ids, owners = np.concatenate([before.ids, ids]), np.concatenate([before.owners, owners])
            found.append(replace(before, ids=ids, owners=owners))
    return found


def _owners(run: Sequence[int], lengths: Sequence[int], encoding: Encoded) -> NDArray[np.int64]:
    """For each token the part that it begins in."""
    starts = np.array([encoding.span(token)[0] for token in range(len(encoding.ids))], np.int64)
    which = np.minimum(np.searchsorted(np.cumsum(lengths), starts, side="right"), len(run) - 1)
    return np.array(run, np.int64)[which]


def reading_of(texts: Sequence[Document], window: int) -> Reading:
    """How ``texts`` are read with a context of ``window`` tokens."""
    stride, lengths = stride_of(window), [len(one.ids) for one in texts]
    num_long = sum(length > window for length in lengths)
    num_windows = sum(len(windows(length, window, stride)) for length in lengths)
    return Reading(window, stride, len(texts), num_long, num_windows)


def text_losses(
    model: LikelihoodModel,
    tokenizer: Tokenizer,
    parts: Sequence[Part],
    window: int,
    step: Callable[[int], None] | None = None,
) -> list[TextLosses]:
    """Those of each part, in their order; ``step`` is told how many windows are done."""
    texts = documents(tokenizer, parts)
    scored = model.text_losses([one.ids for one in texts], window, stride_of(window), step)
    sizes = [len(part.text.encode("utf-8")) for part in parts]
    found: list[list[Losses]] = [[] for _ in parts]
    for text, (losses, places) in zip(texts, scored, strict=True):
        is_whole = places >= text.first
        losses, owners = losses[is_whole], text.owners[places[is_whole]]
        sizes[text.owners[0]] -= text.num_unscored
        for place in dict.fromkeys(text.owners.tolist()):
            found[place].append(losses[owners == place])
    return [
        TextLosses(np.concatenate([np.empty(0, np.float32), *own]), size)
        for own, size in zip(found, sizes, strict=True)
    ]
