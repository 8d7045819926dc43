"""The rows of a recipe in tokens, as a plan counts them: with the model's tokenizer, or by their characters."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlx_finetune.app.planning.characters import num_characters
from mlx_finetune.dataset.corpus import Splits
from mlx_finetune.dataset.formats import Example
from mlx_finetune.dataset.pairs import sequence_lengths, tokenize_rows
from mlx_finetune.dataset.row_states import num_states
from mlx_finetune.dataset.stats import Lengths, summarize_lengths
from mlx_finetune.dataset.template import refuse_empty
from mlx_finetune.dataset.token_rows import rows_of
from mlx_finetune.dataset.tokens import TokenizeReport
from mlx_finetune.errors import DataError
from mlx_finetune.hardware.planning.row_lengths import planned_lengths
from mlx_finetune.hardware.planning.shapes import ModelShape
from mlx_finetune.model.sources.fetch import LocalModel
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.units import counted

CHARACTERS_PER_TOKEN = 4

_BY_LENGTH = {
    "too_long": "longer than max_seq_length and left out",
    "cut": "cut to max_seq_length",
    "split": "split at max_seq_length",
}
_NOT_USED = {"refused": "that could not be rendered", "no_target": "with nothing to learn"}


@dataclass(frozen=True, slots=True)
class TokenCount:
    """The training rows in tokens. ``num_used`` of ``num_read`` rows are used, ``lengths`` are of the sequences made of
    them, ``num_cut`` rows are longer than ``max_seq_length``; a share is None where only the real tokenizer could tell
    it, and so are the targets of the sequence that has most. ``lost`` names what else became of rows, validation rows
    included; ``num_valid`` of those are used, with ``valid_positions`` to predict from."""

    lengths: Lengths
    num_read: int
    num_used: int
    num_cut: int
    target_share: float | None
    method: str
    lost: tuple[str, ...]
    num_valid: int
    valid_positions: int
    most_targets: int | None = None


def count_tokens(
    splits: Splits, recipe: Recipe, local: LocalModel, base: Path, shape: ModelShape
) -> tuple[NDArray[np.integer], TokenCount, int]:
    """The rows in tokens, and the bytes of the tokenizer beside the weights in every checkpoint."""
    from mlx_finetune.model.tokens.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(local.folder, chat_template=recipe.data.chat_template)
    split, valid = (
        refuse_empty(
            tokenize_rows(examples, tokenizer, recipe.data, task=recipe.task, base=base),
            recipe.data,
            name,
            shape.context_length,
        )
        for name, examples in (("train", splits.train), ("valid", splits.valid))
    )
    rows = rows_of(split.rows)
    lengths = planned_lengths(rows, recipe, shape.model_type)
    report = split.report
    cut = sum(report.count(outcome) for outcome in _BY_LENGTH)
    lost = (*_lost("training", report, _NOT_USED), *_lost("validation", valid.report, {**_BY_LENGTH, **_NOT_USED}))
    summary = summarize_lengths(sequence_lengths(rows, recipe.task).tolist(), "tokens")
    beside = sum(len(text.encode("utf-8")) for text in tokenizer.files().values())
    positions = int(num_states(rows_of(valid.rows).lengths).sum())
    share, most = report.target_share, rows.most_targets()
    counts = (len(splits.train), report.num_used, cut)
    count = TokenCount(summary, *counts, share, report.method, lost, valid.report.num_used, positions, most)
    return lengths, count, beside


def _lost(name: str, report: TokenizeReport, kinds: Mapping[str, str]) -> Iterator[str]:
    """What became of rows of one split, as sentences."""
    for outcome, words in kinds.items():
        if number := report.count(outcome):
            yield f"{name} data: {counted(number, 'row')} {words}"


def estimate_tokens(splits: Splits, recipe: Recipe) -> tuple[NDArray[np.integer], TokenCount]:
    """Four characters a token; rows that would be too long are dropped or cut as the recipe says."""
    limit = recipe.data.max_seq_length

    def estimate(examples: Sequence[Example], name: str) -> tuple[NDArray[np.int64], int]:
        lengths = np.array([max(2, num_characters(one) // CHARACTERS_PER_TOKEN) for one in examples], np.int64)
        kept = lengths[lengths <= limit] if recipe.data.truncation == "drop" else np.minimum(lengths, limit)
        if len(examples) and not len(kept):
            raise DataError(f"every {name} row seems longer than max_seq_length = {limit}", "raise data.max_seq_length")
        return kept, int(np.count_nonzero(lengths > limit))

    (kept, num_cut), (valid, _) = estimate(splits.train, "training"), estimate(splits.valid, "validation")
    summary = summarize_lengths(kept.tolist(), "tokens")
    counts = (len(splits.train), len(kept), num_cut)
    return kept, TokenCount(summary, *counts, None, "", (), len(valid), int(num_states(valid).sum()))
