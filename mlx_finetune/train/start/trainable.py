"""What a run trains: the adapter that is put on, or every weight, with their optimizer in a ``Trainer``."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_finetune.errors import RunError
from mlx_finetune.events import Notice
from mlx_finetune.hardware.planning.auto import Resolved
from mlx_finetune.model.adapters.files import load_adapter
from mlx_finetune.model.adapters.folder import adapter_folder
from mlx_finetune.model.adapters.lora import (
    AdapterSpec,
    adapter_layers,
    adapter_parameters,
    attach_adapter,
    full_parameters,
)
from mlx_finetune.model.cpu.blockwise import is_chain
from mlx_finetune.model.heads.files import read_head
from mlx_finetune.model.heads.score import HeadSpec, attach_head, first_weight, head_parameters
from mlx_finetune.model.inside.noise import add_neftune, checkpoint_blocks
from mlx_finetune.model.inside.parts import embedding
from mlx_finetune.model.inside.split import SplitModel
from mlx_finetune.model.load import LoadedModel, on_gpu
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.recipe.values import shown, toml_value
from mlx_finetune.train.objective import Objective, num_outputs
from mlx_finetune.train.optimizers.choose import choose_optimizer
from mlx_finetune.train.ranks import Ranks
from mlx_finetune.train.start.rows import Emit
from mlx_finetune.train.step import Trainer


def attach(base_model: LoadedModel, recipe: Recipe, base: Path, emit: Emit) -> AdapterSpec | None:
    """Make the right weights trainable, start from another run's adapter if asked, add noise."""
    model = base_model.model
    spec = None
    if recipe.lora is not None:
        spec = attach_adapter(model, recipe.lora, seed=recipe.seed)
        if recipe.adapter:
            spec = _start_from(model, spec, recipe, base, emit)
    else:
        full_parameters(model)
    if recipe.training.neftune_alpha:
        add_neftune(embedding(model), recipe.training.neftune_alpha)
    return spec


def split_with_scores(
    model: nn.Module, objective: Objective, labels: Sequence[str], recipe: Recipe, base: Path, emit: Emit
) -> SplitModel:
    """``model`` in parts, with the score head that the objective needs; ``labels`` are those of the training rows.

    The head is that of the adapter training starts from, if it has the same outputs, else a fresh one. Raises
    ``ModelError`` for a model that cannot have one.
    """
    split, count = SplitModel(model), num_outputs(objective, labels)
    if not count:
        return split
    spec = HeadSpec(objective.name, count, tuple(labels))
    found = read_head(adapter_folder(recipe.adapter, base)) if recipe.adapter else None
    if found is not None and (found[0].labels, found[0].num_outputs) == (spec.labels, spec.num_outputs):
        emit(Notice("info", f"starting from the score head of {recipe.adapter}"))
        attach_head(split, spec, found[1])
    else:
        attach_head(split, spec, first_weight(spec, split.hidden_size, recipe.seed))
    return split


def goes_block_by_block(split: SplitModel, *, recomputes: bool) -> bool:
    """True where the trainer takes block after block, as it does on a CPU (``model.cpu.blockwise``); else
    recomputation, where it is wanted, is put into the blocks. Models whose blocks are no chain have one graph on a CPU
    too."""
    if not on_gpu() and is_chain(split):
        return True
    if recomputes:
        checkpoint_blocks(split.model)
    return False


def _start_from(model: nn.Module, spec: AdapterSpec, recipe: Recipe, base: Path, emit: Emit) -> AdapterSpec:
    """Put the weights of another run's adapter into ``model``; it must have the shape that [lora] asks for."""
    folder = adapter_folder(recipe.adapter, base)
    loaded = load_adapter(model, folder)
    if different := _differences(spec, loaded):
        told = "; ".join(
            f"lora.{key} is {shown(ours)}, its own is {shown(its)}" for key, (ours, its) in different.items()
        )
        wanted = ", ".join(f"{key} = {toml_value(its)}" for key, (_, its) in different.items())
        raise RunError(f"the adapter in {folder} is not what [lora] describes: {told}", f"write in [lora]: {wanted}")
    if spec.module_paths != loaded.module_paths:
        raise RunError(
            f"the adapter in {folder} is not what [lora] describes: it is in {len(loaded.module_paths)} other layers",
            "copy the [lora] section of the run it comes from",
        )
    for layer in adapter_layers(model).values():
        layer.dropout = spec.dropout
    emit(Notice("info", f"starting from the adapter in {folder}"))
    return spec


def _differences(ours: AdapterSpec, its: AdapterSpec) -> Mapping[str, tuple[object, object]]:
    """Keys of [lora] by which an adapter has another shape, with what is asked for and what the adapter needs.

    What counts of alpha is the factor that it makes with the rank: other keys that make the same one differ in nothing.
    """
    keys = ["use_dora"]
    if (ours.rank, ours.scale) != (its.rank, its.scale):
        keys = ["rank", "alpha", "use_rslora", *keys]
    if ours.module_paths != its.module_paths:
        keys = [*keys, "target_modules", "num_layers"]
    pairs = {key: (_as_written(ours, key), _as_written(its, key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _as_written(spec: AdapterSpec, key: str) -> object:
    """The value of a key of [lora] that makes such an adapter."""
    value = getattr(spec, key)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def build_trainer(
    split: SplitModel, objective: Objective, resolved: Resolved, *, recomputes: bool, ranks: Ranks
) -> Trainer:
    """The trainable parameters with their optimizer; embeddings, norms and biases are not decayed."""
    recipe, model = resolved.recipe, split.model
    training = recipe.training
    parameters = (
        adapter_parameters(model) | head_parameters(model)
        if recipe.lora is not None
        else dict(tree_flatten(model.trainable_parameters()))
    )
    parameters = {name: parameters[name] for name in sorted(parameters)}
    undecayed = [f"{path}.weight" for path, module in model.named_modules() if isinstance(module, nn.Embedding)]
    recomputes = recomputes or bool(training.gradient_checkpointing)
    return Trainer(
        model,
        objective,
        choose_optimizer(training, model, parameters, undecayed),
        parameters,
        seed=recipe.seed,
        max_grad_norm=training.max_grad_norm,
        is_packed=resolved.packed_length is not None,
        is_compiled=on_gpu(),
        is_blockwise=goes_block_by_block(split, recomputes=recomputes),
        split=split,
        keeps_products=not recomputes,
        in_halves=not isinstance(recipe.hardware.num_threads, int),
        reduce=ranks.reduce if ranks.size > 1 else None,
    )
