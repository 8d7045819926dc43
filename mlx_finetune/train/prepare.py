"""From a recipe to everything a loop needs, cheapest refusals first: rows before weights, names before numbers.

Order: model files -> tokenizer -> rows -> tokens -> automatic choices -> limits -> weights -> adapter -> optimizer.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_finetune import rundir
from mlx_finetune.dataset.corpus import load_splits
from mlx_finetune.dataset.stream import ORDER_ID, Batch, Stream, epoch_lengths, ordered_batches
from mlx_finetune.dataset.tokens import TokenizedSplit, Tokenizer, TokenizeReport, Tokens
from mlx_finetune.errors import DataError, RunError
from mlx_finetune.events import Event, Notice, Phase
from mlx_finetune.hardware.auto import Facts, resolve_auto
from mlx_finetune.hardware.layout import why_unpackable
from mlx_finetune.hardware.limits import Limits, read_machine
from mlx_finetune.hardware.metal import apply_limits
from mlx_finetune.hardware.shapes import read_shape
from mlx_finetune.model.adapter_files import load_adapter
from mlx_finetune.model.fetch import fetch_model
from mlx_finetune.model.load import LoadedModel, ModelInfo, load_model, on_gpu
from mlx_finetune.model.lora import AdapterSpec, adapter_layers, adapter_parameters, attach_adapter, full_parameters
from mlx_finetune.model.noise import add_neftune, checkpoint_blocks
from mlx_finetune.model.parts import embedding
from mlx_finetune.model.segments import check_packable
from mlx_finetune.model.tokenizer import load_tokenizer
from mlx_finetune.recipe.load import LoadedRecipe
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.train.checkpoint import hash_file
from mlx_finetune.train.identity import Identity, current_versions, recipe_identity
from mlx_finetune.train.objective import OBJECTIVES, Objective
from mlx_finetune.train.optim import AdamW, Schedule, build_schedule, decayed_names
from mlx_finetune.train.signals import StopRequest
from mlx_finetune.train.step import Trainer

Emit = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run that could take its first step. ``recipe`` has no "auto" left; ``reasons`` say how each was decided."""

    recipe: Recipe
    reasons: Mapping[str, str]
    identity: Identity
    model: nn.Module
    info: ModelInfo
    tokenizer: Tokenizer
    spec: AdapterSpec | None
    trainer: Trainer
    stream: Stream
    valid_batches: tuple[Batch, ...]
    schedule: Schedule
    total_steps: int
    limits: Limits
    device: str
    row_names: tuple[str, ...]
    num_valid_rows: int


@dataclass(frozen=True, slots=True)
class _Rows:
    train: TokenizedSplit
    valid: TokenizedSplit
    content_hash: str


def prepare(
    loaded: LoadedRecipe,
    *,
    base: Path,
    decided: Recipe | None,
    total_steps: int | None,
    emit: Emit,
    stop: StopRequest,
) -> Prepared:
    """Load and decide everything. Relative paths are looked up in ``base``.

    ``decided`` is the resolved recipe of the run that is resumed: its choices count again, whatever this machine would
    choose now. ``total_steps`` replaces the recipe's length for an extended run. Raises ``MlxftError`` for what a user
    can mend and ``Interrupted`` when a signal comes before the first step.
    """
    objective = OBJECTIVES[loaded.recipe.task]
    local = fetch_model(loaded.recipe.model, revision=loaded.recipe.revision, report=emit)
    stop.raise_if_asked("before the first step")
    tokenizer = load_tokenizer(local.folder, chat_template=loaded.recipe.data.chat_template)
    rows = _read_rows(loaded.recipe, objective, tokenizer, base, emit)
    stop.raise_if_asked("before the first step")
    resolved = resolve_auto(
        decided or loaded.recipe, read_facts(local.folder, rows.train.rows, seed=loaded.recipe.seed)
    )
    recipe = resolved.recipe
    apply_limits(resolved.limits)
    emit(Phase("load", detail=local.name))
    base_model = load_model(
        local,
        quantize=recipe.quantize,
        compute_dtype=recipe.hardware.compute_dtype,
        on_gpu=on_gpu(),
        dequantize=recipe.lora is None,
    )
    for notice in base_model.notices:
        emit(notice)
    stop.raise_if_asked("before the first step")
    if resolved.packed_length is not None:
        check_packable(base_model.model)
    check_context(base_model.info, rows.train.rows, resolved.packed_length)
    spec = _attach(base_model, recipe, base, emit)
    stream = Stream(
        rows.train.rows,
        batch_size=int(recipe.training.batch_size),
        accumulation=recipe.training.gradient_accumulation_steps,
        packed_length=resolved.packed_length,
        seed=recipe.seed,
    )
    total = total_steps or resolved.total_steps
    return Prepared(
        recipe=recipe,
        reasons=resolved.reasons,
        identity=_identity(loaded.recipe, base_model.info, tokenizer, rows, base),
        model=base_model.model,
        info=base_model.info,
        tokenizer=tokenizer,
        spec=spec,
        trainer=_trainer(base_model.model, objective, recipe, is_packed=resolved.packed_length is not None),
        stream=stream,
        valid_batches=tuple(ordered_batches(rows.valid.rows, int(recipe.training.batch_size))),
        schedule=build_schedule(
            recipe.training,
            learning_rate=float(recipe.training.learning_rate),
            warmup_steps=recipe.training.warmup_steps or 0,
            total_steps=total,
        ),
        total_steps=total,
        limits=resolved.limits,
        device=device_name(),
        row_names=tuple(f"{row.source}:{row.line}" for row in rows.train.rows),
        num_valid_rows=len(rows.valid.rows),
    )


def read_facts(folder: Path, rows: Sequence[Tokens], *, seed: int) -> Facts:
    """What the rules behind "auto" look at, from the model's config, the rows and this machine."""
    config = json.loads((folder / "config.json").read_bytes())
    quantization = config.get("quantization") or {}
    working_set = mx.device_info().get("max_recommended_working_set_size") if on_gpu() else None
    return Facts(
        lengths=epoch_lengths(rows, seed),
        shape=read_shape(config),
        machine=read_machine(on_gpu=on_gpu(), working_set_bytes=int(working_set) if working_set else None),
        unpackable=why_unpackable(str(config.get("model_type"))),
        stored_bits=quantization.get("bits"),
    )


def check_context(info: ModelInfo, rows: Sequence[Tokens], packed_length: int | None) -> None:
    """Refuse sequences longer than the model's context. Raises ``DataError`` naming the longest row."""
    longest = max(rows, key=lambda row: len(row.ids))
    length = max(len(longest.ids) - 1, packed_length or 0)
    if info.context_length is not None and length > info.context_length:
        raise DataError(
            f"{longest.source}:{longest.line} has {length} tokens, but {info.name} reads at most {info.context_length}",
            f"set data.max_seq_length = {info.context_length} or less",
        )


def device_name() -> str:
    """What MLX computes on, for instance ``"Apple M3 Max GPU"`` or ``"CPU"``."""
    if not on_gpu():
        return "CPU"
    return f"{mx.device_info().get('device_name', 'unknown')} GPU"


def _read_rows(recipe: Recipe, objective: Objective, tokenizer: Tokenizer, base: Path, emit: Emit) -> _Rows:
    """Every row of train and valid as tokens. Raises ``DataError`` when nothing is left to train on."""
    emit(Phase("read", detail=recipe.data.path or recipe.data.train or "sources"))
    splits = load_splits(recipe.data, base=base)
    for problem in splits.problems:
        emit(Notice("warning", f"{problem.where}: {problem.message}", problem.hint))
    tokenized: list[TokenizedSplit] = []
    for name, examples in (("train", splits.train), ("valid", splits.valid)):

        def progress(done: int, total: int, name: str = name) -> None:
            emit(Phase("tokenise", detail=name, done=done, total=total, unit="rows"))

        split = objective.read_rows(examples, tokenizer, recipe.data, progress)
        for sentence in _what_was_lost(name, split.report):
            emit(Notice("warning", sentence, "mlxft data check RECIPE lists every one"))
        tokenized.append(split)
    if not tokenized[0].rows:
        raise DataError(
            "no training row is left: every one was too long, had no target or could not be rendered",
            "see which and why with: mlxft data check RECIPE",
        )
    return _Rows(tokenized[0], tokenized[1], splits.content_hash)


def _what_was_lost(name: str, report: TokenizeReport) -> list[str]:
    """One sentence for each way in which rows were dropped or changed, with the first one's place."""
    words = {
        "refused": "could not be rendered and were left out",
        "too_long": "are longer than max_seq_length and were left out",
        "cut": "were cut to max_seq_length",
        "split": "were split at max_seq_length",
        "no_target": "have nothing to learn and were left out",
    }
    found: list[str] = []
    for outcome, entry in report.outcomes.items():
        if outcome in words and entry.count:
            first = f" (first: {entry.rows[0].where}: {entry.rows[0].message})" if entry.rows else ""
            found.append(f"{name}: {entry.count} of {report.num_examples} rows {words[outcome]}{first}")
    return found


def _attach(base_model: LoadedModel, recipe: Recipe, base: Path, emit: Emit) -> AdapterSpec | None:
    """Make the right weights trainable, start from another run's adapter if asked, add noise and recomputation."""
    model = base_model.model
    spec = None
    if recipe.lora is not None:
        spec = attach_adapter(model, recipe.lora, seed=recipe.seed)
        if recipe.adapter:
            spec = _start_from(model, spec, recipe, base, emit)
    else:
        full_parameters(model)
    if recipe.training.neftune_alpha:
        add_neftune(embedding(model), recipe.training.neftune_alpha)
    if recipe.training.gradient_checkpointing:
        checkpoint_blocks(model)
    return spec


def _start_from(model: nn.Module, spec: AdapterSpec, recipe: Recipe, base: Path, emit: Emit) -> AdapterSpec:
    """Put the weights of another run's adapter into ``model``; it must have the shape that [lora] asks for."""
    folder = adapter_folder(recipe.adapter, base)
    loaded = load_adapter(model, folder)
    pairs = (
        ("rank", spec.rank, loaded.rank),
        ("scale", spec.scale, loaded.scale),
        ("use_dora", spec.use_dora, loaded.use_dora),
        ("modules", spec.module_paths, loaded.module_paths),
    )
    different = [f"{name} {theirs} instead of {ours}" for name, ours, theirs in pairs if ours != theirs]
    if different:
        raise RunError(
            f"the adapter in {folder} is not what [lora] describes: {'; '.join(different)[:300]}",
            "copy the [lora] section of the run it comes from",
        )
    for layer in adapter_layers(model).values():
        layer.dropout = spec.dropout
    emit(Notice("info", f"starting from the adapter in {folder}"))
    return spec


def adapter_folder(name: str, base: Path) -> Path:
    """Where the adapter of a run, a checkpoint, or any adapter folder lies. Raises ``RunError`` where there is none."""
    for folder in (base / name, Path(name).expanduser()):
        if (folder / rundir.ADAPTER_CONFIG).is_file():
            return folder
    run = rundir.find_run(name, base=base)
    for folder in (run.path, *reversed(run.checkpoints())):
        if (folder / rundir.ADAPTER_CONFIG).is_file():
            return folder
    raise RunError(f"{run.path} has no adapter yet", "wait for its first checkpoint")


def _identity(recipe: Recipe, info: ModelInfo, tokenizer: Tokenizer, rows: _Rows, base: Path) -> Identity:
    adapter = ""
    if recipe.adapter:
        folder = adapter_folder(recipe.adapter, base)
        names = (rundir.PEFT_WEIGHTS, rundir.MLX_WEIGHTS)
        adapter = " ".join(hash_file(folder / name) for name in names if (folder / name).is_file())
    return Identity(
        recipe=recipe_identity(recipe),
        data_sha256=rows.content_hash,
        model_sha256=info.sha256,
        tokenizer_sha256=tokenizer.content_hash,
        adapter_sha256=adapter,
        order=ORDER_ID,
        versions=current_versions(),
    )


def _trainer(model: nn.Module, objective: Objective, recipe: Recipe, *, is_packed: bool) -> Trainer:
    """The trainable parameters with their optimizer; embeddings, norms and biases are not decayed."""
    training = recipe.training
    parameters = (
        adapter_parameters(model) if recipe.lora is not None else dict(tree_flatten(model.trainable_parameters()))
    )
    parameters = {name: parameters[name] for name in sorted(parameters)}
    undecayed = [f"{path}.weight" for path, module in model.named_modules() if isinstance(module, nn.Embedding)]
    optimizer = AdamW(
        beta1=training.adam_beta1,
        beta2=training.adam_beta2,
        epsilon=training.adam_epsilon,
        weight_decay=training.weight_decay,
        decayed=decayed_names(parameters, undecayed),
    )
    return Trainer(
        model,
        objective,
        optimizer,
        parameters,
        seed=recipe.seed,
        max_grad_norm=training.max_grad_norm,
        is_packed=is_packed,
    )
