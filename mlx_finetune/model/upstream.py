"""The one door to mlx-lm: its architectures and caches, without what its ``__init__`` brings along.

``import mlx_lm.models.llama`` runs ``mlx_lm/__init__.py`` first, and with it transformers and the hub's client: 1.4 of
the 1.5 s it takes (2-core x86, mlx-lm 0.32.2). The package is put among the loaded modules without being run; the first
time somebody asks it for a name of its own (``mlx_lm.load``), it runs after all, so nothing is missing to anyone.
What else is here of mlx-lm's is small, copied, and compared with the original in ``tests/model/test_upstream.py``.
"""

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn

_OWN_NAMES = ("__all__", "__version__")  # of all names with two underscores, those that its __init__ makes


def import_lazily(name: str) -> None:
    """Make the package ``name`` a parent for its modules without running its ``__init__`` before that is needed."""
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        return
    package, loader = importlib.util.module_from_spec(spec), spec.loader

    def run_first(wanted: str) -> object:
        if wanted.startswith("__") and wanted not in _OWN_NAMES:
            raise AttributeError(f"module {name!r} has no attribute {wanted!r}")
        package.__dict__.pop("__getattr__", None)
        loader.exec_module(package)
        return getattr(package, wanted)

    package.__dict__["__getattr__"] = run_first
    sys.modules[name] = package


import_lazily("mlx_lm")

from mlx_lm.models import gemma, gemma2, gpt2, gpt_neox  # noqa: E402 - after the package has been made lazy
from mlx_lm.models.base import create_causal_mask  # noqa: E402
from mlx_lm.models.cache import (  # noqa: E402
    BatchKVCache,
    KVCache,
    RotatingKVCache,
    can_trim_prompt_cache,
    make_prompt_cache,
    trim_prompt_cache,
)
from mlx_lm.models.rope_utils import (  # noqa: E402
    Llama3RoPE,
    ProportionalRoPE,
    SuScaledRoPE,
    YarnRoPE,
)
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear  # noqa: E402

__all__ = [
    "REMAPPED",
    "ROTARY",
    "BatchKVCache",
    "KVCache",
    "QuantizedSwitchLinear",
    "RotatingKVCache",
    "SwitchLinear",
    "can_trim_prompt_cache",
    "create_causal_mask",
    "find_architecture",
    "gemma",
    "gemma2",
    "gpt2",
    "gpt_neox",
    "import_lazily",
    "make_prompt_cache",
    "packing_of",
    "trim_prompt_cache",
]

#: ``model_type`` -> the module that has its architecture, where that has another name (mlx_lm.utils.MODEL_REMAPPING).
REMAPPED: Mapping[str, str] = {
    "mistral": "llama",
    "llava": "mistral3",
    "phi-msft": "phixtral",
    "falcon_mamba": "mamba",
    "joyai_llm_flash": "deepseek_v3",
    "kimi_k2": "deepseek_v3",
    "qwen2_5_vl": "qwen2_vl",
    "minimax_m2": "minimax",
    "iquestcoder": "llama",
    "xverse": "llama",
    "gemma4_unified": "gemma4",
    "deepseek_v41_text": "deepseek_v41",
}

#: Rotary embeddings whose offset may be an array, one for each sequence (``DynamicNTKScalingRoPE`` reads a number).
ROTARY = (nn.RoPE, Llama3RoPE, ProportionalRoPE, SuScaledRoPE, YarnRoPE)

# (bits, group size) -> mode of the packings whose scales are bytes; affine keeps them in the type of the weights
_BYTE_SCALES = {(4, 16): "nvfp4", (4, 32): "mxfp4", (8, 32): "mxfp8"}


def find_architecture(kind: str) -> ModuleType | None:
    """mlx-lm's module for ``model_type``; None where it has none. Helper modules are found too."""
    name = f"mlx_lm.models.{REMAPPED.get(kind, kind)}"
    return None if importlib.util.find_spec(name) is None else importlib.import_module(name)


def packing_of(path: str, module: Any, weights: Mapping[str, mx.array]) -> tuple[int, int, str]:
    """Bits, group size and mode of the packed weight at ``path`` (mlx_lm.utils.infer_quant_config).

    ``module`` is the layer before it is packed. Raises ``ValueError`` for a packing that MLX does not have.
    """
    scales = weights[f"{path}.scales"]
    columns = module.weight.shape[-1]
    group_size = columns // scales.shape[-1]
    bits = weights[f"{path}.weight"].shape[-1] * 32 // columns
    if scales.dtype != mx.uint8:
        return bits, group_size, "affine"
    if (bits, group_size) not in _BYTE_SCALES:
        raise ValueError(f"Cannot infer the quantization mode of {path}: {bits} bits with group size {group_size}.")
    return bits, group_size, _BYTE_SCALES[bits, group_size]
