"""Five steps of an adapter of a tiny T5 here, beside ``t5_reference.their_losses``."""

from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten
from saved_adapters import save_adapter
from t5_reference import DECAY, EPSILON, MAX_NORM, RATE, STEPS, step_batches

from mlx_finetune.model.adapters.lora import adapter_parameters, attach_adapter
from mlx_finetune.model.adapters.peft_names import PREFIX
from mlx_finetune.model.load import LoadedModel, load_model
from mlx_finetune.model.sources.fetch import LocalModel
from mlx_finetune.recipe.schema import LoraRecipe
from mlx_finetune.train.objectives.seq2seq import seq2seq
from mlx_finetune.train.optim import AdamW, FlatArrays, decayed_names
from mlx_finetune.train.step import Trainer


def load_t5(folder: Path) -> LoadedModel:
    local = LocalModel("tiny", folder, "folder", None, "0" * 64, None)
    return load_model(local, quantize=None, compute_dtype="float32", on_gpu=False)


def trainer_of(model, parameters: FlatArrays, *, max_norm: float = 0.0, is_compiled: bool = False) -> Trainer:
    optimizer = AdamW(0.9, 0.999, EPSILON, DECAY, decayed_names(parameters, []))
    parameters = dict(sorted(parameters.items()))
    return Trainer(
        model,
        seq2seq(),
        optimizer,
        parameters,
        seed=1,
        max_grad_norm=max_norm,
        is_packed=False,
        is_compiled=is_compiled,
    )


def with_adapter(folder: Path, saved: Path | None = None) -> LoadedModel:
    """A tiny T5 with an adapter on every linear layer whose B is not 0, which is saved where that is asked for."""
    loaded = load_t5(folder)
    spec = attach_adapter(loaded.model, LoraRecipe.model_validate({"rank": 4, "alpha": 8.0}), seed=3)
    rng = np.random.default_rng(7)
    moved = {
        name: mx.array(rng.normal(0, 0.1, value.shape).astype(np.float32))
        for name, value in adapter_parameters(loaded.model).items()
        if name.endswith("lora_b")
    }
    loaded.model.update(tree_unflatten(list(moved.items())))
    if saved is not None:
        save_adapter(saved, loaded.model, spec, loaded.info)
    return loaded


def our_losses(folder: Path, adapter: Path | None = None) -> tuple[list[float], FlatArrays]:
    """Five clipped steps, and the first gradients under PEFT's names."""
    loaded = with_adapter(folder, adapter)
    trainer = trainer_of(loaded.model, adapter_parameters(loaded.model), max_norm=MAX_NORM)
    losses: list[float] = []
    first: FlatArrays = {}
    for step in range(STEPS):
        gradients, result = trainer.compute(step_batches(), step)
        first = first or gradients
        trainer.apply(gradients, learning_rate=RATE, step=step)
        losses.append(result.loss)
    named: FlatArrays = {}
    for name, value in first.items():
        path, _, matrix = name.rpartition(".")
        named[f"{PREFIX}{path}.lora_{matrix[-1].upper()}.default.weight"] = value.T
    return losses, named
