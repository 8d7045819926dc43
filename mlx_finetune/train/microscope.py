"""After a run: a few validation rows token by token, under the base and under the result (``dataset.token_losses``).

It comes when the result is published and the run has said so. Nothing here can change or fail it: what goes wrong is a
line of the log, a signal leaves it out, and an abort of the process finds a run that is finished.
``mlxft microscope RUN`` measures the same later. 4 rows of 62 tokens of SmolLM2-135M take 2.1 s of one core
(2026-11-26), with one BLAS thread: two on a busy machine wait for each other, and took 15 s of both.
"""

import sys
import traceback
from contextlib import suppress
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn

from mlx_finetune import rundir
from mlx_finetune.dataset.token_losses import Measured, Microscope, hash_result, read_microscope, write_microscope
from mlx_finetune.dataset.token_rows import TokenRows
from mlx_finetune.dataset.typical_rows import rows_at_lines, typical_rows
from mlx_finetune.errors import MlxftError, UsageError
from mlx_finetune.hardware.blas import single_threaded
from mlx_finetune.model.adapters.files import load_adapter
from mlx_finetune.model.adapters.lora import detach_adapter, fix_norms
from mlx_finetune.model.heads.score import find_head
from mlx_finetune.model.load import load_model, on_gpu
from mlx_finetune.model.microscope import hash_rows, measure_losses, measured_rows
from mlx_finetune.model.sources.fetch import fetch_model
from mlx_finetune.recipe.preference import TWO_ANSWER_TASKS
from mlx_finetune.rundir import RunDir
from mlx_finetune.train.losses import chunk_rows
from mlx_finetune.train.signals import StopRequest
from mlx_finetune.train.start.prepare import Prepared


def keep_microscope(run: RunDir, prepared: Prepared, step: int, stop: StopRequest) -> None:
    """Write microscope.json for the result, which has the weights of ``step``; never raises.

    The trainer has no use any more: the model is left with other weights than it had.
    """
    rows, count = prepared.valid_batches.rows, prepared.recipe.eval.microscope_rows
    has_pairs = prepared.recipe.task in TWO_ANSWER_TASKS
    is_shown = find_head(prepared.model) is None and not has_pairs and prepared.objective.live is None
    if not count or not len(rows) or not is_shown:
        return  # of scored texts, two answers in a row, and answers not learned, losses of single tokens say nothing
    try:
        _measure(run, prepared, rows, count, step, stop)
    except MlxftError as error:
        _log(run, error.message)
    except OSError as error:  # a full disk among them
        _log(run, str(error))
    except Exception as error:  # whatever it is, the run is finished and stays so
        with suppress(OSError):
            traceback.print_exc()
        _log(run, f"{type(error).__name__}: {error}")


def _log(run: RunDir, reason: str) -> None:
    with suppress(OSError):  # the log is on the same disk, which may be full
        sys.stderr.write(f"note: no {rundir.MICROSCOPE} was written: {reason}; later: mlxft microscope {run.name}\n")
        sys.stderr.flush()


def _measure(run: RunDir, prepared: Prepared, rows: TokenRows, count: int, step: int, stop: StopRequest) -> None:
    kept = read_microscope(run)
    chosen = kept.measured.chosen if kept is not None and not kept.measured.data else ""
    numbers = _numbers(rows, count, chosen)
    if numbers is None:
        chosen, numbers = "", typical_rows(rows, count)
    its = [rows[number] for number in numbers]
    measured = Measured(
        model=prepared.info.name,
        chosen=chosen,
        step=step,
        model_sha256=prepared.info.sha256,
        adapter_sha256=hash_result(run),
        rows_sha256=hash_rows(its),
    )
    if kept is not None and replace(kept.measured, step=step) == measured:
        return

    def leave(done: int) -> None:
        del done
        stop.raise_if_asked("while token losses were measured")

    mx.clear_cache()
    leave(0)
    with single_threaded():
        tuned = measure_losses(_result(run, prepared), its, chunk_rows, leave)
        base = measure_losses(_base(prepared), its, chunk_rows, leave)
    write_microscope(run, Microscope(measured_rows(rows, numbers, prepared.tokenizer, base, tuned), measured))


def _numbers(rows: TokenRows, count: int, chosen: str) -> list[int] | None:
    """The rows that a person chose for this run before; None where there are none such, or not any more."""
    try:
        return rows_at_lines(rows, [int(line) for line in chosen.split(",")], "validation rows") if chosen else None
    except (UsageError, ValueError):
        return None


def _result(run: RunDir, prepared: Prepared) -> nn.Module:
    """The model with the weights that were published."""
    if prepared.spec is not None:
        load_adapter(prepared.model, run.path)
        fix_norms(prepared.model)
    else:
        prepared.model.load_weights(str(run.file(rundir.MODEL_FOLDER) / rundir.MODEL_WEIGHTS))
    return prepared.model


def _base(prepared: Prepared) -> nn.Module:
    """What training began with, an adapter taken out; a model of which every weight was trained is loaded again."""
    if prepared.spec is not None:
        detach_adapter(prepared.model)
        return prepared.model
    prepared.trainer.forget()
    dtype = prepared.recipe.hardware.compute_dtype
    local = fetch_model(str(prepared.info.folder), report=lambda _: None)
    return load_model(local, quantize=None, compute_dtype=dtype, on_gpu=on_gpu(), dequantize=True).model
