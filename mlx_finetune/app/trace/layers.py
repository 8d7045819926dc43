"""What happens between the first block and the last: CKA of hidden states, the logit lens, divergence from the base.

The logit lens (nostalgebraist 2020) reads each block's output through the model's own final norm and head. It says what
could be read there, not that anything reads it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from mlx_finetune.app.trace.asking import States
from mlx_finetune.app.trace.similarity import Centred, centred, divergence, linear_cka, log_softmax
from mlx_finetune.model.inside.split import SplitModel

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Layer:
    """After block ``layer``, first 0. ``lens_kl`` is KL(final || lens), ``base_kl`` KL(base || tuned), nats; the CKAs
    are with the base and with the step before. None where there is nothing to compare, or no lens."""

    layer: int
    base_cka: float | None
    previous_cka: float | None
    lens_kl: float | None
    base_kl: float | None


class Reference:
    """The states of a base or an earlier step, centred once; ``last`` are what its lens is read from."""

    def __init__(self, states: States) -> None:
        self.centred: Sequence[Centred] = [centred(layer) for layer in states.tokens]
        self.last = states.last


class Lens:
    """The final norm and the head of one model, as functions of states (P, H)."""

    def __init__(self, split: SplitModel, norm: nn.Module) -> None:
        self._split = split
        self._norm = norm

    def read(self, states: Floats) -> Floats:
        """Log-probabilities (P, V)."""
        logits = self._split.logits(cast(Any, self._norm)(mx.array(states)))
        return log_softmax(np.array(logits.astype(mx.float32)))


def describe_layers(
    states: States,
    base: Reference,
    previous: Reference | None,
    lens: Lens | None,
    base_lens: Callable[[int], Floats] | None,
) -> list[Layer]:
    """One entry for each block. ``base_lens`` gives the base's log-probabilities (P, V) after a block."""
    final = None if lens is None or not states.last else lens.read(states.last[-1])
    found: list[Layer] = []
    for number, tokens in enumerate(states.tokens):
        here = centred(tokens)
        read = None if lens is None else lens.read(states.last[number])
        found.append(
            Layer(
                layer=number,
                base_cka=linear_cka(here, base.centred[number]),
                previous_cka=None if previous is None else linear_cka(here, previous.centred[number]),
                lens_kl=None if read is None or final is None else divergence(final, read),
                base_kl=None if read is None or base_lens is None else divergence(base_lens(number), read),
            )
        )
    return found
