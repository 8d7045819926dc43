"""A trainer of a tiny model with a score head, for the tests of what is learned through it."""

from pathlib import Path
from typing import Any

import mlx.nn as nn

from mlx_finetune.model.adapters.lora import adapter_parameters, attach_adapter, full_parameters
from mlx_finetune.model.heads.score import HeadSpec, attach_head, first_weight, head_parameters
from mlx_finetune.model.inside.split import SplitModel
from mlx_finetune.model.load import load_model
from mlx_finetune.model.sources.fetch import LocalModel
from mlx_finetune.recipe.schema import LoraRecipe
from mlx_finetune.train.objective import Objective
from mlx_finetune.train.optim import AdamW
from mlx_finetune.train.step import Trainer


def load_tiny(folder: Path) -> Any:
    """The model in ``folder``, in float32."""
    local = LocalModel("tiny", folder, "folder", None, "", None)
    return load_model(local, quantize=None, compute_dtype="float32", on_gpu=False).model


def scored_trainer(
    model: nn.Module,
    objective: Objective,
    how: str = "graph",
    *,
    factor: float = 1.0,
    num_layers: int = 2,
    is_full: bool = False,
) -> Trainer:
    """``how`` is graph, block by block or compiled; the head's first weights are times ``factor``.

    Three labels, where the data says how many.
    """
    if is_full:
        full_parameters(model)
    else:
        attach_adapter(model, LoraRecipe.model_validate({"rank": 4, "num_layers": num_layers}), seed=3)
    spec = HeadSpec(objective.name, 3 if objective.num_outputs is None else objective.num_outputs)
    split = SplitModel(model)
    attach_head(split, spec, factor * first_weight(spec, split.hidden_size, 5))
    parameters = full_parameters(model) if is_full else adapter_parameters(model) | head_parameters(model)
    return Trainer(
        model,
        objective,
        AdamW(0.9, 0.999, 1e-8, 0.0, frozenset()),
        {name: value + 0.01 for name, value in sorted(parameters.items())},
        seed=1,
        max_grad_norm=0.0,
        is_packed=False,
        is_compiled=how == "compiled",
        is_blockwise=how == "block by block",
        split=split,
    )
