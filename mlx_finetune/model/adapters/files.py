"""Adapters on disk: written for PEFT and mlx-lm at once, read from either.

``adapter_model.safetensors`` has PEFT's layout, ``adapters.safetensors`` mlx-lm's, and one ``adapter_config.json``
serves both readers. The same weights give the same bytes. What cannot be reproduced exactly is refused in one
sentence, and a file is checked for names, shapes and finite numbers before the model is touched.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from safetensors.numpy import save

from mlx_finetune import durable, rundir
from mlx_finetune.errors import ModelError
from mlx_finetune.model.adapters import peft_names
from mlx_finetune.model.adapters.layers import linear_shape
from mlx_finetune.model.adapters.lora import (
    AdapterSpec,
    adapter_layers,
    adapter_parameters,
    attach_layers,
    block_linears,
    blocks_of,
    detach_adapter,
    module_at,
)
from mlx_finetune.model.files.safetensors_check import check_safetensors, check_stamps, file_stamps
from mlx_finetune.model.heads.files import PEFT_KEY, head_file, peft_fields
from mlx_finetune.model.heads.score import find_head
from mlx_finetune.model.load import ModelInfo
from mlx_finetune.model.sources.catalogue import find_entry

_MAX_CONFIG_BYTES = 10**6
_DTYPES = frozenset({"F32", "F16", "BF16"})
_PEFT_PARTS = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector"}


@dataclass(frozen=True, slots=True)
class _Stored:
    """An adapter as read: our paths to its parts (``lora_a`` (in, r), ``lora_b`` (r, out), ``m`` (out,))."""

    rank: int
    alpha: float
    dropout: float
    use_dora: bool
    use_rslora: bool
    scales: Mapping[str, float]
    weights: Mapping[str, Mapping[str, mx.array]]


def adapter_files(model: nn.Module, spec: AdapterSpec, info: ModelInfo) -> dict[str, bytes]:
    """File name -> content of the attached adapter: weights in both layouts, the configuration, and a score head.

    Raises ``ModelError`` where a number is not finite.
    """
    ours = {name: np.array(value.astype(mx.float32)) for name, value in adapter_parameters(model).items()}
    broken = [name for name, value in ours.items() if not np.isfinite(value).all()]
    if broken:
        raise ModelError(f"the adapter is not saved: {len(broken)} of its tensors have numbers that are not finite")
    theirs: dict[str, np.ndarray] = {}
    for name, value in ours.items():
        path, _, part = name.rpartition(".")
        key = f"{peft_names.PREFIX}{peft_names.to_theirs(path, info.model_type)}.{_PEFT_PARTS[part]}"
        theirs[key] = value if part == "m" else np.ascontiguousarray(value.T)
    head = find_head(model)
    if head is not None:
        theirs[PEFT_KEY] = np.array(head.weight)
    own = {} if head is None else {rundir.HEAD_WEIGHTS: head_file(head)}
    return own | {
        rundir.PEFT_WEIGHTS: save(dict(sorted(theirs.items())), {"format": "pt"}),
        rundir.MLX_WEIGHTS: save(dict(sorted(ours.items())), {"format": "mlx"}),
        rundir.ADAPTER_CONFIG: durable.encode_json(adapter_config(model, spec, info)),
    }


def adapter_config(model: nn.Module, spec: AdapterSpec, info: ModelInfo) -> dict[str, object]:
    """The one configuration that PEFT and mlx-lm both read."""
    linears = block_linears(model)
    prefixes = list(blocks_of(model))
    last = set(prefixes[len(prefixes) - spec.num_layers :])
    inside = {linears[path] for path in spec.module_paths}
    # A whole set of names in the last blocks is what both readers can say briefly; otherwise every path is named. So it
    # is where only some blocks of two stacks have one: both count from 0.
    is_one_stack = len({prefix.rpartition(".")[0] for prefix in prefixes}) == 1
    regular = (is_one_stack or len(last) == len(prefixes)) and set(spec.module_paths) == {
        path for path, name in linears.items() if name in inside and path.removesuffix(f".{name}") in last
    }
    config: dict[str, object] = {
        "peft_type": "LORA",
        "task_type": "SEQ_2_SEQ_LM" if info.model_type == "t5" else "CAUSAL_LM",
        "base_model_name_or_path": entry.hub_id if (entry := find_entry(info.name)) else info.name,  # PEFT asks the hub
        "inference_mode": True,
        "r": spec.rank,
        "lora_alpha": int(spec.alpha) if spec.alpha == int(spec.alpha) else spec.alpha,
        "lora_dropout": spec.dropout,
        "bias": "none",
        "fan_in_fan_out": info.model_type == "gpt2",
        "use_rslora": spec.use_rslora,
        "use_dora": spec.use_dora,
        "fine_tune_type": "dora" if spec.use_dora else "lora",
    }
    if regular:
        config["target_modules"] = _short_names(inside, set(linears.values()))
        config["num_layers"] = spec.num_layers
        if len(last) < len(prefixes):
            config["layers_to_transform"] = list(range(len(prefixes) - len(last), len(prefixes)))
            config["layers_pattern"] = peft_names.block_list_name(prefixes[0], info.model_type)
    else:
        config["target_modules"] = sorted(peft_names.to_theirs(path, info.model_type) for path in spec.module_paths)
        config["num_layers"] = len(prefixes)
    keys = sorted(inside) if regular else sorted(spec.module_paths)
    head = find_head(model)
    if head is not None:
        config |= peft_fields(head.spec)
    config["lora_parameters"] = {"rank": spec.rank, "scale": spec.scale, "dropout": spec.dropout, "keys": keys}
    return config


def load_adapter(model: nn.Module, folder: Path) -> AdapterSpec:
    """Attach the adapter in ``folder``, ours, PEFT's or mlx-lm's, in the place of one that is attached.

    Only the adapter is trainable afterwards. Where modules have ranks or scales of their own, A and B are filled up
    with zeros to the largest rank and the scale goes into B, so that one rank and one scale describe it. Raises
    ``ModelError`` for what is missing, damaged, unsupported or made for another base; the model is untouched then.
    """
    names = (rundir.ADAPTER_CONFIG, rundir.PEFT_WEIGHTS, rundir.MLX_WEIGHTS)
    stamps = file_stamps([folder / name for name in names if (folder / name).is_file()])
    fields = _read_config(folder)
    order = tuple(block_linears(model))
    model_type = str(getattr(model, "model_type", ""))
    if "peft_type" in fields and ((folder / rundir.PEFT_WEIGHTS).is_file() or "fine_tune_type" not in fields):
        stored = _read_peft(folder, fields, model, model_type)
    else:
        stored = _read_mlx(folder, fields, model)
    _check_shapes(model, stored, folder)
    _check_finite(stored, folder)
    check_stamps(stamps)
    detach_adapter(model)
    rank = max(parts["lora_a"].shape[1] for parts in stored.weights.values())
    scales = set(stored.scales.values())
    scale = scales.pop() if len(scales) == 1 else max(stored.scales.values())
    uniform = not scales and rank == stored.rank
    paths = tuple(path for path in order if path in stored.weights)
    attach_layers(model, paths, rank, scale, dropout=stored.dropout, use_dora=stored.use_dora, seed=0)
    for path, layer in adapter_layers(model).items():
        parts = stored.weights[path]
        missing = rank - parts["lora_a"].shape[1]
        layer.lora_a = mx.pad(parts["lora_a"], [(0, 0), (0, missing)])
        layer.lora_b = mx.pad(parts["lora_b"], [(0, missing), (0, 0)]) * (stored.scales[path] / scale)
        if stored.use_dora:
            layer.m = parts["m"]
    mx.eval(list(adapter_parameters(model).values()))
    prefixes = list(blocks_of(model))
    first = min(n for n, prefix in enumerate(prefixes) if any(path.startswith(f"{prefix}.") for path in paths))
    return AdapterSpec(
        rank=rank,
        alpha=stored.alpha if uniform else scale * rank,
        scale=scale,
        dropout=stored.dropout,
        use_dora=stored.use_dora,
        use_rslora=stored.use_rslora and uniform,
        module_paths=paths,
        num_layers=len(prefixes) - first,
        target_modules=tuple(sorted({path.rpartition(".")[2] for path in paths})),
    )


def _short_names(inside: set[str], every: set[str]) -> list[str]:
    """The last part of each path inside a block, or the whole path where that part has more than one meaning."""
    names: set[str] = set()
    for path in inside:
        last = path.rpartition(".")[2]
        same = {other for other in every if other.rpartition(".")[2] == last}
        names.add(last if same <= inside else path)
    return sorted(names)


def _read_config(folder: Path) -> Mapping[str, object]:
    path = folder / rundir.ADAPTER_CONFIG
    if not path.is_file():
        raise ModelError(f"{folder} is not an adapter: it has no {rundir.ADAPTER_CONFIG}")
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise ModelError(f"{path} is larger than 1 MB and cannot be an adapter's configuration")
    try:
        fields = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ModelError(f"{path} holds no JSON object")
    return cast(Mapping[str, object], fields)


def _read_tensors(folder: Path, name: str) -> dict[str, mx.array]:
    path = folder / name
    if not path.is_file():
        pickled = [other.name for other in sorted(folder.glob("*.bin"))] + [p.name for p in sorted(folder.glob("*.pt"))]
        if pickled:
            raise ModelError(
                f"{folder} has its weights in {pickled[0]}, a format that can run code when it is opened",
                "convert it to safetensors where it was made",
            )
        raise ModelError(f"{folder} has no {name}, so the adapter has no weights")
    others = {info.dtype for info in check_safetensors(path).values()} - _DTYPES
    if others:
        raise ModelError(f"{path} has numbers of type {min(others)}; an adapter has {', '.join(sorted(_DTYPES))}")
    try:
        return cast(dict[str, mx.array], mx.load(str(path)))  # nothing is read before the names and shapes are right
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {' '.join(str(error).split())[:300]}") from error


def _read_peft(folder: Path, fields: Mapping[str, object], model: nn.Module, model_type: str) -> _Stored:
    config = peft_names.parse_peft_config(fields)
    names = {spelling: part for part, spelling in _PEFT_PARTS.items()} | {"lora_magnitude_vector.weight": "m"}
    weights: dict[str, dict[str, mx.array]] = {}
    theirs: dict[str, str] = {}
    for key, value in _read_tensors(folder, rundir.PEFT_WEIGHTS).items():
        if key == PEFT_KEY and config.has_score:
            continue  # ``model.heads.files`` reads it
        spelling = next((ending for ending in names if key.endswith(f".{ending}")), None)
        if spelling is None:
            raise ModelError(
                f"{folder / rundir.PEFT_WEIGHTS} holds {key}, a weight of the base; only LoRA weights can be read"
            )
        path = key.removesuffix(f".{spelling}").removeprefix(peft_names.PREFIX)
        ours = peft_names.to_ours(path, model_type)
        theirs[ours] = path
        part = names[spelling]
        weights.setdefault(ours, {})[part] = (value if part == "m" else value.T).astype(mx.float32)
    _check_known(model, weights, folder)
    if config.target_modules is not None:
        linears = block_linears(model)
        spelled = {path: theirs.get(path, peft_names.to_theirs(path, model_type)) for path in linears}
        _check_set(weights, [path for path, name in spelled.items() if config.adapts(name)], folder)
    for path, parts in weights.items():
        rank = config.rank_of(theirs[path])
        if _rank(parts) not in (None, rank):
            raise ModelError(
                f"{folder}: the configuration says rank {rank} for {path}, its weights have {_rank(parts)}"
            )
    scales = {path: config.scale_of(theirs[path]) for path in weights}
    return _Stored(config.rank, config.alpha, config.dropout, config.use_dora, config.use_rslora, scales, weights)


def _read_mlx(folder: Path, fields: Mapping[str, object], model: nn.Module) -> _Stored:
    kind = fields.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise ModelError(f"{folder} was made by mlx-lm with fine_tune_type = {kind!r}; only lora and dora can be read")
    parameters = fields.get("lora_parameters")
    if not isinstance(parameters, dict):
        raise ModelError(f"{folder / rundir.ADAPTER_CONFIG} names neither peft_type nor lora_parameters")
    parameters = cast(dict[str, object], parameters)
    rank, scale = peft_names.check_rank(parameters.get("rank")), peft_names.check_scale(parameters.get("scale"))
    dropout = min(max(peft_names.check_number(parameters.get("dropout", 0.0), "dropout"), 0.0), 0.99)
    weights: dict[str, dict[str, mx.array]] = {}
    for key, value in _read_tensors(folder, rundir.MLX_WEIGHTS).items():
        path, _, part = key.rpartition(".")
        if part not in _PEFT_PARTS:
            raise ModelError(f"{folder / rundir.MLX_WEIGHTS} holds {key}; only LoRA weights can be read")
        weights.setdefault(path, {})[part] = value.astype(mx.float32)
    _check_known(model, weights, folder)
    _check_set(weights, _mlx_paths(model, fields.get("num_layers"), parameters.get("keys"), weights), folder)
    for path, parts in weights.items():
        if _rank(parts) not in (None, rank):
            raise ModelError(f"{folder}: the configuration says rank {rank}, the weights of {path} have {_rank(parts)}")
    return _Stored(rank, scale * rank, dropout, kind == "dora", False, dict.fromkeys(weights, scale), weights)


def _rank(parts: Mapping[str, mx.array]) -> int | None:
    """Columns of A; None where there is no A or it is no matrix."""
    a = parts.get("lora_a")
    return a.shape[1] if a is not None and a.ndim == 2 else None


def _mlx_paths(model: nn.Module, num_layers: object, keys: object, weights: Mapping[str, object]) -> list[str]:
    """The layers mlx-lm would adapt; without ``keys`` the names that occur in the weights, in each of those blocks."""
    linears = block_linears(model)
    prefixes = list(blocks_of(model))
    if not isinstance(num_layers, int) or num_layers <= 0 or num_layers > len(prefixes):
        num_layers = len(prefixes)  # mlx-lm writes -1 for all of them
    last = prefixes[len(prefixes) - num_layers :]
    listed = cast(list[object], keys) if isinstance(keys, list) else [linears[path] for path in weights]
    wanted = {name for name in listed if isinstance(name, str)}
    return [
        path
        for path, inside in linears.items()
        if path in wanted or (inside in wanted and path.removesuffix(f".{inside}") in last)
    ]


def _check_known(model: nn.Module, paths: Mapping[str, object], folder: Path) -> None:
    linears = block_linears(model)
    unknown = sorted(path for path in paths if path not in linears)
    if not paths:
        raise ModelError(f"{folder} holds no adapter weights")
    if unknown:
        raise ModelError(
            f"{folder} adapts {unknown[0]}"
            + (f" and {len(unknown) - 1} more layers" if len(unknown) > 1 else "")
            + ", which are not linear layers in the blocks of this model",
            "the adapter was made for another base model, or for its embeddings or head",
        )


def _check_set(weights: Mapping[str, object], expected: Sequence[str], folder: Path) -> None:
    missing = [path for path in expected if path not in weights]
    if missing:
        raise ModelError(
            f"{folder} lacks the weights of {len(missing)} of {len(expected)} adapted layers, such as {missing[0]}",
            "the file is not whole; make or fetch the adapter again",
        )
    extra = [path for path in weights if path not in expected]
    if extra:
        raise ModelError(f"{folder} has weights for {extra[0]}, which its configuration does not adapt")


def _check_finite(stored: _Stored, folder: Path) -> None:
    """Read every tensor and refuse NaN and infinity, by name."""
    parts = {f"{path}.{part}": value for path, parts in stored.weights.items() for part, value in parts.items()}
    try:
        finite = cast(list[bool], mx.stack([mx.all(mx.isfinite(value)) for value in parts.values()]).tolist())
    except RuntimeError as error:
        raise ModelError(f"{folder}: the weights cannot be read: {' '.join(str(error).split())[:300]}") from error
    broken = [name for name, is_finite in zip(parts, finite, strict=True) if not is_finite]
    if broken:
        more = f" and {len(broken) - 1} more tensors have" if len(broken) > 1 else " has"
        raise ModelError(f"{folder}: {broken[0]}{more} numbers that are not finite", "make or fetch the adapter again")


def _check_shapes(model: nn.Module, stored: _Stored, folder: Path) -> None:
    for path, parts in stored.weights.items():
        expected = {"lora_a", "lora_b", "m"} if stored.use_dora else {"lora_a", "lora_b"}
        if set(parts) != expected:
            names = ", ".join(sorted(expected.symmetric_difference(parts)))
            raise ModelError(f"{folder}: the weights of {path} do not go with the configuration ({names})")
        module = module_at(model, path)
        out_dims, in_dims = linear_shape(getattr(module, "linear", module))
        rank = _rank(parts) or stored.rank
        shapes = {"lora_a": (in_dims, rank), "lora_b": (rank, out_dims), "m": (out_dims,)}
        for part, value in sorted(parts.items()):
            if tuple(value.shape) != shapes[part]:
                raise ModelError(
                    f"{folder}: {part} of {path} has shape {tuple(value.shape)}, the model needs {shapes[part]}",
                    "the adapter was made for another base model",
                )
