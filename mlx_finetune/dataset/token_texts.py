"""The characters of each token, from ids alone: those of a row as it was cut, not as it was written."""

from collections.abc import Sequence

from mlx_finetune.dataset.tokens import Tokenizer

_CONTEXT = 4  # tokens decoded along with a new one: a leading blank depends on the one before
_LONGEST_CHARACTER = 4  # bytes, each of which may be a token


def token_texts(ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """One text for each of ``ids``; joined they are the decoded row.

    A character that needs several tokens stands with the first of them, the later ones are empty; bytes that are no
    character are U+FFFD.
    """
    texts: list[str] = []
    waiting = 0  # tokens of a character that is not whole yet
    for place in range(len(ids)):
        start = len(texts)
        context = ids[max(0, start - _CONTEXT) : start]
        before = tokenizer.decode(context) if context else ""
        whole = tokenizer.decode([*context, *ids[start : place + 1]])
        text = whole[len(before) :] if whole.startswith(before) else tokenizer.decode(ids[start : place + 1])
        waiting += 1
        if text.endswith("\ufffd") and waiting < _LONGEST_CHARACTER and place + 1 < len(ids):
            continue
        texts += _shared(text, waiting)
        waiting = 0
    return texts


def _shared(text: str, count: int) -> list[str]:
    """``text`` over ``count`` tokens: its first character with the first of them, what follows it with the last."""
    return [text] if count == 1 else [text[:1], *[""] * (count - 2), text[1:]]
