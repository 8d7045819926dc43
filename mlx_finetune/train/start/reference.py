"""Numbers of every row from the weights before step 1, where an objective compares with them: computed once and kept.

For losses on preferences they are the log-probabilities of the policy at step 0 in eval mode, of training and
validation rows. They lie in the cache under a hash of everything that decides them, so a resumed run and a second one
read what the first computed: the same bits. Rows go through the model in the batches of the run, so an evaluation
before step 1 finds exactly them; a training row that no step sees is left out. What a signal or a kill cuts short goes
on from the last minute.
"""

import hashlib
import io
import json
import time
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlx_finetune import durable
from mlx_finetune.dataset.stream import Batch
from mlx_finetune.dataset.token_rows import TokenRows
from mlx_finetune.events import Notice, Phase
from mlx_finetune.model.sources.catalogue import cache_folder
from mlx_finetune.train.objective import Objective
from mlx_finetune.train.ranks import Ranks
from mlx_finetune.train.signals import StopRequest
from mlx_finetune.train.start.prepare import Prepared
from mlx_finetune.train.start.rows import Emit

REFERENCES = "references"
SAVE_SECONDS = 60.0
MAX_FILES = 200
NUM_VALUES = 2  # of a row: one of each answer
_ENDING = ".npz"

_Values = dict[str, NDArray[np.float64]]


def add_reference(prepared: Prepared, stop: StopRequest, emit: Emit, ranks: Ranks) -> None:
    """Give the rows of ``prepared`` their reference, where its objective has one; the trainer must be at step 0.

    Rank 0 computes, all have the same. Raises ``Interrupted`` for a signal.
    """
    objective = prepared.objective.reference
    if objective is None:
        return
    try:
        found: _Values = {} if ranks.rank else _load_or_compute(prepared, objective, stop, emit)
    except BaseException:
        prepared.trainer.close()  # its threads must not outlive it
        raise
    shared = ranks.share({name: values.tolist() for name, values in found.items()})
    for name, rows in (("train", prepared.stream), ("valid", prepared.valid_batches)):
        num_rows = len(prepared.rows) if name == "train" else prepared.num_valid_rows
        rows.values = np.array(shared[name], np.float64).reshape(num_rows, NUM_VALUES)


def _load_or_compute(prepared: Prepared, objective: Objective, stop: StopRequest, emit: Emit) -> _Values:
    splits = {"train": prepared.rows, "valid": prepared.valid_batches.rows}
    found: _Values = {}
    computed = 0
    for name, rows in splits.items():
        path = cache_folder() / REFERENCES / f"{_key(prepared, name, rows)}{_ENDING}"
        values = _read(path, len(rows))
        values = np.full((len(rows), NUM_VALUES), np.nan) if values is None else values
        batches = _trained(prepared, values) if name == "train" else prepared.valid_batches
        computed += _fill(values, batches, name, path, prepared, objective, stop, emit)
        found[name] = values
    if computed:
        emit(Notice("info", f"the reference of {computed} rows was computed once, before step 1, and is kept"))
    else:
        emit(Notice("info", "the reference of these rows was computed before, and is read"))
    return found


def _fill(
    values: NDArray[np.float64],
    batches: Iterable[Batch],
    name: str,
    path: Path,
    prepared: Prepared,
    objective: Objective,
    stop: StopRequest,
    emit: Emit,
) -> int:
    """Compute what is missing and keep it; the number of rows that were computed."""
    computed, saved = 0, time.monotonic()
    for batch in batches:
        if not np.isnan(values[list(batch.rows)]).any():
            continue
        if stop.signal_number or time.monotonic() - saved > SAVE_SECONDS:
            _write(path, values, emit)
            saved = time.monotonic()
        stop.raise_if_asked("before the first step")
        done = int(np.isfinite(values[:, 0]).sum())
        emit(Phase("compute reference", detail=name, done=done, total=len(values), unit="rows"))
        values[list(batch.rows)] = prepared.trainer.row_outputs(objective, batch)
        computed += len(batch.rows)
    if computed:
        _write(path, values, emit)
    return computed


def _trained(prepared: Prepared, values: NDArray[np.float64]) -> Iterator[Batch]:
    """The microbatches of the run's steps while a row of them may have no numbers yet."""
    stream = prepared.stream
    for step in range(prepared.total_steps):
        if np.isnan(values[stream.rows(step)]).any():
            yield from stream.microbatches(step)
        elif np.isfinite(values).all():
            return


def _key(prepared: Prepared, name: str, rows: TokenRows) -> str:
    """SHA-256 of everything that the numbers of a split depend on, to the last bit."""
    recipe, identity = prepared.recipe, prepared.identity
    lora = recipe.lora.model_dump(mode="json") if recipe.lora and (recipe.adapter or recipe.lora.use_dora) else None
    training = recipe.training
    steps = [training.batch_size, training.gradient_accumulation_steps, recipe.hardware.microbatch]
    steps += [prepared.safer.pieces, identity.order, recipe.seed]
    parts = {
        "version": 1,
        "model": identity.model_sha256,
        "adapter": identity.adapter_sha256,
        "lora": lora,
        "is_full": recipe.lora is None,
        "quantize": recipe.quantize,
        "compute_dtype": recipe.hardware.compute_dtype,
        "num_threads": recipe.hardware.num_threads,
        "device": prepared.device,
        "versions": dict(identity.versions),
        "share_prompt": recipe.preference.share_prompt if recipe.preference else None,
        "batches": [prepared.valid_batches.batch_size] if name == "valid" else steps,
        "rows": rows.content_hash(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("ascii")).hexdigest()


def _read(path: Path, num_rows: int) -> NDArray[np.float64] | None:
    """What was kept, whole or in part; None where there is nothing, or nothing that can be used (it is made again)."""
    try:
        with np.load(io.BytesIO(path.read_bytes())) as kept:  # a checksum is part of the format
            found: NDArray[np.float64] = kept["values"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        with suppress(OSError):
            path.unlink()
        return None
    return found if found.shape == (num_rows, NUM_VALUES) else None


def _write(path: Path, values: NDArray[np.float64], emit: Emit) -> None:
    """Keep it; a disk that does not take it costs the next start some time, not this run."""
    buffer = io.BytesIO()
    np.savez(buffer, values=values)
    try:
        durable.make_folder(path.parent)
        durable.replace_file(path, [buffer.getvalue()])
        files = sorted(path.parent.glob(f"*{_ENDING}"), key=lambda one: -one.stat().st_mtime)
        for old in files[MAX_FILES:]:
            old.unlink(missing_ok=True)
    except OSError as error:
        what = f"the reference cannot be kept for the next start: {error.strerror or error}"
        emit(Notice("info", what, "MLXFT_CACHE=FOLDER keeps it in another place"))
