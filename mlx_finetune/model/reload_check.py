"""A few rows and their loss, kept in a checkpoint, so that a fresh process can tell that it loads the same model.

The loss is that of the next token over the rows' own targets, whatever the run learns: it depends on every weight and
on nothing else. Both sides compute it here, in the same batches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self, cast

import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from mlx_finetune.dataset.tokens import Tokens
from mlx_finetune.model.likelihoods import ChunkRows, LikelihoodModel, Scored

KEY = "reload_check"  # in trainer_state.json
TOLERANCE = 1e-6  # nats a target
MOST_ROWS, MOST_TOKENS = 4, 256


@dataclass(frozen=True, slots=True)
class ReloadCheck:
    """Token ids of each row, the positions that are targets, and their mean loss in nats."""

    ids: tuple[tuple[int, ...], ...]
    positions: tuple[tuple[int, ...], ...]
    loss: float

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return {"ids": [*map(list, self.ids)], "positions": [*map(list, self.positions)], "loss": self.loss}

    @classmethod
    def from_json(cls, value: object) -> Self | None:
        """The inverse; None for anything else, such as the checkpoint of a run without a check."""
        if not isinstance(value, Mapping):
            return None
        fields = cast("Mapping[str, object]", value)
        ids, positions, loss = fields.get("ids"), fields.get("positions"), fields.get("loss")
        if not (_are_numbers(ids) and _are_numbers(positions) and isinstance(loss, float)):
            return None
        rows, places = cast("list[list[int]]", ids), cast("list[list[int]]", positions)
        fits = len(rows) == len(places) and all(
            min(chosen, default=0) > 0 and max(chosen) < len(row) for row, chosen in zip(rows, places, strict=False)
        )
        return cls(tuple(map(tuple, rows)), tuple(map(tuple, places)), loss) if fits and rows else None


def make_check(model: nn.Module, rows: Sequence[Tokens], chunk_rows: ChunkRows) -> ReloadCheck | None:
    """The check of ``model`` on the beginnings of the first ``rows``; None where these have no target."""
    ids: list[tuple[int, ...]] = []
    positions: list[tuple[int, ...]] = []
    for row in rows[:MOST_ROWS]:
        cut = row.ids[:MOST_TOKENS]
        chosen = cast("NDArray[np.int64]", np.flatnonzero(row.loss_mask[:MOST_TOKENS]))
        chosen = chosen[chosen > 0]
        if len(chosen):
            ids.append(tuple(cut.tolist()))
            positions.append(tuple(chosen.tolist()))
    if not ids:
        return None
    empty = ReloadCheck(tuple(ids), tuple(positions), 0.0)
    return ReloadCheck(empty.ids, empty.positions, loss_of(model, empty, chunk_rows))


def loss_of(model: nn.Module, check: ReloadCheck, chunk_rows: ChunkRows) -> float:
    """The mean loss of the check's targets under ``model`` in evaluation mode."""
    model.eval()
    rows = [
        Scored(np.array(ids, np.int32), np.array(positions, np.int64))
        for ids, positions in zip(check.ids, check.positions, strict=True)
    ]
    losses = LikelihoodModel(model, chunk_rows).losses(rows)
    return float(np.concatenate(losses).astype(np.float64).mean())


def _are_numbers(value: object) -> bool:
    """True for a list of lists of whole numbers that are not negative."""
    if not isinstance(value, list):
        return False
    rows = cast("list[object]", value)
    return all(
        isinstance(row, list) and all(isinstance(number, int) and number >= 0 for number in cast("list[object]", row))
        for row in rows
    )
