"""The optimizer that a recipe names, for the parameters that it trains."""

from collections.abc import Mapping, Sequence

import mlx.core as mx
import mlx.nn as nn

from mlx_finetune.recipe.training import TrainingRecipe
from mlx_finetune.train.optim import AdamW, decayed_names
from mlx_finetune.train.optimizers.adafactor import Adafactor
from mlx_finetune.train.optimizers.lion import Lion
from mlx_finetune.train.optimizers.muon import Muon, hidden_matrices
from mlx_finetune.train.optimizers.protocol import Optimizer


def choose_optimizer(
    training: TrainingRecipe, model: nn.Module, parameters: Mapping[str, mx.array], undecayed: Sequence[str]
) -> Optimizer:
    """``undecayed`` names the embeddings; vectors are never decayed. Muon is for whole matrices, not for adapters."""
    decayed = decayed_names(parameters, undecayed)
    if training.optimizer == "lion":
        return Lion(training.adam_beta1, training.adam_beta2, training.weight_decay, decayed)
    if training.optimizer == "adafactor":
        return Adafactor(training.weight_decay, decayed)
    adamw = AdamW(
        beta1=training.adam_beta1,
        beta2=training.adam_beta2,
        epsilon=training.adam_epsilon,
        weight_decay=training.weight_decay,
        decayed=decayed,
    )
    if training.optimizer == "adamw":
        return adamw
    return Muon(hidden_matrices(model, parameters), training.weight_decay, adamw)
