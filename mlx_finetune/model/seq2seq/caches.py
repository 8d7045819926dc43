"""What the decoder keeps while it answers: keys and values of what it has said, and those of the encoder's states.

One object serves all of its blocks. Rows of a batch end in the same column, so shorter ones begin later: their first
columns are padding, which T5 does not mind, since its positions are distances. It has the methods that ``batches`` asks
of mlx-lm's caches.
"""

from collections.abc import Sequence

import mlx.core as mx

Pair = tuple[mx.array, mx.array]  # keys and values, each (B, heads, T, D)


class AnswerCache:
    """``said`` and ``sources`` have one pair a block; a source is padded at its end, what was said at its front.

    ``source_ids`` are the tokens of a single row's prompt as far as they have been read, ``lengths`` the tokens of each
    row's prompt, ``padding`` the columns of each row before its answer begins.
    """

    def __init__(self) -> None:
        self.source_ids: list[int] = []
        self.sources: list[Pair] = []
        self.said: list[Pair] = []
        self.lengths: list[int] = []
        self.padding: list[int] = [0]

    @property
    def has_begun(self) -> bool:
        """True once the decoder has read its first token."""
        return bool(self.said)

    @property
    def num_said(self) -> int:
        """Columns of what was said."""
        return self.said[0][0].shape[2] if self.said else 0

    @property
    def state(self) -> list[mx.array]:
        """Every array."""
        return [array for pairs in (self.sources, self.said) for pair in pairs for array in pair]

    def is_trimmable(self) -> bool:
        """Another prompt means other encoder states, so nothing is taken back."""
        return False

    def add(self, block: int, keys: mx.array, values: mx.array) -> Pair:
        """All keys and values of a block, those just computed (B, heads, T, D) at the end."""
        if block == len(self.said):
            self.said.append((keys, values))
        else:
            old_keys, old_values = self.said[block]
            self.said[block] = mx.concatenate([old_keys, keys], 2), mx.concatenate([old_values, values], 2)
        return self.said[block]

    def merge(self, caches: "Sequence[AnswerCache]") -> "AnswerCache":
        """The rows of ``caches``, whose prompts have been read, in one."""
        merged = AnswerCache()
        num_said = max(one.num_said for one in caches)
        num_source = max(max(one.lengths) for one in caches)
        merged.lengths = [length for one in caches for length in one.lengths]
        merged.padding = [num_said - one.num_said + columns for one in caches for columns in one.padding]
        for block in range(len(caches[0].sources)):
            merged.sources.append(_stacked([one.sources[block] for one in caches], num_source, at_front=False))
        if num_said:
            for block in range(len(caches[0].sources)):
                pairs = [one.said[block] if one.said else _nothing(one.sources[block]) for one in caches]
                merged.said.append(_stacked(pairs, num_said, at_front=True))
        return merged

    def extend(self, other: "AnswerCache") -> None:
        """Take in the rows of ``other``."""
        self._become(self.merge([self, other]))

    def filter(self, indices: Sequence[int]) -> None:
        """Keep these rows alone, and no column that is padding in all of them."""
        kept = AnswerCache()
        rows = mx.array(list(indices))
        kept.lengths = [self.lengths[row] for row in indices]
        unused = min(self.padding[row] for row in indices)
        kept.padding = [self.padding[row] - unused for row in indices]
        longest = max(kept.lengths)
        kept.sources = [(keys[rows][:, :, :longest], values[rows][:, :, :longest]) for keys, values in self.sources]
        kept.said = [(keys[rows][:, :, unused:], values[rows][:, :, unused:]) for keys, values in self.said]
        self._become(kept)

    def _become(self, other: "AnswerCache") -> None:
        self.sources, self.said = other.sources, other.said
        self.lengths, self.padding, self.source_ids = other.lengths, other.padding, []


def _nothing(like: Pair) -> Pair:
    """No columns, of the sizes and the type of ``like``."""
    return like[0][:, :, :0], like[1][:, :, :0]


def _stacked(pairs: Sequence[Pair], length: int, *, at_front: bool) -> Pair:
    """Rows of all pairs, each filled up with zeros to ``length`` columns."""

    def filled(array: mx.array) -> mx.array:
        missing = length - array.shape[2]
        return mx.pad(array, [(0, 0), (0, 0), (missing, 0) if at_front else (0, missing), (0, 0)]) if missing else array

    keys, values = (mx.concatenate([filled(pair[part]) for pair in pairs], 0) for part in (0, 1))
    return keys, values
