"""The rows of a run as tokens, what was lost on the way, and the facts that automatic choices are made from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from mlx_finetune.dataset.card import DataCard, card_of
from mlx_finetune.dataset.corpus import CORRECTED, hash_files, load_splits, locate_sources
from mlx_finetune.dataset.corrections import as_at_start, corrections_sentence, find_corrections, note_sizes
from mlx_finetune.dataset.labels import balance, check_labels, counts_of, renumbered
from mlx_finetune.dataset.pairs import IS_GOOD, WEIGHT, num_read, sequence_lengths
from mlx_finetune.dataset.prompts import template_hash
from mlx_finetune.dataset.row import DataFile
from mlx_finetune.dataset.row_states import num_states
from mlx_finetune.dataset.template import refuse_empty
from mlx_finetune.dataset.token_cache import CachedSplits, TokenCache, cache_key, code_hash
from mlx_finetune.dataset.token_rows import TokenRows, rows_of
from mlx_finetune.dataset.tokens import TokenizedSplit, TokenizeReport
from mlx_finetune.errors import DataError, ModelError, Problem
from mlx_finetune.events import Event, Notice, Phase
from mlx_finetune.hardware.limits import read_machine
from mlx_finetune.hardware.planning.disk import free_bytes
from mlx_finetune.hardware.planning.facts import Facts
from mlx_finetune.hardware.planning.layout import why_unpackable
from mlx_finetune.hardware.planning.row_lengths import planned_lengths
from mlx_finetune.hardware.planning.shapes import read_shape
from mlx_finetune.model.files.config import read_config, too_long
from mlx_finetune.model.inside.parts import check_ids
from mlx_finetune.model.load import ModelInfo, on_gpu
from mlx_finetune.model.sources.catalogue import TOKENS, cache_folder
from mlx_finetune.model.tokens.tokenizer import ModelTokenizer
from mlx_finetune.recipe.learned import learned_by
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.train.objective import Objective, num_outputs
from mlx_finetune.train.objectives.grpo.problems import check_references
from mlx_finetune.units import counted

Emit = Callable[[Event], None]

_PACKAGE = Path(__file__).resolve().parents[2]

_LOSSES = {
    "refused": ("could not be rendered and was left out", "could not be rendered and were left out"),
    "too_long": (
        "is longer than max_seq_length and was left out",
        "are longer than max_seq_length and were left out",
    ),
    "cut": ("was cut to max_seq_length", "were cut to max_seq_length"),
    "split": ("was split at max_seq_length", "were split at max_seq_length"),
    "no_target": ("has nothing to learn and was left out", "have nothing to learn and were left out"),
    "same_answers": ("has two equal answers and was left out", "have two equal answers and were left out"),
    "unknown": (
        "has characters that the tokenizer does not know",
        "have characters that the tokenizer does not know",
    ),
    "reasoning_left_out": ("lost reasoning that the template does not write",) * 2,
}


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """Rows to train on and to evaluate; ``content_hash`` is the SHA-256 of the files they come from.

    ``corrections`` has the bytes of each file of corrections that is among them, ``card`` what became of every row.
    ``labels`` are the classes of a classification, in the order of their numbers.
    """

    train: TokenRows
    valid: TokenRows
    content_hash: str
    corrections: Mapping[str, int]
    card: DataCard
    labels: tuple[str, ...] = ()


def read_rows(
    recipe: Recipe,
    objective: Objective,
    tokenizer: ModelTokenizer,
    base: Path,
    emit: Emit,
    corrections: Mapping[str, int] | None = None,
    *,
    context: int | None = None,
) -> TrainingRows:
    """Every row of train and valid as tokens. Raises ``DataError`` when nothing is left to train on, or nothing that a
    reward could compare with.

    Rows that an earlier start has made of the same files, with the same settings and code, are taken as they are. Of
    files of corrections the bytes count that ``corrections`` says, or all that are there now. ``context`` is how many
    tokens the model reads at most.
    """
    emit(Phase("read", detail=recipe.data.path or recipe.data.train or "sources"))
    now = find_corrections(recipe, base=base)
    corrected = now if corrections is None else as_at_start(now, corrections)
    if recipe.data.corrections is not False:
        emit(Notice("info", corrections_sentence(corrected)))
    cache = TokenCache(cache_folder() / TOKENS)
    key, content_hash = _key(recipe, tokenizer, base, corrected)
    found = cache.load(key) if key else None
    if found is None:
        made = _make_rows(recipe, objective, tokenizer, base, emit, corrected, context)
        found = _store(cache, key, made, emit) if made.content_hash == content_hash else made
    else:
        _report_all(found, recipe.task, emit)
    train, valid = (rows_of(found.splits[name].rows) for name in ("train", "valid"))
    if not train:
        raise DataError(
            "no training row is left: every one was too long, had no target or could not be rendered",
            "see which and why with: mlxft data check RECIPE",
        )
    patience = recipe.training.early_stopping_patience
    if patience and not valid:
        what = f"training.early_stopping_patience = {patience} ends nothing: there are no validation rows"
        emit(Notice("warning", what, "set data.val_split, or name data.train and data.valid"))
    check_references(recipe, train, valid, tokenizer)
    reports = {name: split.report for name, split in found.splits.items()}
    labels = reports["train"].labels
    if labels:
        check_labels(labels, train.where(0))
        valid = renumbered(valid, reports["valid"].labels, labels)
        emit(Notice("info", balance(counts_of(train, labels))))
    return TrainingRows(train, valid, found.content_hash, note_sizes(corrected), card_of(found), labels)


def _make_rows(
    recipe: Recipe,
    objective: Objective,
    tokenizer: ModelTokenizer,
    base: Path,
    emit: Emit,
    corrections: Sequence[DataFile],
    context: int | None,
) -> CachedSplits:
    """Read, render and tokenise; what is to be said is said as it is found."""
    splits = load_splits(recipe.data, base=base, task=recipe.task, corrections=corrections)
    _report_problems(splits.problems, splits.note, emit)
    tokenized: dict[str, TokenizedSplit] = {}
    for name, examples in (("train", splits.train), ("valid", splits.valid)):

        def progress(done: int, total: int, name: str = name) -> None:
            emit(Phase("tokenise", detail=name, done=done, total=total, unit="rows"))

        made = objective.read_rows(examples, tokenizer, recipe.data, base, progress)
        tokenized[name] = refuse_empty(made, recipe.data, name, context)
        _report(name, tokenized[name].report, recipe.task, emit)
    return CachedSplits(tokenized, splits.problems, splits.content_hash, splits.note)


def _store(cache: TokenCache, key: str, made: CachedSplits, emit: Emit) -> CachedSplits:
    """``made`` from the file it was written to, so that the process need not hold it; as it is where that fails."""
    try:
        cache.store(key, made)
    except OSError as error:
        what = f"the tokens of this data cannot be kept for the next start: {error.strerror or error}"
        emit(Notice("info", what, "MLXFT_CACHE=FOLDER keeps them in another place"))
        return made
    return cache.load(key) or made


def _key(recipe: Recipe, tokenizer: ModelTokenizer, base: Path, corrections: Sequence[DataFile]) -> tuple[str, str]:
    """The key of the rows that ``recipe`` makes, and the hash of its files; empty where these cannot be read.

    Everything of [data] is in it but ``packing``, which comes after the tokens.
    """
    data = recipe.data
    files = [
        (split, file) for source in locate_sources(data, base) for split, its in source.located.items() for file in its
    ]
    files += [(CORRECTED, file) for file in corrections]
    try:
        content_hash = hash_files([file for _, file in files])
        prompt_hash = template_hash(data.prompt_template, base=base)
    except OSError:
        return "", ""
    parts = {
        "code": code_hash({name: _PACKAGE / name for name in ("dataset", "model")}),
        "versions": {name: metadata.version(name) for name in ("tokenizers", "jinja2", "numpy")},
        "task": recipe.task,
        "data": data.model_dump(mode="json", exclude={"packing"}),
        "files": [(split, file.source, file.table) for split, file in files],
        "content": content_hash,
        "prompt template": prompt_hash,
        "tokenizer": tokenizer.settings_hash,
    }
    return cache_key(parts), content_hash


def _report_all(found: CachedSplits, task: str, emit: Emit) -> None:
    """What was said when these rows were made."""
    _report_problems(found.problems, found.note, emit)
    for name, split in found.splits.items():
        _report(name, split.report, task, emit)


def _report_problems(problems: Sequence[Problem], note: str, emit: Emit) -> None:
    if note:
        emit(Notice("info", note))
    for problem in problems:
        emit(Notice("warning", f"{problem.where}: {problem.message}", problem.hint))


def _report(name: str, report: TokenizeReport, task: str, emit: Emit) -> None:
    """Say how the masks were made, and every way in which rows were dropped or changed, with the first one's place."""
    if name == "train":
        emit(Notice("info", _learned(report, task)))
        for note in report.notes:
            emit(Notice("info", note))
    for outcome, entry in report.outcomes.items():
        if outcome in _LOSSES and entry.count:
            first = f" (first: {entry.rows[0].where}: {entry.rows[0].message})" if entry.rows else ""
            of = f"{entry.count} of {counted(report.num_examples, 'row')}"
            what = f"{name}: {of} {_LOSSES[outcome][entry.count != 1]}{first}"
            if outcome == "split":  # nothing is lost by it
                emit(Notice("info", what))
            else:
                emit(Notice("warning", what, "see them with file and line: mlxft data check RECIPE"))


def _learned(report: TokenizeReport, task: str) -> str:
    """How much is learned of the tokens, or what else is learned of a row."""
    if of_a_row := learned_by(task).of_a_row:
        return f"{report.num_tokens} tokens; {of_a_row[0].lower()}{of_a_row[1:].removesuffix('.')}"
    share = f"{100 * report.target_share:.0f} % of {report.num_tokens} tokens are learned"
    return f"{share}; mask by {report.method}" if report.method else share


def read_facts(
    folder: Path, rows: TrainingRows, recipe: Recipe, objective: Objective, *, num_processes: int = 1
) -> Facts:
    """What the rules behind "auto" look at, from the model's config, the rows and this machine.

    Raises ``ModelError`` where the config does not say how large the model is.
    """
    config = read_config(folder)
    model_type, quantization = str(config.get("model_type")), config.get("quantization")
    bits = quantization.get("bits") if isinstance(quantization, dict) else None
    try:
        shape = replace(read_shape(config), num_outputs=num_outputs(objective, rows.labels))
    except ValueError as error:
        raise ModelError(f"{folder}: {error}", "fetch or copy the model again") from error
    working_set = mx.device_info().get("max_recommended_working_set_size") if on_gpu() else None
    return Facts(
        lengths=planned_lengths(rows.train, recipe, model_type),
        shape=shape,
        machine=read_machine(on_gpu=on_gpu(), working_set_bytes=int(working_set) if working_set else None),
        unpackable=objective.unpackable or why_unpackable(model_type),
        stored_bits=bits if isinstance(bits, int) else None,
        most_targets=rows.train.most_targets(),
        train_positions=int(num_states(rows.train.lengths).sum()),
        valid_positions=int(num_states(rows.valid.lengths).sum()),
        num_valid=len(rows.valid),
        free_disk_bytes=free_bytes(recipe.run_folder),
        num_processes=num_processes,
        answers=_answers(rows.train) if recipe.task == "kto" else None,
    )


def _answers(rows: TokenRows) -> tuple[float, float]:
    """Answers marked good and bad, each as often as an epoch shows it and times what its loss is multiplied by."""
    counts, is_good = rows.weights * rows.values[:, WEIGHT], rows.values[:, IS_GOOD]
    return float((counts * is_good).sum()), float((counts * (1 - is_good)).sum())


def check_context(info: ModelInfo, rows: TrainingRows, packed_length: int | None, task: str) -> None:
    """Refuse sequences longer than the model's context. Raises ``DataError`` naming the longest row."""
    found = [(part, sequence_lengths(part, task)) for part in (rows.train, rows.valid) if part]
    longest, lengths = max(found, key=lambda one: int(one[1].max()))
    row = int(lengths.argmax())
    length = max(int(lengths[row]), (packed_length or 0) + 1)
    if info.context_length is not None and num_read(length, task) > info.context_length:
        raise too_long(longest.where(row), length, info.name, info.context_length)


def check_vocabulary(model: nn.Module, tokenizer: ModelTokenizer, rows: TrainingRows) -> None:
    """Refuse a tokenizer or a row with token ids that the model has no embedding for. Raises ``ModelError``."""
    check_ids(model, [tokenizer.largest_id()], "the tokenizer")
    for part in (rows.train, rows.valid):
        row, largest = part.row_with_largest_id()
        if row >= 0:
            check_ids(model, [largest], part.where(row))
