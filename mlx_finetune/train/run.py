"""One training from a recipe to its results: prepare, loop, publish. The steps are in the order of the prose.

What was decided is written before step 1: recipe.toml (as asked), resolved.toml (every default and automatic choice
with its reason), data_card.json (what the data is), run.json (identity and status).
"""

import copy
import math
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from mlx_finetune import durable, rundir
from mlx_finetune.errors import MlxftError, RunError
from mlx_finetune.events import Event, Notice, RunFinished
from mlx_finetune.hardware.safer import Safer
from mlx_finetune.recipe.load import LoadedRecipe
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.rundir import RunDir
from mlx_finetune.train.advice import with_advice
from mlx_finetune.train.checkpoints.commit import discard_after, read_trainer_state, rotate
from mlx_finetune.train.checkpoints.contents import (
    checkpoint_saver,
    read_kept,
    read_trainer,
    restore_trainer,
    steps_to_keep,
)
from mlx_finetune.train.checkpoints.state import RunState, record_restarts
from mlx_finetune.train.compare import compare_run
from mlx_finetune.train.loop import Cadence, EndReason, Loop, run_loop
from mlx_finetune.train.machine import sampled_machine
from mlx_finetune.train.microscope import keep_microscope
from mlx_finetune.train.objective import Live, Living
from mlx_finetune.train.ranks import ALONE, Ranks
from mlx_finetune.train.results import publish, result_step, write_card, write_metrics
from mlx_finetune.train.samples import prompt_answerer
from mlx_finetune.train.signals import StopRequest
from mlx_finetune.train.start.admission import Admission, CutFile, RefusedError, Request, cut_journal
from mlx_finetune.train.start.carried import carry_over
from mlx_finetune.train.start.decisions import run_started, write_decisions
from mlx_finetune.train.start.endpoints import keep_schemas, read_schemas
from mlx_finetune.train.start.frozen import reused_states
from mlx_finetune.train.start.identity import (
    FREE_KEYS,
    FREE_SECTIONS,
    KEPT_WHEN_AUTO,
    SETTINGS_BEFORE,
    Identity,
    differences,
    fork_differences,
    other_run,
    version_changes,
)
from mlx_finetune.train.start.length import extended_steps, refuse_finished
from mlx_finetune.train.start.prepare import Prepared, prepare
from mlx_finetune.train.start.reference import add_reference
from mlx_finetune.train.start.rows import Emit
from mlx_finetune.train.step import Trainer
from mlx_finetune.train.watch import Surroundings, Watch, system_surroundings


def train_run(
    loaded: LoadedRecipe,
    request: Request,
    admission: Admission,
    stop: StopRequest,
    emit: Emit,
    *,
    base: Path,
    around: Surroundings | None = None,
    ranks: Ranks = ALONE,
) -> int | None:
    """Train to the end and publish the result; the step where a signal stopped it, or None when it has finished.

    ``around`` is this machine where it is not given. This is the part of rank 0; the others ``follow_run``. Raises
    ``MlxftError`` for everything a user can mend; what was saved before stays as it was.
    """
    run, around = admission.run, around or system_surroundings()
    with ranks.together():
        prepared, state, info = _begin(loaded, request, admission, stop, emit, base, around, ranks)
        live = _live(prepared, ranks)
        kept = read_kept(admission.checkpoint.path) if admission.checkpoint and state.step else {}
        loop = _build_loop(run, prepared, live, stop, emit, around, ranks)
        _start_alike(prepared.trainer, state, live, kept, ranks)
    parts = (prepared.kept, prepared.trainer, prepared.stream, prepared.valid_batches)
    with closing(prepared.trainer):
        with reused_states(*parts, run.path, stop, emit):
            emit(run_started(run, prepared, state))
            seconds = prepared.recipe.hardware.sample_seconds
            with sampled_machine(run, seconds, around, loop.watch, emit) as report:
                reason = run_loop(replace(loop, report_machine=report), state)
        if reason == "stopped":
            durable.write_json(run.file(rundir.RUN_INFO), info | {"status": "stopped", "step": state.step})
            return state.step
        _finish(run, prepared, loop.cadence, state, reason, emit, is_forked=bool(info["is_forked"]))
    durable.write_json(run.file(rundir.RUN_INFO), info | {"status": "finished", "step": state.step})
    keep_microscope(run, prepared, result_step(prepared.recipe, state), stop)
    return None


def follow_run(loaded: LoadedRecipe, stop: StopRequest, ranks: Ranks, *, base: Path) -> None:
    """Train on this rank's share to where rank 0 ends the run. It needs no run folder and writes nothing.

    Rank 0 says what is continued, from which weights and state. Raises ``MlxftError``.
    """
    with ranks.together():
        start = ranks.share(cast(dict[str, Any], {}))
        prepared = prepare(
            loaded,
            base=base,
            decided=start["decided"] and Recipe.model_validate(start["decided"]),
            total_steps=start["total_steps"],
            safer=Safer.from_json(start["safer"]),
            emit=_ignore,
            stop=stop,
            corrections=start["corrections"],
            ranks=ranks,
        )
        add_reference(prepared, stop, _ignore, ranks)
        live = _live(prepared, ranks)
        state = _start_alike(prepared.trainer, RunState(), live, {}, ranks)
    with closing(prepared.trainer):
        run_loop(_build_loop(None, prepared, live, stop, _ignore, system_surroundings(), ranks), state)


def _ignore(event: Event) -> None:
    """Rank 0 reports."""
    del event


def _start_alike(trainer: Trainer, state: RunState, live: Live, kept: Mapping[str, object], ranks: Ranks) -> RunState:
    """Rank 0's state; its weights, its optimizer's moments and what it has ``kept`` are those of every rank."""
    live.restore(ranks.share(kept))
    if ranks.size == 1:
        return state
    shared = RunState.from_json(ranks.share(state.to_json()))
    trainer.restore(ranks.share_arrays(trainer.parameters), ranks.share_arrays(trainer.state))
    return shared


def _begin(
    loaded: LoadedRecipe,
    request: Request,
    admission: Admission,
    stop: StopRequest,
    emit: Emit,
    base: Path,
    around: Surroundings,
    ranks: Ranks,
) -> tuple[Prepared, RunState, dict[str, object]]:
    """Everything before the first step: the run, its state, and the fields of run.json."""
    run = admission.run
    state, before, cut = _restored_state(admission)
    if state.journal_sha256 and cut[0].sha256 != state.journal_sha256:
        emit(Notice("warning", f"{rundir.EVENTS} is not what it was at step {state.step}: its history has gaps"))
    try:
        schemas = read_schemas(loaded, run)
        prepared, is_extended = _prepare(loaded, request, admission, state, stop, emit, base, ranks)
        carry_over(run, state, before, prepared.identity, prepared.total_steps, emit)
        saved = read_trainer(prepared, admission.checkpoint.path) if admission.checkpoint and state.step else None
        add_reference(prepared, stop, emit, ranks)
    except MlxftError as error:
        for file in cut:
            file.restore()
        raise RefusedError(error) if cut else error from error
    discard_after(run, state.step)
    record_restarts(request.restarts, state, emit)
    if saved is not None:
        restore_trainer(prepared, saved)
    is_forked = bool((admission.run_info or {}).get("is_forked")) or (request.fork and state.step > 0)
    info = write_decisions(
        run, loaded, prepared, admission, state, base, around, is_extended=is_extended, is_forked=is_forked
    )
    keep_schemas(run, schemas)
    return prepared, state, info


def _prepare(
    loaded: LoadedRecipe,
    request: Request,
    admission: Admission,
    state: RunState,
    stop: StopRequest,
    emit: Emit,
    base: Path,
    ranks: Ranks,
) -> tuple[Prepared, bool]:
    """Everything up to the point of no return, and whether the run is an extended one."""
    if admission.run_info is not None:
        for sentence in admission.damaged:
            emit(Notice("warning", sentence))
        where = f"continuing after step {state.step}" if state.step else "no checkpoint yet: from the start"
        emit(Notice("info", where))
    for sentence in loaded.notices:
        emit(Notice("info", sentence))
    total_steps = extended_steps(admission.run_info, request, loaded.recipe, state, emit)
    decided = None if request.fork else _decided(admission.run_info, loaded.recipe)
    saved = {} if request.fork else admission.run_info or {}
    safer = request.safer or Safer.from_json(saved.get("safer"))
    corrections = cast("dict[str, int]", saved.get("corrections", {})) if saved else None
    ranks.share(
        {
            "decided": decided and decided.model_dump(mode="json"),
            "total_steps": total_steps,
            "safer": safer.to_json(),
            "corrections": corrections,
        }
    )
    prepared = prepare(
        loaded,
        base=base,
        decided=decided,
        total_steps=total_steps,
        safer=safer,
        emit=emit,
        stop=stop,
        corrections=corrections,
        ranks=ranks,
    )
    _check_identity(admission, prepared.identity, request, emit)
    refuse_finished(admission, request, loaded.recipe, state, prepared.total_steps)
    return prepared, total_steps is not None


def _restored_state(admission: Admission) -> tuple[RunState, Mapping[str, object], list[CutFile]]:
    """The state of the checkpoint to continue from and all that it says, with journal and samples cut back to it; else
    that of step 0."""
    state, said = RunState(), {}
    if admission.run_info is None:
        return state, said, []
    if admission.checkpoint is not None:
        said = read_trainer_state(admission.checkpoint.path)
        state = RunState.from_json(said)
    run = admission.run
    return (
        state,
        said,
        [
            cut_journal(run.file(rundir.EVENTS), state.journal_bytes),
            cut_journal(run.file(rundir.SAMPLES), state.samples_bytes),
        ],
    )


def _decided(run_info: Mapping[str, object] | None, asked: Recipe) -> Recipe | None:
    """The resolved recipe of the run that is continued, with today's values for keys that never change a weight."""
    saved = (run_info or {}).get("resolved")
    if not isinstance(saved, dict):
        return None
    values = copy.deepcopy(saved)
    values["training"] = SETTINGS_BEFORE | values["training"]
    now = asked.model_dump(mode="json")
    for key in FREE_KEYS:
        section, _, name = key.rpartition(".")
        source, target = (now[section], values[section]) if section else (now, values)
        if source[name] == "auto" and key in KEPT_WHEN_AUTO:
            continue
        if source[name] is not None or key == "training.max_minutes":  # None is no limit there, elsewhere a default
            target[name] = source[name]
    for section in FREE_SECTIONS:
        values[section] = now[section]
    return Recipe.model_validate(values)


def _build_loop(
    run: RunDir | None,
    prepared: Prepared,
    live: Live,
    stop: StopRequest,
    emit: Emit,
    around: Surroundings,
    ranks: Ranks,
) -> Loop:
    """``run`` is None on a rank that writes nothing."""
    training = prepared.recipe.training
    kept = frozenset(math.ceil(share * prepared.total_steps - 1e-9) for share in training.save_at)
    cadence = Cadence(
        total_steps=prepared.total_steps,
        eval_steps=training.eval_steps or prepared.total_steps,
        save_steps=training.save_steps or prepared.total_steps,
        kept_steps=kept,
    )
    return Loop(
        trainer=prepared.trainer,
        stream=live.stream,
        valid_batches=live.valid_batches,
        schedule=prepared.schedule,
        cadence=cadence,
        training=training,
        stop=stop,
        watch=Watch(around, min_battery_percent=prepared.recipe.hardware.min_battery_percent, emit=emit, stop=stop),
        emit=with_advice(prepared.objective, emit),
        save=checkpoint_saver(run, prepared, cadence, time.time, live.kept) if run else lambda _: None,
        answer_prompts=prompt_answerer(run.file(rundir.SAMPLES), prepared, stop, emit) if run else lambda _: True,
        locate_row=prepared.rows.where,
        ranks=ranks,
    )


def _live(prepared: Prepared, ranks: Ranks) -> Live:
    """The rows, or what the model makes of them where the objective learns from that."""
    if prepared.objective.live is None:
        return Live(prepared.stream, prepared.valid_batches)
    return prepared.objective.live(
        Living(
            prepared.model,
            prepared.tokenizer,
            prepared.recipe,
            prepared.stream,
            prepared.valid_batches.rows,
            prepared.microbatch,
            prepared.trainer.row_outputs,
            ranks,
            prepared.score,
        )
    )


def _check_identity(admission: Admission, identity: Identity, request: Request, emit: Emit) -> None:
    """Refuse to continue another run's work, unless asked to; say what differs."""
    if admission.run_info is None:
        return
    saved = admission.run_info.get("identity")
    if not isinstance(saved, dict):
        raise RunError(f"{admission.run.path}: run.json has no identity", "choose another output_dir")
    changed = differences(saved, identity)
    if saved.get("tokenizer_sha256") != identity.tokenizer_sha256 and "scratch.tokenizer" in identity.recipe:
        raise RunError(
            "with this data the new model would get another tokenizer, whose tokens the trained weights do not know",
            "undo the change and go on with --resume; its result is then trained on other data by a recipe with "
            f"model = {str(admission.run.path)!r} and task = 'pretrain'",
        )
    if changed and not request.fork:
        raise other_run(changed)
    for sentence in fork_differences(saved, identity, admission.run_info.get("resolved")):
        emit(Notice("warning", f"forked: {sentence}"))
    for sentence in version_changes(saved, identity):
        emit(Notice("warning", f"{sentence}; the rest of this run is no longer promised to be bitwise the same"))


def _finish(
    run: RunDir,
    prepared: Prepared,
    cadence: Cadence,
    state: RunState,
    reason: EndReason,
    emit: Emit,
    *,
    is_forked: bool,
) -> None:
    """Put the best weights, their card and the summary into the run folder.

    Time and memory of a fork are also those of the steps before it, with other settings: no plan is of these.
    """
    recipe = prepared.recipe
    # The process that committed the last step may have died before it removed what is too old
    rotate(run, keep_newest=recipe.training.keep_checkpoints, keep_steps=steps_to_keep(cadence, state))
    published = result_step(recipe, state)
    publish(run, recipe, published)
    compared = None if is_forked else compare_run(prepared.expected, state, emit)
    write_metrics(run, recipe, prepared.info, state, reason, compared.to_json() if compared else None)
    write_card(run, recipe, prepared.info, state, source=prepared.source)
    emit(
        RunFinished(
            step=state.step,
            reason=reason,
            first_loss=state.first_loss,
            best_loss=state.best_loss,
            best_step=state.best_step,
            last_loss=state.last_loss,
            train_seconds=round(state.train_seconds, 3),
            targets_trained=state.targets_trained,
            peak_memory_bytes=state.peak_memory_bytes,
            planned=compared.sentence if compared else "",
            result_step=published,
        )
    )
