"""The files of a checkpoint, and reading them back to the last bit. ``commit.py`` commits the folder.

An adapter's checkpoint holds the adapter in both layouts; a fully trained model's holds a loadable model. Beside them a
score head where there is one, the optimizer's moments, the state, the tokenizer, and what it was trained on (base,
identity).
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import mlx.core as mx

from mlx_finetune import durable, rundir
from mlx_finetune.errors import RunError, TrainingError
from mlx_finetune.hardware.blas import single_threaded
from mlx_finetune.model import reload_check
from mlx_finetune.model.adapters.files import adapter_files
from mlx_finetune.model.files.safetensors_write import safetensors_chunks
from mlx_finetune.model.heads.files import head_file
from mlx_finetune.model.heads.score import WEIGHT, find_head
from mlx_finetune.model.scratch.weights import OWN_FILE
from mlx_finetune.rundir import RunDir, checkpoint_step
from mlx_finetune.train.checkpoints.commit import Checkpoint, Contents, rotate, save_checkpoint
from mlx_finetune.train.checkpoints.room import make_room
from mlx_finetune.train.checkpoints.state import RunState
from mlx_finetune.train.loop import Cadence
from mlx_finetune.train.losses import chunk_rows
from mlx_finetune.train.optim import FlatArrays
from mlx_finetune.train.start.prepare import Prepared

_NO_NEXT_TOKEN = frozenset({"seq2seq"})  # tasks whose model does not predict the next token of its rows
_OTHER_SHAPE = "a fork keeps the shape of what is trained; for another one start a new run, with another output_dir"


def checkpoint_saver(
    run: RunDir,
    prepared: Prepared,
    cadence: Cadence,
    clock: Callable[[], float],
    kept: Callable[[int], Mapping[str, object]],
) -> Callable[[RunState], Checkpoint]:
    """A function that commits a checkpoint of the current weights and the state it is given, then rotates old ones.

    ``kept`` is that of ``Live``.
    It raises ``NoSpaceError`` where there is no room for another one, ``TrainingError`` where a number is not finite.
    """
    parents = [checkpoint_step(path) for path in run.checkpoints()]
    keep_newest = prepared.recipe.training.keep_checkpoints

    def save(state: RunState) -> Checkpoint:
        _check_finite(prepared, state.step)
        if state.step in cadence.kept_steps and state.step not in state.kept_steps:
            state.kept_steps.append(state.step)
        state.journal_bytes, state.journal_sha256 = _sync_and_hash(run.file(rundir.EVENTS))
        state.samples_bytes, _ = _sync_and_hash(run.file(rundir.SAMPLES))
        keep_steps = steps_to_keep(cadence, state)
        make_room(run, prepared.disk.largest, keep_newest=keep_newest, keep_steps=keep_steps)
        checkpoint = save_checkpoint(
            run,
            state.step,
            checkpoint_contents(run, prepared, state, clock(), kept(state.step)),
            parent_step=parents[-1] if parents else None,
        )
        parents.append(state.step)
        rotate(run, keep_newest=keep_newest, keep_steps=keep_steps)
        return checkpoint

    return save


def steps_to_keep(cadence: Cadence, state: RunState) -> set[int]:
    """Checkpoints that are never rotated out: the best one and those of save_at, also of a shorter run before."""
    return {*cadence.kept_steps, *state.kept_steps, *([state.best_step] if state.best_step else [])}


def checkpoint_contents(
    run: RunDir, prepared: Prepared, state: RunState, timestamp: float, kept: Mapping[str, object]
) -> Contents:
    """Everything a checkpoint holds but its manifest, file by file; arrays are read as they are written."""
    trainer, recipe = prepared.trainer, prepared.recipe
    if prepared.spec is not None:
        for name, content in adapter_files(prepared.model, prepared.spec, prepared.info).items():
            yield name, [content]
    else:
        yield rundir.MODEL_WEIGHTS, safetensors_chunks(_without_head(trainer.parameters), {"format": "mlx"})
        yield "config.json", [_model_config(prepared)]
        if (code := prepared.info.folder / OWN_FILE).is_file():  # of an architecture that other programs do not have
            yield OWN_FILE, [code.read_bytes()]
        head = find_head(prepared.model)
        if head is not None:
            yield rundir.HEAD_WEIGHTS, [head_file(head)]
    yield rundir.OPTIMIZER, safetensors_chunks(trainer.state, {"format": "mlx"})
    if kept:
        yield rundir.ROLLOUTS, [durable.encode_json(kept)]
    for name, text in prepared.tokenizer.files().items():
        yield name, [text.encode("utf-8")]
    yield rundir.RUN_INFO, [run.file(rundir.RUN_INFO).read_bytes()]  # should the one in the run folder be damaged
    check = _reload_check(prepared) if state.step in state.kept_steps else {}
    fields = (
        state.to_json()
        | check
        | {
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
    )
    yield rundir.TRAINER_STATE, [durable.encode_json(fields)]


def _reload_check(prepared: Prepared) -> dict[str, object]:
    """What a checkpoint of save_at says of itself, for ``mlxft trace``; nothing for models that predict otherwise."""
    if prepared.recipe.task in _NO_NEXT_TOKEN:
        return {}
    rows = prepared.valid_batches.rows if len(prepared.valid_batches.rows) else prepared.rows
    prepared.trainer.load_into_model()
    with single_threaded():  # as those who reload it compute
        check = reload_check.make_check(prepared.model, rows[: reload_check.MOST_ROWS], chunk_rows)
    return {reload_check.KEY: check.to_json()} if check else {}


def read_trainer(prepared: Prepared, checkpoint: Path) -> tuple[FlatArrays, FlatArrays]:
    """Weights and optimizer state of ``checkpoint`` for the trainer. Raises ``RunError`` for other tensors."""
    name = rundir.MLX_WEIGHTS if prepared.spec is not None else rundir.MODEL_WEIGHTS
    expected = prepared.trainer.parameters
    parameters = _read(checkpoint / name, _without_head(expected))
    if expected.keys() != parameters.keys():
        parameters |= _read(checkpoint / rundir.HEAD_WEIGHTS, {WEIGHT: expected[WEIGHT]})
    parameters = {name: parameters[name] for name in expected}
    return parameters, _read(checkpoint / rundir.OPTIMIZER, prepared.trainer.state)


def restore_trainer(prepared: Prepared, saved: tuple[FlatArrays, FlatArrays]) -> None:
    """Let the trainer go on from what ``read_trainer`` found."""
    prepared.trainer.restore(*saved)


def read_kept(checkpoint: Path) -> Mapping[str, object]:
    """What ``checkpoint``, whose files were verified, holds of the batches that a model made; empty without it."""
    path = checkpoint / rundir.ROLLOUTS
    return json.loads(path.read_bytes()) if path.is_file() else {}


def _without_head(parameters: FlatArrays) -> FlatArrays:
    """All but the score head, which has a file of its own."""
    return {name: value for name, value in parameters.items() if name != WEIGHT}


def _read(path: Path, expected: FlatArrays) -> FlatArrays:
    """The arrays of one file, in the order, shapes and types of ``expected``."""
    if not path.is_file():
        raise RunError(f"{path.parent} has no {path.name}, of which this run would go on", _OTHER_SHAPE)
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


def _model_config(prepared: Prepared) -> bytes:
    """config.json of a fully trained model, which loads by itself: without quantisation, in fp32."""
    config = json.loads((prepared.info.folder / "config.json").read_bytes())
    for key in ("quantization", "quantization_config"):
        config.pop(key, None)
    return durable.encode_json(config | {"dtype": "float32", "torch_dtype": "float32"})  # the newer name, and the older


def _check_finite(prepared: Prepared, step: int) -> None:
    """Nothing that is not finite is ever committed, neither weights nor moments. Raises ``TrainingError``."""
    arrays = [*prepared.trainer.parameters.values(), *prepared.trainer.state.values()]
    if not mx.all(mx.stack([mx.all(mx.isfinite(value)) for value in arrays])).item():
        raise TrainingError(
            f"step {step}: a weight or a moment of the optimizer is not finite, so no checkpoint was written",
            "lower training.learning_rate",
        )


def _sync_and_hash(path: Path) -> tuple[int, str]:
    """Bytes and SHA-256 of an append-only file, after it was flushed to the disk: the checkpoint refers to them."""
    if not path.is_file():
        return 0, ""
    durable.sync_path(path)
    return path.stat().st_size, durable.hash_file(path)
