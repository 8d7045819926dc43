"""Which of two answers a model finds likelier, and how likely it finds single answers marked good or bad.

Answers are scored whole, end mark included, as training scores them. A pair is right by its sum where the chosen answer
is the likelier of the two, and right per token where its mean is higher; a tie is half right, as in training. Of single
answers, KTO trains how much likelier the good ones become than the bad ones: ``good_over_bad`` is a row's
log-probability with the sign of its kind, and the kind.
"""

from collections.abc import Mapping, Sequence

import mlx.nn as nn
import numpy as np

from mlx_finetune.app.eval.prompts import Prompter
from mlx_finetune.app.eval.score import Values
from mlx_finetune.dataset.formats import Preference
from mlx_finetune.model.likelihoods import ChunkRows, LikelihoodModel, Losses, Scored
from mlx_finetune.scoring.picks import share_right


def preference_rows(example: Preference, prompter: Prompter) -> dict[str, Scored]:
    """The answers of a row by name, chosen or rejected. Raises ``DataError`` where one of them cannot be scored."""
    return {name: Scored(ids, np.flatnonzero(mask)) for name, (ids, mask) in prompter.answers(example).items()}


def preference_values(
    model: nn.Module, rows: Sequence[dict[str, Scored]], chunk_rows: ChunkRows
) -> list[dict[str, tuple[float, ...]]]:
    """What each row says about the model: see ``measures``. Pairs have the sum of both answers, in nats."""
    sizes = {len(row) for row in rows}  # two answers to each prompt, or one
    together = max(sizes) if len(sizes) == 1 else 1
    scored = [one for row in rows for one in row.values()]
    losses = iter(LikelihoodModel(model, chunk_rows).losses(scored, together=together))
    return [_values({name: next(losses) for name in row}) for row in rows]


def _values(losses: dict[str, Losses]) -> Values:
    sums = {name: float(found.sum(dtype=np.float64)) for name, found in losses.items()}
    if len(losses) == 1:
        ((name, found),) = losses.items()
        kind = 1.0 if name == "chosen" else -1.0
        loss = "good_loss" if name == "chosen" else "bad_loss"
        return {"good_over_bad": (-kind * sums[name], kind), loss: (sums[name], float(len(found)))}
    means = {name: sums[name] / len(found) for name, found in losses.items()}
    return {
        "preferred": (_ahead(sums),),
        "preferred_per_token": (_ahead(means),),
        **{f"{name}_loss": (sums[name], float(len(found))) for name, found in losses.items()},
    }


def _ahead(losses: Mapping[str, float]) -> float:
    """Whether the chosen answer has the lower loss; one half for a tie."""
    return share_right(float(np.sign(losses["rejected"] - losses["chosen"])))
