"""Which linear layers get an adapter, and putting it on and off. Layers are in ``layers``.

Linear layers are found by walking the modules of the blocks; embeddings, the head, routers of experts and Gemma's
per-layer projections never get an adapter.
"""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_finetune.errors import ModelError
from mlx_finetune.model.adapters.layers import AdapterLayer, DoRALinear, LoRALinear, is_linear
from mlx_finetune.model.files.config import refuse_more_blocks
from mlx_finetune.model.inside.noise import derive_key
from mlx_finetune.model.upstream import QuantizedSwitchLinear, SwitchLinear
from mlx_finetune.recipe.schema import LoraRecipe

_ROUTERS = frozenset({"gate", "router", "shared_expert_gate"})


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """What an attached adapter is. ``scale`` multiplies A B; ``num_layers`` are the blocks from the last that have one.

    ``module_paths`` are the adapted layers in model order, ``target_modules`` the names they were asked for by.
    """

    rank: int
    alpha: float
    scale: float
    dropout: float
    use_dora: bool
    use_rslora: bool
    module_paths: tuple[str, ...]
    num_layers: int
    target_modules: tuple[str, ...]


def attach_adapter(model: nn.Module, lora: LoraRecipe, *, seed: int) -> AdapterSpec:
    """Wrap the target layers of ``model``, freeze everything else, and say what was attached.

    Weights depend on ``seed`` and the layer's path only. B is 0, so outputs stay those of the base, bit for bit.
    Raises ``ModelError`` where a target name matches nothing, or blocks are asked for that do not exist.
    """
    paths = find_target_modules(model, lora)
    attach_layers(model, paths, lora.rank, lora.scale, dropout=lora.dropout, use_dora=lora.use_dora, seed=seed)
    blocks = blocks_of(model)
    first = min(_block_number(blocks, path) for path in paths)
    return AdapterSpec(
        rank=lora.rank,
        alpha=lora.alpha,
        scale=lora.scale,
        dropout=lora.dropout,
        use_dora=lora.use_dora,
        use_rslora=lora.use_rslora,
        module_paths=paths,
        num_layers=len(blocks) - first,
        target_modules=tuple(sorted({path.rpartition(".")[2] for path in paths})),
    )


def attach_layers(
    model: nn.Module, paths: Sequence[str], rank: int, scale: float, *, dropout: float, use_dora: bool, seed: int
) -> None:
    """Wrap the layers at ``paths``; only adapter weights are trainable afterwards."""
    assert not adapter_layers(model), "the model has an adapter already"
    model.freeze()
    kind = DoRALinear if use_dora else LoRALinear
    for path in paths:
        linear = module_at(model, path)
        layer = kind(linear, rank=rank, scale=scale, dropout=dropout, key=derive_key(seed, "adapter", path))
        layer.train(linear.training)
        linear.freeze()
        _put(model, path, layer)
    mx.eval(list(adapter_parameters(model).values()))


def detach_adapter(model: nn.Module) -> None:
    """Put the very modules back that were there before; everything is frozen. Nothing happens without an adapter."""
    for path, layer in adapter_layers(model).items():
        _put(model, path, layer.linear)


def fix_norms(model: nn.Module) -> None:
    """Compute what DoRA divides by once, for answers: the adapter's weights must not change after it."""
    for layer in adapter_layers(model).values():
        if isinstance(layer, DoRALinear):
            layer.fix_norms()


def adapter_layers(model: nn.Module) -> dict[str, AdapterLayer]:
    """The adapted layers by path, in model order; empty without an adapter."""
    return {path: module for path, module in _modules(model) if isinstance(module, LoRALinear | DoRALinear)}


def adapter_parameters(model: nn.Module) -> dict[str, mx.array]:
    """The adapter's weights by name (``PATH.lora_a``, ``.lora_b``, ``.m``), sorted by name."""
    found = {
        f"{path}.{name}": layer[name]
        for path, layer in adapter_layers(model).items()
        for name in ("lora_a", "lora_b", "m")
        if name in layer
    }
    return dict(sorted(found.items()))


def full_parameters(model: nn.Module) -> dict[str, mx.array]:
    """Make every weight of ``model`` trainable, in float32, and return them by name, sorted: full fine-tuning.

    Half-precision weights are cast up, because an update of 1e-5 is lost in a bfloat16 weight of 1 (its spacing is
    8e-3); that doubles their memory. Raises ``ModelError`` for quantised weights, which have no gradient.
    """
    for path, module in _modules(model):
        if "scales" in module:
            raise ModelError(
                f"every weight is to be trained, but {path} is quantised",
                "add a [lora] section to the recipe, or choose a model that is not quantised",
            )
    model.unfreeze()
    model.set_dtype(mx.float32)
    return dict(sorted(cast(list[tuple[str, mx.array]], tree_flatten(model.trainable_parameters()))))


def find_target_modules(model: nn.Module, lora: LoraRecipe) -> tuple[str, ...]:
    """Paths such as ``model.layers.0.self_attn.q_proj`` of the layers that ``lora`` asks for, in model order.

    A name matches the last part of a path inside a block or a longer end of it (``attn.c_proj``). Raises
    ``ModelError`` that lists the names there are.
    """
    blocks = blocks_of(model)
    if lora.num_layers != "all":
        refuse_more_blocks(lora.num_layers, len(blocks))
    count = len(blocks) if lora.num_layers == "all" else lora.num_layers
    linears = block_linears(model)
    chosen = [path for path, inside in linears.items() if _is_target(inside, lora.target_modules)]
    _check_names(model, linears, lora.target_modules, chosen)
    chosen = [path for path in chosen if _block_number(blocks, path) >= len(blocks) - count]
    if not chosen:
        raise ModelError(
            f"the last {count} of {len(blocks)} blocks have none of the layers [lora] target_modules names",
            'use more blocks, or num_layers = "all"',
        )
    return tuple(chosen)


def block_linears(model: nn.Module) -> dict[str, str]:
    """Every linear layer an adapter may wrap: path in the model to path inside its block, in model order."""
    found: dict[str, str] = {}
    for prefix, block in blocks_of(model).items():
        wrapped: set[str] = set()
        for inside, module in _modules(block):
            parts = inside.split(".")
            if isinstance(module, LoRALinear | DoRALinear):
                wrapped.add(f"{inside}.linear")
            eligible = is_linear(module) or isinstance(module, LoRALinear | DoRALinear)
            if not eligible or inside in wrapped or _ROUTERS.intersection(parts) or parts[-1].startswith("per_layer_"):
                continue
            found[f"{prefix}.{inside}"] = inside
    return found


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """The transformer blocks by path, first to last. Raises ``ModelError`` where the model has none to be found."""
    layers: Sequence[nn.Module] = getattr(model, "layers", ())
    wanted = {id(block): number for number, block in enumerate(layers)}
    found = {wanted[id(module)]: (path, module) for path, module in _modules(model) if id(module) in wanted}
    if not found or len(found) != len(layers):
        raise ModelError("the blocks of this model cannot be found, so it cannot get an adapter")
    return dict(found[number] for number in sorted(found))


def module_at(model: nn.Module, path: str) -> Any:
    """The module at a dotted path."""
    module: Any = model
    for part in path.split("."):
        module = module[int(part)] if isinstance(module, list) else module[part]
    return module


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    holder = module_at(model, parent) if parent else model
    if isinstance(holder, list):
        holder[int(name)] = module
    else:
        setattr(holder, name, module)


def _modules(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """All modules with their paths, parents first; blocks in order, then by name."""
    found = cast(list[tuple[str, nn.Module]], module.named_modules())
    return sorted(found, key=lambda item: [int(part) if part.isdigit() else part for part in item[0].split(".")])


def _is_target(inside: str, targets: str | Sequence[str]) -> bool:
    if targets == "all-linear":
        return True
    if targets == "attention":
        return any("attn" in part or "attention" in part for part in inside.lower().split(".")[:-1])
    return any(inside == name or inside.endswith(f".{name}") for name in targets)


def _check_names(
    model: nn.Module, linears: Mapping[str, str], targets: str | Sequence[str], chosen: Sequence[str]
) -> None:
    """Refuse names that match nothing, and expert layers, which have no adapter here."""
    experts = {
        path.rpartition(".")[2]
        for path, module in _modules(model)
        if isinstance(module, SwitchLinear | QuantizedSwitchLinear)
    }
    wants_experts = targets == "all-linear" or (targets != "attention" and experts.intersection(targets))
    if experts and wants_experts:
        raise ModelError(
            f"this is a mixture of experts, and adapters for its expert layers ({', '.join(sorted(experts))}) "
            "do not exist yet",
            'write target_modules = "attention" under [lora]',
        )
    names = Counter(inside.rpartition(".")[2] for inside in linears.values())
    listed = ", ".join(f"{name} ({count})" for name, count in sorted(names.items()))
    if isinstance(targets, str):
        if not chosen:
            raise ModelError(
                f"[lora] target_modules = {targets!r} finds no layer in this model",
                f"its linear layers are: {listed}",
            )
        return
    for name in targets:
        if not any(_is_target(inside, [name]) for inside in linears.values()):
            near = difflib.get_close_matches(name, [*names, *linears.values()], 1)
            guess = f"did you mean {near[0]}? " if near else ""
            raise ModelError(
                f"[lora] target_modules: no linear layer of this model is called {name!r}",
                f"{guess}its linear layers are: {listed}",
            )


def _block_number(blocks: Mapping[str, nn.Module], path: str) -> int:
    return next(n for n, prefix in enumerate(blocks) if path.startswith(f"{prefix}."))
