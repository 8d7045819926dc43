"""The rows of a run as tokens, what was lost on the way, and the facts that automatic choices are made from."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from mlx_finetune.dataset.corpus import load_splits
from mlx_finetune.dataset.stream import epoch_lengths
from mlx_finetune.dataset.tokens import TokenizedSplit, Tokenizer, TokenizeReport, Tokens
from mlx_finetune.errors import DataError, ModelError
from mlx_finetune.events import Event, Notice, Phase
from mlx_finetune.hardware.auto import Facts
from mlx_finetune.hardware.layout import why_unpackable
from mlx_finetune.hardware.limits import read_machine
from mlx_finetune.hardware.shapes import read_shape
from mlx_finetune.model.config import read_config
from mlx_finetune.model.load import ModelInfo, on_gpu
from mlx_finetune.model.parts import check_ids
from mlx_finetune.model.tokenizer import ModelTokenizer
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.train.objective import Objective

Emit = Callable[[Event], None]

_LOSSES = {
    "refused": "could not be rendered and were left out",
    "too_long": "are longer than max_seq_length and were left out",
    "cut": "were cut to max_seq_length",
    "split": "were split at max_seq_length",
    "no_target": "have nothing to learn and were left out",
    "reasoning_left_out": "lost reasoning that the template does not write",
}


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """Rows to train on and to evaluate; ``content_hash`` is the SHA-256 of the files they come from."""

    train: tuple[Tokens, ...]
    valid: tuple[Tokens, ...]
    content_hash: str


def read_rows(recipe: Recipe, objective: Objective, tokenizer: Tokenizer, base: Path, emit: Emit) -> TrainingRows:
    """Every row of train and valid as tokens. Raises ``DataError`` when nothing is left to train on."""
    emit(Phase("read", detail=recipe.data.path or recipe.data.train or "sources"))
    splits = load_splits(recipe.data, base=base)
    for problem in splits.problems:
        emit(Notice("warning", f"{problem.where}: {problem.message}", problem.hint))
    tokenized: list[TokenizedSplit] = []
    for name, examples in (("train", splits.train), ("valid", splits.valid)):

        def progress(done: int, total: int, name: str = name) -> None:
            emit(Phase("tokenise", detail=name, done=done, total=total, unit="rows"))

        split = objective.read_rows(examples, tokenizer, recipe.data, base, progress)
        _report(name, split.report, emit)
        tokenized.append(split)
    train, valid = tokenized
    if not train.rows:
        raise DataError(
            "no training row is left: every one was too long, had no target or could not be rendered",
            "see which and why with: mlxft data check RECIPE",
        )
    return TrainingRows(train.rows, valid.rows, splits.content_hash)


def _report(name: str, report: TokenizeReport, emit: Emit) -> None:
    """Say how the masks were made, and every way in which rows were dropped or changed, with the first one's place."""
    if name == "train":
        share = f"{100 * report.target_share:.0f} % of {report.num_tokens} tokens are learned"
        emit(Notice("info", f"{share}; mask by {report.method}" if report.method else share))
        for note in report.notes:
            emit(Notice("info", note))
    for outcome, entry in report.outcomes.items():
        if outcome in _LOSSES and entry.count:
            first = f" (first: {entry.rows[0].where}: {entry.rows[0].message})" if entry.rows else ""
            what = f"{name}: {entry.count} of {report.num_examples} rows {_LOSSES[outcome]}{first}"
            emit(Notice("warning", what, "mlxft data check RECIPE lists every one"))


def read_facts(folder: Path, rows: TrainingRows, seed: int) -> Facts:
    """What the rules behind "auto" look at, from the model's config, the rows and this machine.

    Raises ``ModelError`` where the config does not say how large the model is.
    """
    config = read_config(folder)
    quantization = config.get("quantization")
    bits = quantization.get("bits") if isinstance(quantization, dict) else None
    try:
        shape = read_shape(config)
    except ValueError as error:
        raise ModelError(f"{folder}: {error}", "fetch or copy the model again") from error
    working_set = mx.device_info().get("max_recommended_working_set_size") if on_gpu() else None
    return Facts(
        lengths=epoch_lengths(rows.train, seed),
        shape=shape,
        machine=read_machine(on_gpu=on_gpu(), working_set_bytes=int(working_set) if working_set else None),
        unpackable=why_unpackable(str(config.get("model_type"))),
        stored_bits=bits if isinstance(bits, int) else None,
    )


def check_context(info: ModelInfo, rows: TrainingRows, packed_length: int | None) -> None:
    """Refuse sequences longer than the model's context. Raises ``DataError`` naming the longest row."""
    longest = max((*rows.train, *rows.valid), key=lambda row: len(row.ids))
    length = max(len(longest.ids) - 1, packed_length or 0)
    if info.context_length is not None and length > info.context_length:
        raise DataError(
            f"{longest.source}:{longest.line} has {length} tokens, but {info.name} reads at most {info.context_length}",
            f"set data.max_seq_length = {info.context_length} or less",
        )


def check_vocabulary(model: nn.Module, tokenizer: ModelTokenizer, rows: TrainingRows) -> None:
    """Refuse a tokenizer or a row with token ids that the model has no embedding for. Raises ``ModelError``."""
    check_ids(model, [tokenizer.largest_id()], "the tokenizer")
    row = max((*rows.train, *rows.valid), key=lambda row: int(row.ids.max()))
    check_ids(model, [int(row.ids.max())], f"{row.source}:{row.line}")
