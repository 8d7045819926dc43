"""What the numbers beside an answer mean (``Batch.values``), and how rewards become advantages."""

from collections.abc import Sequence

import numpy as np

#: Columns. The advantage is the row's own; the others are sums over a step, in whichever of its rows.
ADVANTAGE, NUM_ANSWERS, MISSED, REWARD, DROPPED, TOKENS = range(6)
NUM_VALUES = 6
_SPREAD = 1e-4


def advantages(rewards: Sequence[float], *, divide_by_sd: bool) -> list[float]:
    """``R_i - mean(R)`` of one group, over ``sd + 1e-4`` (of the population) where asked.

    R = (1, 0, 0, 1, 0, 0, 0, 0): 0.75 and -0.25; divided: 1.73165 and -0.57722.
    """
    values = np.array(rewards, np.float64)
    centred = values - values.mean()
    return (centred / (values.std() + _SPREAD) if divide_by_sd else centred).tolist()
