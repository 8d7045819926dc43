"""The loss of texts by where in them a token stands: what ``mlxft eval --sinks`` keeps and the report shows."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Loss:
    """Mean loss of a token in nats with its 95 % interval over texts, None where one text gives none."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Bucket:
    """Positions ``first`` to ``last`` of a text, counted from 1 for the first that is predicted; the loss by method."""

    first: int
    last: int
    losses: Mapping[str, Loss]
