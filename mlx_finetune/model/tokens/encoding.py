"""An encoding of the Rust library whose spans are fetched one by one: a list of all costs 25 us for 165 tokens."""

from tokenizers import Encoding as RustEncoding

from mlx_finetune.dataset.tokens import Encoding, Span


class LazyEncoding:
    """Implements ``dataset.tokens.Encoded``; everything in it is equal to ``Encoding(ids, offsets)``."""

    __slots__ = ("_encoding", "ids")

    def __init__(self, encoding: RustEncoding) -> None:
        self._encoding = encoding
        self.ids: list[int] = encoding.ids

    @property
    def offsets(self) -> list[Span]:
        """The span of each token."""
        return self._encoding.offsets

    def span(self, index: int) -> Span:
        """``offsets[index]``."""
        found = self._encoding.token_to_chars(index)
        return self.offsets[index] if found is None else found

    def first_from(self, position: int) -> int:
        """The first token that starts at ``position`` or after it; the number of tokens where none does."""
        count = len(self.ids)
        if not count or self.span(count - 1)[0] < position:
            return count
        index = self._encoding.char_to_token(position)  # the first token that holds the character
        if index is not None and self.span(index)[0] == position and (not index or self.span(index - 1)[0] < position):
            return index
        return Encoding(self.ids, self.offsets).first_from(position)
