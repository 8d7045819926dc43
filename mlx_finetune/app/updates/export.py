"""The updates of every checkpoint as safetensors with a small JSON beside them, for an analysis outside of mlxft.

Factored updates keep their factors (``PATH.lora_a`` (in, r), ``PATH.lora_b`` (r, out); the update is
``scale (A B)^T``); others, and all of them with ``dense``, are ``PATH.delta`` (out, in).
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from mlx_finetune import durable
from mlx_finetune.app.updates.series import SavedCheckpoint, Series
from mlx_finetune.errors import UsageError
from mlx_finetune.hardware.planning.disk import SPARE_BYTES, free_bytes
from mlx_finetune.units import format_bytes

INDEX = "series.json"


def export_series(series: Series, folder: Path, *, dense: bool) -> list[Path]:
    """Write ``updates-STEP.safetensors`` for each checkpoint and series.json into ``folder``, new or empty.

    Raises ``UsageError`` where the folder has something in it or the disk too little room.
    """
    is_dense = dense or series.kind != "lora"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already and not an empty folder", "nothing is overwritten: name another")
    if folder.resolve().is_relative_to(series.run.path.resolve()):
        raise UsageError(
            f"{folder} lies inside the run", "name a folder elsewhere: a run folder holds its own files only"
        )
    shapes = {path: series[-1].update(path, has_svd=False).shape for path in series.paths}
    _check_room(series, folder, shapes.values() if is_dense else ())
    durable.make_folder(folder)
    files = [_write(checkpoint, folder, is_dense=is_dense) for checkpoint in series]
    index = {
        "run": series.run.path.name,
        "kind": series.kind,
        "form": "dense" if is_dense else "factored",
        "formula": "update = PATH.delta" if is_dense else "update = scale * (PATH.lora_a @ PATH.lora_b).T",
        "scale": series[-1].scale,
        "matrices": {path: {"shape": list(shape)} for path, shape in shapes.items()},
        "checkpoints": [
            {
                "step": checkpoint.step,
                "progress": checkpoint.progress,
                "loss": checkpoint.loss,
                "valid_loss": checkpoint.valid_loss,
                "file": file.name,
            }
            for checkpoint, file in zip(series, files, strict=True)
        ],
    }
    durable.write_json(folder / INDEX, index)
    return [*files, folder / INDEX]


def _write(checkpoint: SavedCheckpoint, folder: Path, *, is_dense: bool) -> Path:
    tensors: dict[str, np.ndarray] = {}
    for path in checkpoint.paths:
        if is_dense:
            tensors[f"{path}.delta"] = np.ascontiguousarray(checkpoint.delta(path))
        else:
            tensors[f"{path}.lora_a"], tensors[f"{path}.lora_b"] = checkpoint.factors(path)
    file = folder / f"updates-{checkpoint.step}.safetensors"
    durable.replace_file(file, [save(tensors, {"step": str(checkpoint.step), "scale": repr(checkpoint.scale)})])
    return file


def _check_room(series: Series, folder: Path, dense_shapes: Iterable[tuple[int, int]]) -> None:
    each = sum(4 * rows * columns for rows, columns in dense_shapes)
    needed, free = each * len(series) + SPARE_BYTES, free_bytes(folder)
    if needed > free:
        raise UsageError(
            f"the updates need {format_bytes(needed)}, {format_bytes(free)} are free at {folder}",
            "leave out --dense, or name another disk",
        )
