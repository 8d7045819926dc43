"""Keys and values of the first few tokens and of the latest ones: a window that slides over a text of any length.

Window attention forgets the first tokens, on which trained models put what attention they have left over, and falls
apart; with four of them kept (the sinks) it does not (Xiao et al. 2023, 2309.17453). mlx-lm's ``RotatingKVCache`` with
``keep`` stores them at the positions they had in the text, so the distance from a query to them grows without end; the
paper counts positions inside the cache. Every rotary angle is a difference of positions, so it is enough to turn the
keys of the sinks by the number of tokens left out between them and the rest.

A query at position ``t`` sees the first ``keep`` tokens and the last ``window - keep``, its own among them, however
many tokens are read at once: a mask keeps what is too old from each query, and where sinks are turned each query has
its own copy of them, ``keep`` columns more for each query of a chunk. mlx-lm's cache shows a chunk that is longer than
what fits a window from which the sinks are gone. Memory is that of ``window`` keys and one chunk.
"""

import mlx.core as mx

from mlx_finetune.model.long_text.rotations import Rotate

#: Sinks of the paper: with four, more add nothing (2309.17453, table 2).
NUM_SINKS = 4


class SinkCache:
    """Stands where a layer expects its KV cache; ``rotate`` turns sinks, without it they stay where they were.

    ``keep`` = 0 is a plain sliding window. It cannot go back.
    """

    def __init__(self, window: int, keep: int = NUM_SINKS, rotate: Rotate | None = None) -> None:
        assert 0 <= keep < window
        self.offset = 0  # tokens seen so far: mlx-lm's layers rotate new keys and queries by it
        self.keys: mx.array | None = None  # (B, H, n, D): the sinks, then the latest
        self.values: mx.array | None = None
        self._window, self._keep = window, keep
        self._rotate = rotate if keep else None

    @property
    def state(self) -> list[mx.array]:
        """What must be evaluated after a chunk."""
        return [] if self.keys is None or self.values is None else [self.keys, self.values]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Take in keys and values (B, H, N, D) of N tokens; returns what their queries may see, as in ``make_mask``."""
        num_new = keys.shape[2]
        if self.keys is not None and self.values is not None:
            keys = mx.concatenate([self.keys, keys], axis=2)
            values = mx.concatenate([self.values, values], axis=2)
        num_sinks, first = min(self._keep, keys.shape[2]), self._first_latest(self.offset + num_new)
        self.keys, self.values = (_kept(array, num_sinks, first, self.offset + num_new) for array in (keys, values))
        turned = self._num_turned(num_new)
        if turned:
            keys = mx.concatenate([keys, self._turned(keys[:, :, : self._keep], num_new, turned)], axis=2)
            values = mx.concatenate([values, _repeated(values[:, :, : self._keep], turned)], axis=2)
        self.offset += num_new
        return keys, values

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> mx.array:
        """(N, K) booleans for the next N tokens: which of the keys that ``update_and_fetch`` will give each may see."""
        queries = mx.arange(self.offset, self.offset + N)[:, None]  # (N, 1)
        columns = mx.array([*self._positions(), *range(self.offset, self.offset + N)])[None]  # (1, K)
        is_sink = columns < self._keep
        seen = (columns <= queries) & (is_sink | (queries - columns < self._window - self._keep))
        turned = self._num_turned(N)
        if not turned:
            return seen
        is_turned = queries >= self._window  # (N, 1): these see turned copies in the place of the sinks
        own = mx.arange(N)[:, None] == N - turned + mx.arange(turned)[None]  # (N, turned)
        copies = mx.tile(own, (1, self._keep))  # copies of one sink for all queries, then of the next
        return mx.concatenate([seen & ~(is_sink & is_turned), copies], axis=1)

    def _positions(self) -> list[int]:
        """Where in the text the stored keys were."""
        sinks = range(min(self._keep, self.offset))
        return [*sinks, *range(max(len(sinks), self._first_latest(self.offset)), self.offset)]

    def _first_latest(self, offset: int) -> int:
        """The oldest token beside the sinks that the query at ``offset`` will see."""
        return max(0, offset + 1 - (self._window - self._keep))

    def _num_turned(self, num_new: int) -> int:
        """Of the next tokens those, at their end, for which something has been left out behind the sinks."""
        if self._rotate is None:
            return 0
        return max(0, min(num_new, self.offset + num_new - self._window))

    def _turned(self, sinks: mx.array, num_new: int, turned: int) -> mx.array:
        """Sinks (B, H, keep, D) turned for each of the last ``turned`` queries: (B, H, keep turned, D).

        The query at position t has left out ``t + 1 - window`` tokens.
        """
        assert self._rotate is not None
        batch, heads, keep, size = sinks.shape
        first = self.offset + num_new - turned + 1 - self._window
        copies = _repeated(sinks, turned).reshape(batch, heads * keep, turned, size)
        return self._rotate(copies, first).reshape(batch, heads, keep * turned, size)


def _kept(array: mx.array, num_sinks: int, first: int, end: int) -> mx.array:
    """The sinks and the latest of (B, H, n, D), whose last column is of position ``end - 1``."""
    num_latest = min(end - max(first, num_sinks), array.shape[2] - num_sinks)
    if num_sinks + num_latest == array.shape[2]:
        return array
    latest = array[:, :, array.shape[2] - num_latest :]
    return mx.concatenate([array[:, :, :num_sinks], latest], axis=2) if num_sinks else latest


def _repeated(array: mx.array, times: int) -> mx.array:
    """(B, H, n, D) to (B, H, n times, D), each column ``times`` in a row."""
    return mx.repeat(array, times, axis=2)
