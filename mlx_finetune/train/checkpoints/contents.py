"""The files of a checkpoint, and reading them back to the last bit. ``checkpoint.py`` commits the folder.

An adapter's checkpoint holds the adapter in both layouts; a fully trained model's holds a loadable model. Beside them
the optimizer's moments, the state, the tokenizer, and what it was trained on (base, identity).
"""

import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx

from mlx_finetune import rundir
from mlx_finetune.errors import RunError, TrainingError
from mlx_finetune.model.adapter_files import save_adapter
from mlx_finetune.rundir import RunDir
from mlx_finetune.train.checkpoints.commit import Checkpoint, checkpoint_step, rotate, save_checkpoint
from mlx_finetune.train.checkpoints.state import RunState
from mlx_finetune.train.loop import Cadence
from mlx_finetune.train.optim import FlatArrays
from mlx_finetune.train.start.prepare import Prepared

MODEL_WEIGHTS = "model.safetensors"
_OTHER_SHAPE = "a fork keeps the shape of what is trained; for another one start a new run, with another output_dir"


def checkpoint_saver(
    run: RunDir, prepared: Prepared, cadence: Cadence, clock: Callable[[], float]
) -> Callable[[RunState], Checkpoint]:
    """A function that commits a checkpoint of the current weights and the state it is given, then rotates old ones."""
    parents = [checkpoint_step(path) for path in run.checkpoints()]

    def save(state: RunState) -> Checkpoint:
        state.journal_bytes = _size(run.file(rundir.EVENTS))
        state.samples_bytes = _size(run.file(rundir.SAMPLES))
        checkpoint = save_checkpoint(
            run,
            state.step,
            lambda folder: write_files(folder, prepared, state, clock()),
            parent_step=parents[-1] if parents else None,
        )
        parents.append(state.step)
        best = {state.best_step} if state.best_step and prepared.recipe.training.keep_best else set[int]()
        rotate(run, keep_newest=prepared.recipe.training.keep_checkpoints, keep_steps=cadence.kept_steps | best)
        return checkpoint

    return save


def write_files(folder: Path, prepared: Prepared, state: RunState, timestamp: float) -> None:
    """Everything a checkpoint holds but its manifest. Raises ``TrainingError`` rather than save a non-finite weight."""
    trainer, recipe = prepared.trainer, prepared.recipe
    if not _is_finite(trainer.parameters):
        raise TrainingError(
            f"step {state.step}: a weight is not finite, so no checkpoint was written", "lower training.learning_rate"
        )
    if prepared.spec is not None:
        save_adapter(folder, prepared.model, prepared.spec, prepared.info)
    else:
        _save_model(folder, prepared, trainer.parameters)
    mx.save_safetensors(str(folder / rundir.OPTIMIZER), _sorted(trainer.state), {"format": "mlx"})
    prepared.tokenizer.save(folder)
    fields = state.to_json() | {
        "format_version": rundir.FORMAT_VERSION,
        "timestamp": timestamp,
        "total_steps": prepared.total_steps,
        "progress": round(state.step / prepared.total_steps, 6),
        "seed": recipe.seed,
        "task": recipe.task,
        "model": prepared.info.name,
        "model_folder": str(prepared.info.folder),
        "identity": prepared.identity.to_json(),
    }
    rundir.write_json(folder / rundir.TRAINER_STATE, fields)


def restore_trainer(prepared: Prepared, checkpoint: Path) -> None:
    """Put weights and optimizer state of ``checkpoint`` into the trainer. Raises ``RunError`` for other tensors."""
    name = rundir.MLX_WEIGHTS if prepared.spec is not None else MODEL_WEIGHTS
    parameters = _read(checkpoint / name, prepared.trainer.parameters)
    state = _read(checkpoint / rundir.OPTIMIZER, prepared.trainer.state)
    prepared.trainer.restore(parameters, state)


def _read(path: Path, expected: FlatArrays) -> FlatArrays:
    """The arrays of one file, in the order, shapes and types of ``expected``."""
    arrays = mx.load(str(path))
    assert isinstance(arrays, dict)
    if arrays.keys() != expected.keys():
        different = sorted(arrays.keys() ^ expected.keys())
        raise RunError(f"{path} holds other tensors than this run trains: {', '.join(different[:4])}", _OTHER_SHAPE)
    for name, value in expected.items():
        if arrays[name].shape != value.shape or arrays[name].dtype != value.dtype:
            found = f"{arrays[name].shape} {arrays[name].dtype}"
            raise RunError(f"{path}: {name} is {found}, not {value.shape} {value.dtype}", _OTHER_SHAPE)
    return {name: arrays[name] for name in expected}


def _save_model(folder: Path, prepared: Prepared, parameters: FlatArrays) -> None:
    """A model folder that loads by itself: weights under MLX's names, config without quantisation."""
    mx.save_safetensors(str(folder / MODEL_WEIGHTS), _sorted(parameters), {"format": "mlx"})
    config = json.loads((prepared.info.folder / "config.json").read_bytes())
    for key in ("quantization", "quantization_config"):
        config.pop(key, None)
    rundir.write_json(folder / "config.json", config | {"torch_dtype": "float32"})


def _sorted(arrays: FlatArrays) -> FlatArrays:
    return {name: arrays[name] for name in sorted(arrays)}


def _is_finite(arrays: FlatArrays) -> bool:
    return bool(mx.all(mx.stack([mx.all(mx.isfinite(value)) for value in arrays.values()])).item())


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
