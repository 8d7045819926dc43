"""What is written and said before step 1: what was asked for, what was decided, and why."""

from datetime import UTC, datetime
from pathlib import Path

from mlx_finetune import durable, rundir
from mlx_finetune.dataset.card import card_json
from mlx_finetune.events import Event, RunStarted
from mlx_finetune.hardware.planning.answering import updates_a_drawing
from mlx_finetune.recipe.load import LoadedRecipe
from mlx_finetune.recipe.resolve import render_resolved
from mlx_finetune.rundir import RunDir
from mlx_finetune.train.checkpoints.state import RunState
from mlx_finetune.train.machine import with_setting_reasons
from mlx_finetune.train.start.admission import Admission
from mlx_finetune.train.start.prepare import Prepared
from mlx_finetune.train.watch import Surroundings


def write_decisions(
    run: RunDir,
    loaded: LoadedRecipe,
    prepared: Prepared,
    admission: Admission,
    state: RunState,
    base: Path,
    around: Surroundings,
    *,
    is_extended: bool,
    is_forked: bool,
) -> dict[str, object]:
    """Write recipe.toml, resolved.toml, data_card.json and run.json; returns the fields of run.json."""
    durable.write_text(run.file(rundir.RECIPE), loaded.text)
    durable.write_json(run.file(rundir.DATA_CARD), card_json(prepared.card))
    reasons = with_setting_reasons(prepared.reasons, prepared.recipe.hardware, around)
    durable.write_text(run.file(rundir.RESOLVED), render_resolved(prepared.recipe, reasons))
    created = (admission.run_info or {}).get("created") or datetime.now(UTC).isoformat(timespec="seconds")
    info: dict[str, object] = {
        "format_version": rundir.FORMAT_VERSION,
        "created": created,
        "status": "running",
        "step": state.step,
        "total_steps": prepared.total_steps,
        "is_extended": is_extended,
        "is_forked": is_forked,
        "safer": prepared.safer.to_json(),
        "corrections": dict(prepared.corrections),
        "model": prepared.info.name,
        "model_source": prepared.source,
        "model_folder": str(prepared.info.folder),
        "model_sha256": prepared.info.sha256,
        "revision": prepared.info.revision,
        "license": prepared.info.license,
        "task": prepared.recipe.task,
        "full": prepared.recipe.lora is None,
        "recipe_path": str(loaded.path),
        "started_in": str(base.resolve()),
        "overrides": list(loaded.overrides),
        "resolved": prepared.recipe.model_dump(mode="json"),
        "identity": prepared.identity.to_json(),
    }
    durable.write_json(run.file(rundir.RUN_INFO), info)
    return info


def run_started(run: RunDir, prepared: Prepared, state: RunState) -> Event:
    """The event that everything is loaded and the first step comes next."""
    return RunStarted(
        run=str(run.path),
        model=prepared.info.name,
        task=prepared.recipe.task,
        first_step=state.step,
        total_steps=prepared.total_steps,
        steps_per_epoch=prepared.stream.steps_in_epoch(0) * updates_a_drawing(prepared.recipe),
        train_rows=prepared.card.splits["train"].num_used,
        valid_rows=prepared.card.splits["valid"].num_used,
        trainable_parameters=sum(value.size for value in prepared.trainer.parameters.values()),
        total_parameters=prepared.info.num_parameters,
        device=prepared.device,
        compute_dtype=prepared.recipe.hardware.compute_dtype,
        memory_limit_bytes=prepared.limits.memory_bytes,
        train_sequences=len(prepared.rows),
        valid_sequences=prepared.num_valid_rows,
        constant_loss=prepared.constant and prepared.constant.loss,
        constant_accuracy=prepared.constant and prepared.constant.accuracy,
    )
