"""A score head on disk: ``head.safetensors``, whose metadata says what the numbers mean.

Beside it an adapter has the same weight in PEFT's file, where ``modules_to_save = ["score"]`` announces it; a fully
trained model's own files hold the language model alone, so mlx-lm loads them as ever.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import mlx.core as mx
import numpy as np

from mlx_finetune import rundir
from mlx_finetune.errors import ModelError
from mlx_finetune.model.adapters.base import read_object
from mlx_finetune.model.files.safetensors_check import check_safetensors
from mlx_finetune.model.files.safetensors_write import safetensors_chunks
from mlx_finetune.model.heads.score import WEIGHT, HeadSpec, ScoreHead

PEFT_KEY = f"base_model.model.{WEIGHT}"


def head_file(head: ScoreHead) -> bytes:
    """The bytes of ``head.safetensors``. Raises ``ModelError`` where a number is not finite."""
    weight = np.array(head.weight)
    if not np.isfinite(weight).all():
        raise ModelError("the score head is not saved: it has numbers that are not finite")
    spec = head.spec
    metadata = {"format": "mlx", "task": spec.task, "labels": json.dumps(list(spec.labels))}
    return b"".join(bytes(chunk) for chunk in safetensors_chunks({WEIGHT: head.weight}, metadata))


def peft_fields(spec: HeadSpec) -> dict[str, object]:
    """What an ``adapter_config.json`` says about the head; PEFT and transformers know these names."""
    names = spec.labels or tuple(f"LABEL_{number}" for number in range(spec.num_outputs))
    return {
        "task_type": "SEQ_CLS",
        "modules_to_save": ["score"],
        "num_labels": spec.num_outputs,
        "id2label": {str(number): name for number, name in enumerate(names)},
    }


def read_head(folder: Path) -> tuple[HeadSpec, mx.array] | None:
    """The head that lies in ``folder``, ours or PEFT's, and its weight (n, H) fp32; None where there is none.

    Raises ``ModelError`` for a file that is damaged or no head.
    """
    path = folder / rundir.HEAD_WEIGHTS
    if path.is_file():
        weight, metadata = _weight(path, WEIGHT)
        return _spec(path, weight, metadata), weight
    fields = read_object(folder / rundir.ADAPTER_CONFIG)
    if "score" not in _strings(fields.get("modules_to_save")):
        return None
    weight, _ = _weight(folder / rundir.PEFT_WEIGHTS, PEFT_KEY)
    names = fields.get("id2label")
    labels = tuple(str(name) for name in cast("dict[str, object]", names).values()) if isinstance(names, dict) else ()
    if len(labels) != weight.shape[0]:
        labels = tuple(f"LABEL_{number}" for number in range(weight.shape[0])) if weight.shape[0] > 1 else ()
    return HeadSpec("classify" if labels else "reward", weight.shape[0], labels), weight


def _weight(path: Path, name: str) -> tuple[mx.array, Mapping[str, str]]:
    """The matrix ``name`` in fp32, and the metadata of its file."""
    if not path.is_file():
        raise ModelError(f"{path} is missing, and with it the score head", "make or fetch the adapter again")
    shape = check_safetensors(path)
    if name not in shape:
        raise ModelError(f"{path} holds no {name}, so there is no score head", "make or fetch the adapter again")
    arrays, metadata = cast("tuple[dict[str, mx.array], dict[str, str]]", mx.load(str(path), return_metadata=True))
    weight = arrays[name].astype(mx.float32)
    if weight.ndim != 2 or not mx.all(mx.isfinite(weight)).item():
        raise ModelError(f"{path}: {name} is no matrix of finite numbers", "make or fetch the adapter again")
    return weight, metadata


def _spec(path: Path, weight: mx.array, metadata: Mapping[str, str]) -> HeadSpec:
    try:
        labels = tuple(_strings(json.loads(metadata.get("labels", "[]"))))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: the labels are no JSON: {error}", "fetch the folder again") from error
    if labels and len(labels) != weight.shape[0]:
        raise ModelError(f"{path}: {len(labels)} labels for {weight.shape[0]} outputs", "fetch the folder again")
    return HeadSpec(metadata.get("task", ""), weight.shape[0], labels)


def _strings(value: object) -> list[str]:
    return [one for one in cast("list[object]", value) if isinstance(one, str)] if isinstance(value, list) else []
