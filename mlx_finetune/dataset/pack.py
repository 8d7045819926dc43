"""Best-fit-decreasing packing of rows into sequences of one length. Never splits a row, never drops one.

Fewer Truncations Improve Language Modeling (Ding et al., 2024, arXiv 2404.10830), section 3. On the Alpaca rows packs
of 512 positions are 99 % full (PERF.md section 3). Rows are placed longest first into the fullest pack that still has
room, so the number of packs depends on the lengths alone and not on the order of the rows.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack_lengths(lengths: Sequence[int], capacity: int, order: Sequence[int]) -> list[list[int]]:
    """Groups of row numbers whose lengths add up to at most ``capacity`` tokens.

    ``order`` names the rows to pack (repeats allowed) and breaks ties between equal lengths, so another order gives
    another grouping of the same quality. Raises ``ValueError`` for a row longer than ``capacity`` or empty.
    """
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, pack number), rising
    for row in sorted(order, key=lambda index: -lengths[index]):
        length = lengths[row]
        if not 0 < length <= capacity:
            raise ValueError(f"row {row} has {length} tokens; a pack holds 1 to {capacity}")
        place = bisect_left(room, (length, -1))
        if place == len(room):
            free, pack = capacity, len(packs)
            packs.append([])
        else:
            free, pack = room.pop(place)
        packs[pack].append(row)
        if free > length:
            insort(room, (free - length, pack))
    return packs
