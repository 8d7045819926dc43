"""Some of many rows, always the same ones: those that are measured, and those that stand in a prompt as examples.

Memory is that of the rows that are taken.
"""

import heapq
import random
from collections import Counter
from collections.abc import Sequence

from mlx_finetune.dataset.formats import Example, Text
from mlx_finetune.dataset.split import content_key
from mlx_finetune.errors import DataError


def smallest(examples: Sequence[Example], count: int) -> tuple[list[Example], int]:
    """At most ``count`` different ones of ``examples``, in their order, and how many others are copies of these.

    They are those whose content hashes are smallest, as if drawn. Copies are left out because an interval over them
    would claim more evidence than there is. A stretch of a longer text is none: what stands before it is another.
    """
    kept: dict[tuple[int, int], tuple[int, Example]] = {}
    largest_first: list[tuple[int, int]] = []
    copies = Counter[tuple[int, int]]()
    for place, example in enumerate(examples):
        is_stretch = isinstance(example, Text) and (example.continues or example.follows)
        key, own = content_key(example, salt="evaluation"), place + 1 if is_stretch else 0
        if (key, own) in kept:
            copies[key, own] += 1
        elif len(kept) < count:
            heapq.heappush(largest_first, (-key, -own))
            kept[key, own] = place, example
        elif (-key, -own) > largest_first[0]:
            negated = heapq.heapreplace(largest_first, (-key, -own))
            del kept[-negated[0], -negated[1]]
            kept[key, own] = place, example
    in_order = sorted(kept.values(), key=lambda item: item[0])
    return [example for _, example in in_order], sum(copies[name] for name in kept)


def draw_shots(examples: Sequence[Example], count: int, seed: int) -> tuple[Example, ...]:
    """``count`` training rows, drawn by ``seed`` alone. Raises ``DataError`` where there are fewer."""
    if not count:
        return ()
    if len(examples) < count:
        raise DataError(
            f"{count} examples are wanted in each prompt, and there are {len(examples)} training rows for them",
            f"--shots {len(examples)} or fewer; a model without a run has no training rows",
        )
    # random.sample of a seeded Random: the same in every version since Python 3.2.
    return tuple(examples[place] for place in random.Random(f"shots {seed}").sample(range(len(examples)), count))
