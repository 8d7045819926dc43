"""Markers that a tokenizer turns into control ids, found in content before they can do harm.

Special tokens are refused in content of any role. Added tokens that are not special but look like markers (``<think>``,
``<tool_call>``) are refused too, except in assistant turns where the chat template itself writes or reads them.
Runs of blanks and names of HTML elements, which some vocabularies also add, are ordinary text.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import cast

import numpy as np
from numpy.typing import NDArray

from mlx_finetune.dataset.tokens import Encoded, Tokenizer
from mlx_finetune.errors import DataError

_MARKER = re.compile(r"(?:<.*>|\[.*\])", re.DOTALL)
_HTML_ELEMENT = re.compile(
    r"</?(?:a|b|blockquote|br|caption|code|dd|div|dl|dt|em|h[1-6]|hr|i|img|li|ol|p|pre|span|strike|strong|sub|sup"
    r"|table|tbody|td|tfoot|th|thead|title|tr|u|ul)/?>"
)
_FIELDS_NOT_WRITTEN_BY_PEOPLE = ("role", "type")


class ControlMarkers:
    """The markers of one tokenizer, ready to be searched for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        template = tokenizer.template_source
        special = tokenizer.special_tokens
        plain = {token for token in tokenizer.control_tokens if token not in special and is_marker(token)}
        self.control_ids = frozenset(
            token_id for token, token_id in tokenizer.control_tokens.items() if token in special or is_marker(token)
        )
        # T5's vocabulary lacks braces and more: unknown characters are nobody's disguise there
        unknown = tokenizer.unk_token_id if tokenizer.start_token_id is not None else None
        known = self.control_ids - {unknown}
        self._texts = {id_: token for token, id_ in tokenizer.control_tokens.items() if id_ in known}
        self._range = min(self.control_ids, default=0), max(self.control_ids, default=-1)
        self._special = _Search(special)
        self._any_role = _Search(special | plain)
        self._assistant = _Search(special | {token for token in plain if token not in template})

    def find(self, value: object, *, is_assistant: bool = False) -> str:
        """The first marker in ``value`` (a text, or texts inside lists and objects); empty where there is none."""
        search = self._assistant if is_assistant else self._any_role
        for text in _texts(value):
            found = search.first(text)
            if found:
                return found
        return ""

    def find_in_messages(self, messages: Iterable[Mapping[str, object]]) -> str:
        """The first marker in the content of a conversation; empty where there is none."""
        for message in messages:
            found = self.find(message, is_assistant=message.get("role") == "assistant")
            if found:
                return found
        return ""

    def may_hold(self, value: object) -> bool:
        """False where ``neutral`` changes nothing: no text in ``value`` has a character that begins a special token."""
        return any(self._special.may_hold(text) for text in _texts(value))

    def count(self, text: str) -> int:
        """Number of special tokens that ``text`` spells."""
        return self._special.count(text)

    def neutral(self, value: object) -> object:
        """``value`` with the first character of every possible marker replaced; the same object if there is none."""
        if isinstance(value, str):
            return self._special.neutral(value)
        if isinstance(value, Mapping):
            items = cast("Mapping[str, object]", value).items()
            return {k: v if k in _FIELDS_NOT_WRITTEN_BY_PEOPLE else self.neutral(v) for k, v in items}
        if isinstance(value, list | tuple):
            return [self.neutral(inner) for inner in cast("list[object]", value)]
        return value

    def disguised(self, text: str, encoding: Encoded, ids: NDArray[np.int32]) -> str:
        """A control token that ``text`` does not spell: made by normalisation of other characters. Empty if none.

        ``ids`` are those of ``encoding``.
        """
        low, high = self._range
        for index in np.flatnonzero((ids >= low) & (ids <= high)).tolist():
            marker = self._texts.get(int(ids[index]))
            start, end = encoding.span(index)
            if marker is not None and text[start:end].strip() != marker.strip():
                return marker
        return ""


def refuse_half_characters(text: str) -> None:
    """Raise ``DataError`` for half of a surrogate pair, which no tokenizer can read."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError("the row holds half of a surrogate pair, which is no character") from None


def is_marker(token: str) -> bool:
    """True for ``<think>`` and ``[INST]``, False for blanks, words and HTML elements."""
    return bool(_MARKER.fullmatch(token)) and not _HTML_ELEMENT.fullmatch(token)


class _Search:
    """Finds the first of many markers; texts without a first character of any marker cost one scan each."""

    def __init__(self, markers: Iterable[str]) -> None:
        ordered = sorted((marker for marker in markers if marker.strip()), key=len, reverse=True)
        self._firsts = tuple(sorted({marker[0] for marker in ordered}))
        self._pattern = re.compile("|".join(map(re.escape, ordered)) or r"(?!)")

    def may_hold(self, text: str) -> bool:
        return any(map(text.__contains__, self._firsts))

    def first(self, text: str) -> str:
        if not self.may_hold(text):
            return ""
        found = self._pattern.search(text)
        return found.group() if found else ""

    def count(self, text: str) -> int:
        return len(self._pattern.findall(text))

    def neutral(self, text: str) -> str:
        for first in self._firsts:
            text = text.replace(first, "_")
        return text


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in cast("Mapping[object, object]", value).items():
            if key not in _FIELDS_NOT_WRITTEN_BY_PEOPLE:
                yield from _texts(key)
                yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in cast("list[object]", value):
            yield from _texts(inner)
