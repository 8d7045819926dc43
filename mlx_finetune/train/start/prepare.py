"""From a recipe to everything a loop needs, cheapest refusals first: rows before weights, names before numbers.

Order: model files -> tokenizer -> rows -> tokens -> automatic choices -> limits -> weights -> adapter -> optimizer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.nn as nn
import numpy as np

from mlx_finetune import rundir
from mlx_finetune.dataset.card import DataCard
from mlx_finetune.dataset.draft import WHOLE_TEXT
from mlx_finetune.dataset.prompts import is_template_text, settled_template
from mlx_finetune.dataset.stream import ORDER_ID, OrderedBatches, Stream, ordered_batches, pieces_for
from mlx_finetune.dataset.token_rows import TokenRows
from mlx_finetune.dataset.two_sides import check_task
from mlx_finetune.errors import RunError
from mlx_finetune.events import Event, Notice, Phase
from mlx_finetune.hardware import blas
from mlx_finetune.hardware.limits import Limits
from mlx_finetune.hardware.metal import apply_limits
from mlx_finetune.hardware.planning.auto import Resolved, refuse_too_large, resolve_auto
from mlx_finetune.hardware.planning.disk import DiskPlan, check_room, plan_run_disk
from mlx_finetune.hardware.planning.facts import Facts
from mlx_finetune.hardware.planning.kept_states import KeptStates
from mlx_finetune.hardware.safer import Safer
from mlx_finetune.model.adapters.base import check_base
from mlx_finetune.model.adapters.folder import adapter_folder, hash_adapter
from mlx_finetune.model.adapters.lora import (
    AdapterSpec,
)
from mlx_finetune.model.files.config import context_of
from mlx_finetune.model.heads.scorer import ScorerRun
from mlx_finetune.model.inside.segments import check_packable
from mlx_finetune.model.inside.split import SplitModel
from mlx_finetune.model.load import LoadedModel, ModelInfo, device_name, load_model, on_gpu
from mlx_finetune.model.scratch.begin import about_tokenizer, recipe_model
from mlx_finetune.model.sources.fetch import LocalModel
from mlx_finetune.model.tokens.tokenizer import ModelTokenizer, load_tokenizer
from mlx_finetune.recipe.load import LoadedRecipe
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.recipe.training import TrainingRecipe
from mlx_finetune.train.compare import Expected, expect_run, with_profile
from mlx_finetune.train.objective import Constant, Objective, Score
from mlx_finetune.train.objectives.registry import build_objective
from mlx_finetune.train.optim import Schedule, build_schedule
from mlx_finetune.train.ranks import ALONE, OtherRankError, Ranks
from mlx_finetune.train.signals import StopRequest
from mlx_finetune.train.start.frozen import KEY, check_states_room, settle_reuse
from mlx_finetune.train.start.identity import (
    Identity,
    current_versions,
    measure_hash,
    rank_differences,
    recipe_identity,
)
from mlx_finetune.train.start.rows import Emit, TrainingRows, check_context, check_vocabulary, read_facts, read_rows
from mlx_finetune.train.start.scorers import hash_all, load_scores, scorers_of, with_scorers
from mlx_finetune.train.start.trainable import attach, build_trainer, split_with_scores
from mlx_finetune.train.step import Trainer


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run that could take its first step. ``recipe`` has no "auto" left; ``reasons`` say how each was decided."""

    recipe: Recipe
    objective: Objective
    reasons: Mapping[str, str]
    identity: Identity
    model: nn.Module
    info: ModelInfo
    source: str
    tokenizer: ModelTokenizer
    spec: AdapterSpec | None
    trainer: Trainer
    stream: Stream
    valid_batches: OrderedBatches
    schedule: Schedule
    total_steps: int
    limits: Limits
    expected: Expected
    disk: DiskPlan
    safer: Safer
    device: str
    rows: TokenRows
    num_valid_rows: int
    constant: Constant | None
    microbatch: int
    kept: KeptStates | None
    corrections: Mapping[str, int]
    card: DataCard
    score: Score | None


def prepare(
    loaded: LoadedRecipe,
    *,
    base: Path,
    decided: Recipe | None,
    total_steps: int | None,
    safer: Safer,
    emit: Emit,
    stop: StopRequest,
    corrections: Mapping[str, int] | None = None,
    ranks: Ranks = ALONE,
    uses_tuned: bool = True,
) -> Prepared:
    """Load and decide everything. Relative paths are looked up in ``base``.

    ``decided`` is the resolved recipe of the run that is resumed: its choices count again, whatever this machine would
    choose now; ``corrections`` are those it began with (``dataset.corrections``), None for those there are now.
    ``total_steps`` replaces the length of an extended run, ``safer`` says how much more carefully than the recipe it is
    carried out after an abort; without ``uses_tuned`` nothing that was tuned counts. Rank 0's choices count on every
    rank, which must train the same. Raises ``MlxftError`` and, for a signal before the first step, ``Interrupted``.
    """
    asked, objective = loaded.recipe, build_objective(loaded.recipe)
    adapter = adapter_folder(asked.adapter, base) if asked.adapter else None  # refused before anything is fetched
    report = _leaving(emit, stop)
    scorers = scorers_of(asked, base, report)
    local = _model_of(asked, base, adapter, report)
    stop.raise_if_asked("before the first step")
    tokenizer = _load_tokenizer(asked, local, base)
    rows = read_rows(asked, objective, tokenizer, base, report, corrections, context=context_of(local.folder))
    facts = with_scorers(read_facts(local.folder, rows, asked, objective, num_processes=ranks.size), scorers, asked)
    facts = with_profile(facts, asked, uses_tuned=uses_tuned and not decided)
    resolved = _resolve(_with_prompt_template(_recipe_of(asked, decided, base, ranks), tokenizer, rows), facts, ranks)
    expected = expect_run(asked, facts, resolved, emit)
    resolved = replace(resolved, limits=safer.limits(resolved.limits))
    blas.use_threads(resolved.recipe.hardware.num_threads)  # before ``identity`` notes what a sum depends on
    total = total_steps or resolved.total_steps
    refuse_too_large(resolved, asked.hardware, facts.machine, plan=loaded.command("plan"))
    disk = _plan_disk(resolved, facts, tokenizer, total, is_checked=not ranks.rank)
    loaded_model = _load_model(local, resolved, rows, report)
    check_vocabulary(loaded_model.model, tokenizer, rows)
    stop.raise_if_asked("before the first step")
    spec = attach(loaded_model, resolved.recipe, base, emit)
    made_of = (asked, resolved.recipe, loaded_model.info, tokenizer, rows, base, scorers)
    identity = _compare(_identity(*made_of), ranks, emit)
    split = split_with_scores(loaded_model.model, objective, rows.labels, resolved.recipe, base, emit)
    objective, resolved = _settled(split, settle_reuse(resolved, split, asked))
    score = load_scores(scorers, resolved.recipe, rows, base, report)
    parts = (objective, tokenizer, rows, resolved, loaded_model, split, local.source, spec, identity, score)
    return _assemble(*parts, total_steps=total, expected=expected, disk=disk, safer=safer, ranks=ranks)


def _settled(split: SplitModel, resolved: Resolved) -> tuple[Objective, Resolved]:
    """The objective of the resolved recipe as the loaded model allows it, with what that chose in the recipe."""
    objective = build_objective(resolved.recipe)
    if objective.settle is None:
        return objective, resolved
    objective, chosen = objective.settle(split)
    recipe = resolved.recipe
    for key, (value, _) in chosen.items():
        section, _, name = key.partition(".")
        recipe = recipe.model_copy(update={section: getattr(recipe, section).model_copy(update={name: value})})
    reasons = {**resolved.reasons, **{key: reason for key, (_, reason) in chosen.items()}}
    return objective, replace(resolved, recipe=recipe, reasons=reasons)


def _model_of(asked: Recipe, base: Path, adapter: Path | None, report: Emit) -> LocalModel:
    """The model's folder, which an adapter to start from must be of; of a new tokenizer it is said what it is like."""
    local = recipe_model(asked, base=base, report=report)
    if sentence := about_tokenizer(local.folder):
        report(Notice("info", sentence))
    if adapter is not None and (notice := check_base(adapter, local)) is not None:
        report(notice)
    return local


def _load_tokenizer(asked: Recipe, local: LocalModel, base: Path) -> ModelTokenizer:
    """The model's tokenizer, which says whether the task is one for this kind of model. Raises ``ModelError``."""
    tokenizer = load_tokenizer(local.folder, chat_template=_in_folder(asked.data.chat_template, base))
    check_task(asked.task, tokenizer, local.name)
    return tokenizer


def _leaving(emit: Emit, stop: StopRequest) -> Emit:
    """``emit`` that leaves in the middle of a long download or a long file where that was asked for."""

    def report(event: Event) -> None:
        emit(event)
        stop.raise_if_asked("before the first step")

    return report


def _recipe_of(asked: Recipe, decided: Recipe | None, base: Path, ranks: Ranks) -> Recipe:
    """``decided``, where there is one; several processes that go on with the run of one reuse no frozen blocks."""
    if decided is None:
        return _with_absolute_paths(asked, base)
    if ranks.size == 1 or asked.training.reuse_frozen_layers is True:
        return decided
    return decided.model_copy(update={"training": decided.training.model_copy(update={KEY: "auto"})})


def _with_prompt_template(recipe: Recipe, tokenizer: ModelTokenizer, rows: TrainingRows) -> Recipe:
    """The recipe with the form its prompts are asked in, where the task leaves that to the rows."""
    name = settled_template(recipe, tokenizer, is_text=rows.card.splits["train"].method == WHOLE_TEXT)
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"prompt_template": name})})


def _resolve(recipe: Recipe, facts: Facts, ranks: Ranks) -> Resolved:
    """The recipe with every automatic choice made, as rank 0 makes it."""
    resolved = resolve_auto(recipe, facts)
    chosen = ranks.share(resolved.recipe.model_dump(mode="json"))
    return resolve_auto(Recipe.model_validate(chosen), facts) if ranks.rank else resolved


def _compare(identity: Identity, ranks: Ranks, emit: Emit) -> Identity:
    """``identity``; ranks that would train something else than rank 0 are refused.

    Raises ``OtherRankError`` with the difference.

    Another version of mlx is only said: it may compute other last bits.
    """
    if ranks.size == 1:
        return identity
    different = rank_differences(ranks.share(identity.to_json()), identity)
    for rank, phrases in enumerate(ranks.gather(different)):
        if phrases:
            hint = "every machine needs the same recipe, data, model and version of mlxft, in the same folders"
            raise OtherRankError(rank, f"it would train with {'; '.join(phrases)}", hint, RunError.exit_code)
    emit(Notice("info", f"{ranks.size} ranks train together; this is rank {ranks.rank}"))
    versions = ranks.gather(identity.versions["mlx"])
    if len(set(versions)) > 1:
        emit(Notice("warning", f"the ranks have different versions of mlx: {', '.join(versions)}"))
    return identity


def _plan_disk(
    resolved: Resolved, facts: Facts, tokenizer: ModelTokenizer, total_steps: int, *, is_checked: bool
) -> DiskPlan:
    """What the run needs on the disk, refused before anything large is loaded where that is not there."""
    recipe = resolved.recipe
    beside = sum(len(text.encode("utf-8")) for text in tokenizer.files().values())
    disk = plan_run_disk(recipe, facts.shape, facts.lengths, total_steps, recipe.run_folder, beside=beside)
    if is_checked:
        check_room(disk, recipe.run_folder, num_existing=len(rundir.RunDir(recipe.run_folder).checkpoints()))
        check_states_room(resolved.kept, disk, recipe.run_folder)
    return disk


def _assemble(
    objective: Objective,
    tokenizer: ModelTokenizer,
    rows: TrainingRows,
    resolved: Resolved,
    loaded_model: LoadedModel,
    split: SplitModel,
    source: str,
    spec: AdapterSpec | None,
    identity: Identity,
    score: Score | None,
    *,
    total_steps: int,
    expected: Expected,
    disk: DiskPlan,
    safer: Safer,
    ranks: Ranks,
) -> Prepared:
    """The parts of a run around a loaded model: stream, optimizer, schedule."""
    recipe, training = resolved.recipe, resolved.recipe.training
    stream, valid = _batches(objective, rows, resolved, safer, ranks)
    return Prepared(
        recipe=recipe,
        objective=objective,
        reasons={**resolved.reasons, **safer.reasons()},
        identity=identity,
        model=loaded_model.model,
        info=loaded_model.info,
        source=source,
        tokenizer=tokenizer,
        spec=spec,
        trainer=build_trainer(split, objective, resolved, recomputes=safer.recomputation, ranks=ranks),
        stream=stream,
        valid_batches=valid,
        schedule=_schedule(training, total_steps),
        total_steps=total_steps,
        limits=resolved.limits,
        expected=expected,
        disk=disk,
        safer=safer,
        device=device_name(),
        rows=rows.train,
        num_valid_rows=len(rows.valid),
        constant=objective.constant(rows.valid),
        microbatch=-(-resolved.microbatch // safer.pieces),
        kept=resolved.kept,
        corrections=rows.corrections,
        card=rows.card,
        score=score,
    )


def _batches(
    objective: Objective, rows: TrainingRows, resolved: Resolved, safer: Safer, ranks: Ranks
) -> tuple[Stream, OrderedBatches]:
    """Those of the steps and those of an evaluation."""
    stream = _stream(rows, resolved, safer.pieces, ranks)
    valid = ordered_batches(rows.valid, -(-min(resolved.batch_size, resolved.microbatch) // safer.pieces))
    if objective.reference:  # until it is computed: a measured step needs some
        stream.values, valid.values = np.zeros((len(rows.train), 2)), np.zeros((len(rows.valid), 2))
    return stream, valid


def _schedule(training: TrainingRecipe, total_steps: int) -> Schedule:
    rate, warmup = float(training.learning_rate), training.warmup_steps or 0
    return build_schedule(training, learning_rate=rate, warmup_steps=warmup, total_steps=total_steps)


def _stream(rows: TrainingRows, resolved: Resolved, pieces: int, ranks: Ranks) -> Stream:
    """The training rows in the order of the steps, in microbatches that can be dealt out evenly to the ranks."""
    accumulation = resolved.recipe.training.gradient_accumulation_steps
    return Stream(
        rows.train,
        batch_size=resolved.batch_size,
        microbatch=resolved.microbatch,
        accumulation=accumulation,
        packed_length=resolved.packed_length,
        seed=resolved.recipe.seed,
        pieces=pieces * pieces_for(ranks.size, accumulation),
    )


def _load_model(local: LocalModel, resolved: Resolved, rows: TrainingRows, emit: Emit) -> LoadedModel:
    """The frozen base model under the memory limits, after everything that can be refused without it."""
    recipe = resolved.recipe
    apply_limits(resolved.limits)
    emit(Phase("load", detail=local.name))
    loaded_model = load_model(
        local,
        quantize=recipe.quantize,
        compute_dtype=recipe.hardware.compute_dtype,
        on_gpu=on_gpu(),
        dequantize=recipe.lora is None,
    )
    for notice in loaded_model.notices:
        emit(notice)
    if resolved.packed_length is not None:
        check_packable(loaded_model.model)
    check_context(loaded_model.info, rows, resolved.packed_length, recipe.task)
    return loaded_model


def _in_folder(name: str, base: Path, words: tuple[str, ...] = ("auto",)) -> str:
    """A template's path as an absolute one; one of the ``words`` stays as it is."""
    return name if name in words else str((base / Path(name).expanduser()).resolve())


def _with_absolute_paths(recipe: Recipe, base: Path) -> Recipe:
    """The recipe with template and schema files named so that they are found from any folder."""
    templates = {
        "chat_template": _in_folder(recipe.data.chat_template, base),
        "prompt_template": _in_folder(recipe.data.prompt_template, base, ("auto", "alpaca", "none")),
    }
    if is_template_text(recipe.data.prompt_template):
        del templates["prompt_template"]
    grpo = recipe.grpo
    if grpo.schema is not None:
        grpo = grpo.model_copy(update={"schema": _in_folder(grpo.schema, base)})
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=templates), "grpo": grpo})


def _identity(
    recipe: Recipe,
    resolved: Recipe,
    info: ModelInfo,
    tokenizer: ModelTokenizer,
    rows: TrainingRows,
    base: Path,
    scorers: Sequence[ScorerRun],
) -> Identity:
    adapter = hash_adapter(adapter_folder(recipe.adapter, base)) if recipe.adapter else ""
    scores = hash_all(scorers)
    return Identity(
        recipe=recipe_identity(recipe),
        data_sha256=rows.content_hash,
        model_sha256=info.sha256,
        tokenizer_sha256=tokenizer.content_hash,
        adapter_sha256=adapter,
        order=ORDER_ID,
        versions=current_versions(),
        scorers_sha256=scores,
        measure_sha256=measure_hash(resolved, rows.valid.content_hash(), [info.sha256, adapter, scores]),
    )
