"""Rows longer than ``max_seq_length``: dropped, cut at the front, or split; never without a count."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from mlx_finetune.dataset.tokens import Message

Row = tuple[NDArray[np.int32], NDArray[np.bool_]]


def keep_end(ids: NDArray[np.int32], mask: NDArray[np.bool_], length: int, bos: int | None) -> Row:
    """The last ``length`` tokens; a beginning-of-text token at the front stays there."""
    if bos is not None and ids[0] == bos:
        return np.concatenate((ids[:1], ids[1 - length :])), np.concatenate((mask[:1], mask[1 - length :]))
    ids, mask = ids[-length:].copy(), mask[-length:].copy()
    mask[0] = False
    return ids, mask


def split(ids: NDArray[np.int32], mask: NDArray[np.bool_], length: int, bos: int | None) -> Iterator[Row]:
    """Consecutive pieces of at most ``length`` tokens.

    Every target of the row is a target of exactly one piece: a piece after the first begins with the beginning-of-text
    token if the row does, else with the last token of the piece before it, which is not learned again.
    """
    begins = bos is not None and ids[0] == bos
    yield ids[:length], mask[:length]
    for start in range(length, len(ids), length - 1):
        head = ids[:1] if begins else ids[start - 1 : start]
        end = start + length - 1
        yield np.concatenate((head, ids[start:end])), np.concatenate((np.zeros(1, np.bool_), mask[start:end]))


def shorter_conversations(messages: Sequence[Message]) -> Iterator[tuple[Message, ...]]:
    """The conversation with ever more of its oldest turns left out: it begins with a user turn after the system turn.

    The last exchange is tried without the system turn at the very end.
    """
    num_system = next((n for n, message in enumerate(messages) if message.get("role") != "system"), len(messages))
    system = tuple(messages[:num_system])
    starts = [n for n in range(num_system + 1, len(messages)) if messages[n].get("role") == "user"]
    has_answer = {n for n in starts if any(message.get("role") == "assistant" for message in messages[n:])}
    for start in starts:
        if start in has_answer:
            yield system + tuple(messages[start:])
    if system:
        last = max(has_answer, default=num_system)
        yield tuple(messages[last:])
