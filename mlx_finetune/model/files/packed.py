"""Quantised weights as MLX stores them: which modules are packed, packing, and writing the numbers out again.

Affine: groups of 32, 64 or 128 numbers along the input share a scale and a bias, ``w = scale q + bias`` with q an
unsigned integer of ``bits`` bits. "QLoRA" here is this layout plus LoRA; it is not NF4.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import mlx.core as mx
import mlx.nn as nn

from mlx_finetune.errors import ModelError

GROUP_SIZE = 64


@dataclass(frozen=True, slots=True)
class Width:
    """How one module is packed. ``mode`` is MLX's name: affine, mxfp4, mxfp8, nvfp4."""

    bits: int
    group_size: int
    mode: str = "affine"


Widths = Mapping[str, Width]


def choose_widths(model: nn.Module, bits: int) -> Widths:
    """Every module that ``mlx_lm.convert -q`` packs: linear layers and embeddings whose width is a multiple of 64.

    The head and the embedding are packed like the rest; architectures that keep some layers wider (routers) say so in
    their ``quant_predicate``, which is followed.
    """
    predicate = getattr(model, "quant_predicate", None)
    widths: dict[str, Width] = {}
    for path, module in model.named_modules():
        if not hasattr(module, "to_quantized") or cast("mx.array", module["weight"]).shape[-1] % GROUP_SIZE:
            continue
        wanted = True if predicate is None else predicate(path, module)
        if isinstance(wanted, dict):
            widths[path] = Width(wanted["bits"], wanted["group_size"], wanted.get("mode", "affine"))
        elif wanted:
            widths[path] = Width(bits, GROUP_SIZE)
    return widths


def commonest_bits(model: nn.Module, widths: Widths) -> int | None:
    """Bits of most of the packed modules (the embedding may differ), None where nothing is packed."""
    counts = Counter(width.bits for width in widths.values())
    return counts.most_common(1)[0][0] if counts else None


def pack(weights: Mapping[str, mx.array], widths: Widths, *, source: object) -> dict[str, mx.array]:
    """Weights with ``scales`` and ``biases`` for each module in ``widths``, computed in their stored type.

    One module at a time, so that the plain weights of the others need not be in memory. Raises ``ModelError`` for a
    weight that is not finite, naming ``source``: packed, a NaN would look like a number (mlx 0.32.4).
    """
    result = dict(weights)
    for path, width in widths.items():
        weight = result.get(f"{path}.weight")
        if weight is None:
            continue
        parts = mx.quantize(weight, width.group_size, width.bits, mode=width.mode)
        is_finite = mx.all(mx.isfinite(weight))
        mx.eval(*parts, is_finite)
        if not is_finite.item():
            raise ModelError(f"{source}: {path}.weight holds NaN or infinity", "fetch or copy the model again")
        result |= {f"{path}.{name}": array for name, array in zip(("weight", "scales", "biases"), parts, strict=False)}
    return result


def cast_or_unpack(
    weights: Mapping[str, mx.array], widths: Widths, dtype: mx.Dtype, *, keep_packed: bool
) -> dict[str, mx.array]:
    """Scales and biases in ``dtype``; unless ``keep_packed``, plain weights in ``dtype`` instead of packed ones."""
    result = dict(weights)
    for path, width in widths.items():
        for name in ("scales", "biases"):
            key = f"{path}.{name}"
            if key in result and width.mode == "affine":
                result[key] = result[key].astype(dtype)
        if not keep_packed:
            result[f"{path}.weight"] = mx.dequantize(
                result[f"{path}.weight"],
                result.pop(f"{path}.scales"),
                result.pop(f"{path}.biases", None),
                group_size=width.group_size,
                bits=width.bits,
                mode=width.mode,
            ).astype(dtype)
    return result


def make_packed_modules(model: nn.Module, widths: Widths) -> None:
    """Replace each module in ``widths`` by its quantised form, so that packed weights can be loaded."""

    def predicate(path: str, _: nn.Module) -> bool | dict[str, object]:
        width = widths.get(path)
        return False if width is None else {"bits": width.bits, "group_size": width.group_size, "mode": width.mode}

    nn.quantize(model, GROUP_SIZE, 4, class_predicate=predicate)
