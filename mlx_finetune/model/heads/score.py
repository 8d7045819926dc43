"""The score head: ``num_outputs`` numbers of a hidden state, beside the head of tokens, which stays as it is.

``scores = h W^T`` with ``W`` (n, H) in fp32 and no bias, as in transformers' ``...ForSequenceClassification``. It sits
on the model as ``score``, is called by losses and by ``token_scores`` alone, and learns in full beside an adapter.
"""

from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from mlx_finetune.errors import ModelError
from mlx_finetune.model.inside.noise import derive_key
from mlx_finetune.model.inside.parts import SCORE
from mlx_finetune.model.inside.split import SplitModel

WEIGHT = f"{SCORE}.weight"
_SPREAD = 0.02  # standard deviation of the first weights; transformers' ``initializer_range`` of nearly every family


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """What the numbers mean: ``task`` trained them, and where they are classes ``labels`` names each, in order."""

    task: str
    num_outputs: int
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert not self.labels or len(self.labels) == self.num_outputs, "a label for every output"


class ScoreHead(nn.Module):
    """``weight`` is (n, H) in fp32."""

    def __init__(self, weight: mx.array, spec: HeadSpec) -> None:
        super().__init__()
        self.weight = weight
        self.spec = spec

    def __call__(self, hidden: mx.array) -> mx.array:
        """Scores (..., n) in fp32 of states (..., H)."""
        return hidden.astype(mx.float32) @ self.weight.T


def first_weight(spec: HeadSpec, hidden_size: int, seed: int) -> mx.array:
    """N(0, 0.02) of shape (n, H), a function of the seed and the shape alone."""
    return _SPREAD * mx.random.normal((spec.num_outputs, hidden_size), key=derive_key(seed, SCORE))


def attach_head(split: SplitModel, spec: HeadSpec, weight: mx.array) -> None:
    """Put a head on ``split.model``, in the place of one that is there. Twins that were made before have none.

    Raises ``ModelError`` for a model whose hidden states cannot be had, and for a weight of another size.
    """
    if not split.is_split:
        kind = type(split.model).__module__.rpartition(".")[2]
        raise ModelError(f"a {kind} model cannot have a score head: its hidden states are not to be had")
    expected = (spec.num_outputs, split.hidden_size)
    if weight.shape != expected:
        raise ModelError(
            f"the score head has the shape {tuple(weight.shape)}, the model needs {expected}",
            "the head was made for another base model",
        )
    cast("Any", split.model).score = ScoreHead(weight.astype(mx.float32), spec)
    mx.eval(weight)


def detach_head(model: nn.Module) -> None:
    """Take the head off; nothing happens without one."""
    if find_head(model) is not None:
        cast("dict[str, object]", model).pop(SCORE)


def find_head(model: nn.Module) -> ScoreHead | None:
    """The head of ``model``, None without one."""
    found = cast("dict[str, object]", model).get(SCORE)
    return found if isinstance(found, ScoreHead) else None


def head_parameters(model: nn.Module) -> dict[str, mx.array]:
    """The head's weight by its name in the model; empty without one."""
    head = find_head(model)
    return {} if head is None else {WEIGHT: head.weight}
