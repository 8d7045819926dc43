"""A checked model folder becomes a frozen model in memory.

No code of the folder is ever run: the architecture is a module of mlx-lm, ``model_file`` is refused, ``auto_map`` is
not looked at. On the CPU a quantised base is dequantised, because MLX has no fast path there for packed weights.
SmolLM2-135M (4-bit, 98 MB) to fp32 on 2 CPU cores: 1.5 s after imports; importing mlx-lm costs as much again.
"""

import re
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from mlx_finetune.errors import ModelError
from mlx_finetune.events import Notice
from mlx_finetune.model.files import packed, repairs
from mlx_finetune.model.files.config import context_length, first_number, read_config
from mlx_finetune.model.files.safetensors_check import check_stamps, check_weight_files, file_stamps
from mlx_finetune.model.inside.parts import flat_arrays
from mlx_finetune.model.scratch import architecture as own_architecture
from mlx_finetune.model.seq2seq import t5
from mlx_finetune.model.sources.fetch import LocalModel
from mlx_finetune.model.upstream import find_architecture, packing_of
from mlx_finetune.recipe.scratch import OWN_TYPE

_AGAIN = "fetch or copy the model again"
FINITE_AT_ONCE = 2**22  # numbers whose finiteness is looked at in one go
#: What mlx-lm's architectures and mlx raise about a config.json or weights that are not what they expect.
_UNFITTING = (
    TypeError,
    ValueError,
    KeyError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    IndexError,
    RuntimeError,
    MemoryError,
    NotImplementedError,
)
_DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}
#: ``model_type`` -> our own architecture, where mlx-lm has none.
_OWN: Mapping[str, ModuleType] = {"t5": t5, OWN_TYPE: own_architecture}


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is known about a loaded base. ``stored_bits`` is None for a model that is not quantised on disk."""

    name: str
    folder: Path
    model_type: str
    num_parameters: int
    num_layers: int
    hidden_size: int
    vocab_size: int
    context_length: int | None
    stored_bits: int | None
    sha256: str
    revision: str | None
    license: str | None


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A frozen model in evaluation mode, and what a person should know about how it was loaded."""

    model: nn.Module
    info: ModelInfo
    notices: tuple[Notice, ...]


def on_gpu() -> bool:
    """True where MLX computes on a GPU."""
    return mx.default_device().type == mx.DeviceType.gpu


def device_name() -> str:
    """What MLX computes on, for instance ``"Apple M3 Max GPU"`` or ``"CPU"``."""
    if not on_gpu():
        return "CPU"
    return f"{mx.device_info().get('device_name', 'unknown')} GPU"


def load_model(
    local: LocalModel, *, quantize: int | None, compute_dtype: str, on_gpu: bool, dequantize: bool = False
) -> LoadedModel:
    """Load ``local``, frozen, with every number finite.

    ``quantize`` packs an unquantised base to that many bits (affine, group 64, every linear layer and embedding that
    ``mlx_lm.convert -q`` would pack, from the stored type). Off the GPU the packed numbers are written out again in
    ``compute_dtype``, so training sees what it would see on the GPU. ``dequantize`` does the same on a GPU, for full
    fine-tuning.
    Raises ``ModelError`` for everything that is wrong with the folder.
    """
    files = check_weight_files(local.folder)
    stamps = file_stamps([*files, local.folder / "config.json"])
    config = read_config(local.folder)
    if compute_dtype == "float16" and config.get("model_type") == "t5":
        raise ModelError(
            f"{local.name} is a T5, whose activations are larger than float16 can hold",
            'write compute_dtype = "bfloat16" under [hardware], or "float32"',
        )
    model, config, changes = _build(local.folder, config)
    num_parameters = sum(array.size for array in flat_arrays(model).values())
    weights = _read_weights(local.folder, files, model, config)
    activation = repairs.repair_activation(model, config)
    repairs.repair_attention(model, config)
    notices = [Notice("info", f"{local.name}: {change}") for change in changes]
    if activation == "exact gelu":
        notices.append(Notice("info", f"{local.name}: exact gelu, as its config.json says"))
    keep_packed = on_gpu and not dequantize
    dtype = _DTYPES[compute_dtype]
    with _weights_errors(local.folder):
        widths = _stored_widths(local.folder, model, weights)
        stored_bits = packed.commonest_bits(model, widths)
        if widths:
            notices += _about_stored(local.name, stored_bits, quantize, keep_packed, compute_dtype)
        elif quantize is not None:
            widths = packed.choose_widths(model, quantize)
            notices += _about_quantize(local.name, model, widths, quantize, keep_packed, compute_dtype)
            weights = packed.pack(weights, widths, source=local.folder)
        if widths:
            weights = packed.cast_or_unpack(weights, widths, dtype, keep_packed=keep_packed)
            if keep_packed:
                packed.make_packed_modules(model, widths)
        _put_weights(local.folder, model, weights, dtype)
    check_stamps(stamps)
    _try_model(local.folder, model)
    del weights
    mx.clear_cache()  # packed and half-wide tensors, in sizes that nothing asks for again
    return LoadedModel(model, _describe(local, config, model, num_parameters, stored_bits), tuple(notices))


def _build(folder: Path, config: dict[str, object]) -> tuple[nn.Module, dict[str, object], tuple[str, ...]]:
    """The architecture with random weights that are never computed, and the repaired config."""
    if "model_file" in config and config.get("model_type") != OWN_TYPE:
        raise ModelError(
            f"{folder} brings its own code ({config['model_file']!r}), which is never run",
            "use a model whose architecture mlx-lm knows",
        )
    architecture = _architecture(folder, config)
    names = frozenset(architecture.ModelArgs.__dataclass_fields__)
    repaired = repairs.repair_config(config, names)
    try:
        model = architecture.Model(architecture.ModelArgs.from_dict(repaired.config))
    except _UNFITTING as error:
        raise ModelError(
            f"{folder / 'config.json'} does not describe a {config['model_type']!r} model: {_reason(error)}", _AGAIN
        ) from error
    return model, repaired.config, repaired.changes


def _architecture(folder: Path, config: Mapping[str, object]) -> Any:
    """The module of mlx-lm for ``model_type``; helper modules of mlx-lm are not architectures."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", kind):
        raise ModelError(f"{folder / 'config.json'}: `model_type` = {kind!r} is not the name of an architecture")
    refusal = ModelError(
        f"{folder}: the architecture {kind!r} is not supported",
        "supported are T5 and the decoder-only models of mlx-lm: llama, mistral, gemma, qwen2, qwen3, gpt2, gpt_neox, …"
        + ("; the code in this folder is never run" if "auto_map" in config else ""),
    )
    module = _OWN.get(kind) or (None if "." in kind else find_architecture(kind))
    if module is None or not isinstance(getattr(module, "Model", None), type) or not hasattr(module, "ModelArgs"):
        raise refusal
    return module


def _read_weights(
    folder: Path, files: tuple[Path, ...], model: nn.Module, config: Mapping[str, object]
) -> dict[str, mx.array]:
    """All tensors under the model's names, not yet computed."""
    weights: dict[str, mx.array] = {}
    with _weights_errors(folder):
        for file in files:
            weights |= cast("dict[str, mx.array]", mx.load(str(file)))
        weights = repairs.repair_weights(config, weights)
        sanitize = getattr(model, "sanitize", None)
        return weights if sanitize is None else cast("dict[str, mx.array]", sanitize(weights))


@contextmanager
def _weights_errors(folder: Path) -> Generator[None]:
    """What mlx and mlx-lm raise about weights of an unexpected name, shape or type, as one sentence."""
    try:
        yield
    except _UNFITTING as error:
        raise ModelError(f"{folder}: the weights do not fit the architecture: {_reason(error)}", _AGAIN) from error


def _reason(error: Exception) -> str:
    """What an error of a library says, on one line."""
    said = " ".join(str(error).split()).replace("ModelArgs.__init__() ", "")
    return said[:300] or type(error).__name__


def _stored_widths(folder: Path, model: nn.Module, weights: Mapping[str, mx.array]) -> packed.Widths:
    """Packing of every module that is stored packed, found from the shapes; other libraries' packings are refused."""
    config = read_config(folder)
    foreign = config.get("quantization_config")
    if "quantization" not in config and isinstance(foreign, dict):
        method = foreign.get("quant_method", "an unknown method")
        raise ModelError(
            f"{folder} is quantised with {method}, which is not supported",
            'use the unquantised model and "quantize = 4"',
        )
    widths: dict[str, packed.Width] = {}
    for path, module in model.named_modules():
        if f"{path}.scales" in weights and "weight" in module:
            try:
                widths[path] = packed.Width(*packing_of(path, module, weights))
            except _UNFITTING as error:
                raise ModelError(f"{folder}: the packed weights of {path} do not fit ({_reason(error)})") from error
    return widths


def _about_stored(
    name: str, stored_bits: int | None, quantize: int | None, keep_packed: bool, compute_dtype: str
) -> Iterator[Notice]:
    if quantize is not None and quantize != stored_bits:
        yield Notice(
            "warning",
            f"{name} is stored with {stored_bits} bits; quantize = {quantize} changes nothing",
            f"write quantize = {stored_bits}, or name the unquantised model",
        )
    if not keep_packed:
        yield Notice(
            "info", f"{name}: {stored_bits}-bit weights dequantised to {compute_dtype} (same numbers, more memory)"
        )


def _about_quantize(
    name: str, model: nn.Module, widths: packed.Widths, bits: int, keep_packed: bool, compute_dtype: str
) -> Iterator[Notice]:
    left = [path for path, module in model.named_modules() if hasattr(module, "to_quantized") and path not in widths]
    if left:
        yield Notice("info", f"{name}: {len(left)} layers stay unquantised, the first is {left[0]}")
    if not keep_packed:
        yield Notice(
            "info", f"{name}: quantised to {bits} bits and dequantised to {compute_dtype} (same numbers, more memory)"
        )


def _put_weights(folder: Path, model: nn.Module, weights: Mapping[str, mx.array], dtype: mx.Dtype) -> None:
    """Load strictly, cast, freeze, compute; every floating number must be finite."""
    expected = flat_arrays(model)
    try:
        model.load_weights(list(weights.items()), strict=True)
    except ValueError as error:
        raise ModelError(f"{folder}: weights and config.json do not belong together: {_reason(error)}") from error
    for name, array in flat_arrays(model).items():
        if mx.issubdtype(expected[name].dtype, mx.floating) != mx.issubdtype(array.dtype, mx.floating):
            raise ModelError(f"{folder}: {name} has numbers of type {array.dtype}, which cannot be computed with")
    keep = getattr(model, "cast_predicate", None)
    cast_all = {
        name: array.astype(dtype) if mx.issubdtype(array.dtype, mx.floating) and (keep is None or keep(name)) else array
        for name, array in flat_arrays(model).items()
    }
    model.load_weights(list(cast_all.items()), strict=True)
    model.freeze()
    model.eval()
    for array in sorted(flat_arrays(model).values(), key=lambda array: -array.size):
        mx.eval(array)  # one by one, the largest first: all at once, many are there as stored and as cast
    floating = {name: array for name, array in flat_arrays(model).items() if mx.issubdtype(array.dtype, mx.floating)}
    bad = next((name for name, array in floating.items() if not _is_finite(array)), None)
    if bad is not None:
        raise ModelError(f"{folder}: {bad} holds NaN or infinity", _AGAIN)


def _is_finite(array: mx.array) -> bool:
    """True where every number is; a few rows at a time, because what is compared takes 5 bytes a number: at once, the
    embedding of SmolLM2 took more memory here (140 MB) than a small training does."""
    flat = array.reshape(-1)
    starts = range(0, flat.size, FINITE_AT_ONCE)
    return all(bool(mx.all(mx.isfinite(flat[at : at + FINITE_AT_ONCE])).item()) for at in starts)


def _try_model(folder: Path, model: nn.Module) -> None:
    """Compute two tokens: an architecture accepts much in a config.json that it cannot compute with."""
    try:
        logits = cast("Any", model)(mx.zeros((1, 2), mx.int32))
        has_nan = mx.any(mx.isnan(logits)).item()
    except _UNFITTING as error:
        raise ModelError(
            f"{folder / 'config.json'} describes a model that cannot be computed: {_reason(error)}", _AGAIN
        ) from error
    if has_nan:
        raise ModelError(f"{folder}: the model answers NaN, although its weights are finite; see config.json", _AGAIN)


def _describe(
    local: LocalModel, config: Mapping[str, object], model: nn.Module, num_parameters: int, stored_bits: int | None
) -> ModelInfo:
    return ModelInfo(
        name=local.name,
        folder=local.folder,
        model_type=str(config["model_type"]),
        num_parameters=num_parameters,
        num_layers=len(cast("list[nn.Module]", getattr(model, "layers", []))),
        hidden_size=first_number(config, "hidden_size", "n_embd", "d_model") or 0,
        vocab_size=first_number(config, "vocab_size") or 0,
        context_length=context_length(config),
        stored_bits=stored_bits,
        sha256=local.sha256,
        revision=local.revision,
        license=local.license,
    )
