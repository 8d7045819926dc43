"""Best-fit-decreasing packing of rows into sequences of one length. Never splits a row, never drops one.

Fewer Truncations Improve Language Modeling (Ding et al., 2024, arXiv 2404.10830), section 3. On the Alpaca rows packs
of 512 positions are 99 % full (PERF.md section 3). Rows are placed longest first into the fullest pack that still has
room, so the number of packs depends on the lengths alone and not on the order of the rows. A million rows
take 2 s.
"""

from collections.abc import Sequence
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

Numbers = Sequence[int] | NDArray[np.integer]


def pack_lengths(lengths: Numbers, capacity: int, order: Numbers) -> list[list[int]]:
    """Groups of row numbers whose lengths add up to at most ``capacity`` tokens.

    ``order`` names the rows to pack (repeats allowed) and breaks ties between equal lengths, so another order gives
    another grouping of the same quality. Raises ``ValueError`` for a row longer than ``capacity`` or empty.
    """
    rows = np.asarray(order, np.int64)
    taken = np.asarray(lengths, np.int64)[rows]
    by_length = np.argsort(-taken, kind="stable")
    rows, taken = rows[by_length], taken[by_length]
    wrong = np.flatnonzero((taken <= 0) | (taken > capacity))
    if len(wrong):
        row, length = int(rows[wrong[0]]), int(taken[wrong[0]])
        raise ValueError(f"row {row} has {length} tokens; a pack holds 1 to {capacity}")
    packs: list[list[int]] = []
    for row, pack in zip(rows.tolist(), _place(taken.tolist(), capacity), strict=True):
        if pack == len(packs):
            packs.append([])
        packs[pack].append(row)
    return packs


def _place(lengths: Sequence[int], capacity: int) -> list[int]:
    """The pack of each row: of those with the least room that is enough, the one that was begun first.

    Packs wait in one heap for each amount of room, and bit ``n`` of ``waiting`` says that the heap for ``n`` is not
    empty: a search costs the same however many packs there are.
    """
    heaps: list[list[int]] = [[] for _ in range(capacity + 1)]
    waiting = 0
    placed: list[int] = []
    num_packs = 0
    for length in lengths:
        enough = waiting >> length
        if enough:
            room = length + (enough & -enough).bit_length() - 1
            pack = heappop(heaps[room])
            if not heaps[room]:
                waiting ^= 1 << room
        else:
            room, pack = capacity, num_packs
            num_packs += 1
        placed.append(pack)
        if room > length:
            heappush(heaps[room - length], pack)
            waiting |= 1 << (room - length)
    return placed
