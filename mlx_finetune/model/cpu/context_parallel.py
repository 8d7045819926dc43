"""One sequence on two threads: context parallelism, its positions cut in two parts.

All of a block but attention looks at one position at a time, and a query sees only keys before it. So the first part
needs nothing of the second in the forward pass and hands it its keys and values, block by block; in the backward pass
the second runs ahead and hands their gradients back. Both are done through what stands in the place of a KV cache, so
mlx-lm's models are used as they are. Mathematics and gradients are those of the whole sequence.

A thread waits for the other only where it needs something of it. Arrays change hands evaluated: streams of MLX belong
to threads.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import cast

import mlx.core as mx
import mlx.nn as nn

from mlx_finetune.model.inside.parts import blocks
from mlx_finetune.model.inside.split import SplitModel
from mlx_finetune.model.upstream import KVCache, RotatingKVCache, create_causal_mask, make_prompt_cache

SHORTEST = 64  # positions; one thread a part has to pack every weight for itself, which shorter sequences do not pay
_PROBE = 8  # tokens on which the parts are compared with the whole


class Link:
    """Two letter boxes between the threads of one sequence. What is put arrives in order; an error arrives as one."""

    def __init__(self) -> None:
        self._boxes: tuple[SimpleQueue[object], SimpleQueue[object]] = (SimpleQueue(), SimpleQueue())

    def put(self, part: int, arrays: list[mx.array]) -> None:
        """Evaluate ``arrays`` and hand them from ``part`` (0 or 1) to the other, without what they are views of."""
        arrays = [mx.contiguous(array) for array in arrays]
        mx.eval(arrays)
        self._boxes[1 - part].put(arrays)

    def get(self, part: int) -> list[mx.array]:
        """What the other part put next; waits for it. Raises what the other failed with."""
        found = self._boxes[part].get()
        if isinstance(found, BaseException):
            raise found
        return cast("list[mx.array]", found)

    @contextmanager
    def telling(self, part: int) -> Generator[None]:
        """Inside, an error of ``part`` reaches the other, too, which may be waiting."""
        try:
            yield
        except BaseException as error:
            self._boxes[1 - part].put(error)
            raise


class PartCache:
    """Stands where a block expects its KV cache, for one part of a sequence.

    ``given`` are the keys and values that the first part hands on, ``received`` those that the second got, each (B,
    heads, T, D). Inside ``replaying`` they are arrays of a graph that is being traced.
    """

    def __init__(self, link: Link, part: int, offset: int, window_size: int | None) -> None:
        self.offset = offset
        self.given: list[mx.array] = []
        self.received: list[mx.array] = []
        self._link = link
        self._part = part
        self._window_size = window_size
        self._is_replaying = False

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Keys and values of every position up to the last of this part."""
        if self._part == 0:
            if self._is_replaying:
                self.given = [keys, values]
            else:
                self._link.put(0, [keys, values])
            return keys, values
        if not self._is_replaying:
            self.received = self._link.get(1)
        before_keys, before_values = self.received
        return mx.concatenate([before_keys, keys], axis=2), mx.concatenate([before_values, values], axis=2)

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> mx.array | str:
        """For ``N`` queries behind ``offset`` keys, as mlx-lm's caches give it."""
        window = window_size or self._window_size
        if return_array or window is not None:
            return create_causal_mask(N, self.offset, window_size=window)
        return "causal"

    @contextmanager
    def replaying(self, received: Sequence[mx.array]) -> Generator[None]:
        """Inside, the block is computed once more, from ``received``."""
        kept, self.received, self._is_replaying = self.received, list(received), True
        try:
            yield
        finally:
            self.received, self._is_replaying = kept, False

    def let_go(self) -> None:
        """Drop the keys and values: the block is not computed again."""
        self.given, self.received = [], []

    def slopes_of_given(self) -> list[mx.array]:
        """Gradients of ``given``; the first part waits for them, the second has given nothing."""
        return self._link.get(0) if self._part == 0 else []

    def hand_back(self, slopes: list[mx.array]) -> None:
        """Gradients of ``received``, from the second part."""
        if self._part == 1:
            self._link.put(1, slopes)


class ContextPart:
    """Part 0 or 1 of sequences (B, T): positions before ``cut``, or from there on."""

    def __init__(self, model: nn.Module, link: Link, part: int, cut: int) -> None:
        self.number = part
        self.cut = cut
        self.link = link
        windows = [getattr(cache, "max_size", None) for cache in cast("list[object]", make_prompt_cache(model))]
        self.caches = [PartCache(link, part, cut if part else 0, window) for window in windows]

    def own(self, array: mx.array) -> mx.array:
        """This part's positions of (B, T, ...)."""
        return array[:, self.cut :] if self.number else array[:, : self.cut]

    def gather(self, own: mx.array) -> mx.array:
        """Every position (B, T, H) of ``own`` and the other's, which calls this at the same point."""
        whole = mx.concatenate(self._exchange(own, own), axis=1)
        mx.eval(whole)  # while a gradient is traced its parts would stay
        return whole

    def scatter_sum(self, slopes: mx.array) -> mx.array:
        """This part's positions of the sum of both parts' ``slopes`` (B, T, H)."""
        theirs = slopes[:, : self.cut] if self.number else slopes[:, self.cut :]
        first, second = self._exchange(self.own(slopes), theirs)
        total = first + second
        mx.eval(total)
        return total

    def _exchange(self, own: mx.array, sent: mx.array) -> list[mx.array]:
        """``own`` and what the other sent, in the order of the parts."""
        self.link.put(self.number, [sent])
        received = self.link.get(self.number)[0]
        return [received, own] if self.number else [own, received]


def cut_of(hidden_size: int, num_positions: int) -> int:
    """Where ``num_positions`` are cut for two parts with about the same work (copied in ``hardware``, whose plan
    imports no model).

    In a block of ``12 H^2`` weights attention costs as much as the rest where a query sees ``6 H`` keys; its operations
    take about three times as long as a product's, hence ``2 H`` here.
    """
    reach = 2 * hidden_size
    half = (num_positions + num_positions**2 / (2 * reach)) / 2
    return round(reach * ((1 + 2 * half / reach) ** 0.5 - 1))  # the root of cut + cut^2 / 2 reach = half


def parts_of(splits: Sequence[SplitModel], num_positions: int) -> list[ContextPart]:
    """Two parts of sequences of ``num_positions``, linked; one split model for each."""
    cut = cut_of(splits[0].hidden_size, num_positions)
    link = Link()
    return [ContextPart(split.model, link, number, cut) for number, split in enumerate(splits)]


def can_divide(split: SplitModel) -> bool:
    """True where hidden states of two parts are those of the whole; compared on a few tokens.

    Layers must keep keys and values only, each its own. A model that reads more than mlx-lm's caches offer is left in
    one piece.
    """
    caches = cast("list[object]", make_prompt_cache(split.model))
    is_plain = all(type(cache) in (KVCache, RotatingKVCache) for cache in caches)
    if not split.is_split or not is_plain or len(caches) != len(blocks(split.model)):
        return False
    tokens = mx.arange(_PROBE)[None]
    whole = split.hidden(tokens, None)
    link = Link()
    pieces: list[mx.array] = []
    try:
        for number in (0, 1):
            part = ContextPart(split.model, link, number, _PROBE // 2 + 1)
            pieces.append(split.hidden(part.own(tokens), part.caches))
    except (AttributeError, IndexError, TypeError, ValueError):
        return False
    difference = mx.abs(whole - mx.concatenate(pieces, axis=1)).max()
    tolerance = 1e-4 if whole.dtype == mx.float32 else 3e-2
    return bool(difference <= tolerance * mx.abs(whole).max())
