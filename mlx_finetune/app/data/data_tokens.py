"""The rows of a recipe in tokens: lengths, what becomes of rows that are too long, the share that is learned."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlx_finetune.app.data.data_report import TokenReport
from mlx_finetune.dataset.corpus import Splits
from mlx_finetune.dataset.formats import Example
from mlx_finetune.dataset.pairs import sequence_lengths, tokenize_rows
from mlx_finetune.dataset.stats import summarize_lengths
from mlx_finetune.dataset.template import nothing_left
from mlx_finetune.dataset.token_rows import rows_of
from mlx_finetune.dataset.tokens import Outcome, Tally, TokenizeReport
from mlx_finetune.errors import Problem
from mlx_finetune.events import Phase
from mlx_finetune.model.scratch.begin import recipe_model
from mlx_finetune.model.tokens.tokenizer import ModelTokenizer, load_tokenizer
from mlx_finetune.recipe.learned import learned_by
from mlx_finetune.recipe.schema import Recipe

#: Beyond every length: rows are measured whole, and those longer than the recipe allows are read again as it says.
NO_LIMIT = 1 << 30

#: What can become of a row because it is too long; everything else was found when it was read whole.
_BY_LENGTH = ("too_long", "cut", "split", "no_target", "refused")


@dataclass(frozen=True, slots=True)
class _Counted:
    """One split: ``lengths`` of its whole rows; ``report`` is on whole rows, its outcomes those of a training."""

    name: str
    lengths: NDArray[np.integer]
    report: TokenizeReport
    num_usable: int


def count_tokens(recipe: Recipe, splits: Splits, base: Path, report: Callable[[Phase], None]) -> TokenReport:
    """Tokenise every row with the recipe's model and template. Raises ``MlxftError`` where that cannot be done."""
    local = recipe_model(recipe, base=base, report=report)
    tokenizer = load_tokenizer(local.folder, chat_template=recipe.data.chat_template)
    named = (("train", splits.train), ("valid", splits.valid), ("test", splits.test))
    parts = [_count(name, examples, recipe, tokenizer, base) for name, examples in named if examples]
    lengths = np.concatenate([part.lengths for part in parts]) if parts else np.zeros(0, np.int64)
    num_tokens = sum(part.report.num_tokens for part in parts)
    num_targets = sum(part.report.num_targets for part in parts)
    return TokenReport(
        summarize_lengths(lengths.tolist(), "tokens"),
        recipe.data.max_seq_length,
        recipe.data.truncation,
        int(np.count_nonzero(lengths > recipe.data.max_seq_length)),
        num_targets / num_tokens if num_tokens else 0.0,
        parts[0].report.method if parts else "",
        _joined_outcomes(sorted(parts, key=lambda part: part.num_usable > 0)),  # what stops a training first
        tuple(_problem(part, recipe) for part in parts if part.name != "test" and not part.num_usable),
        learned_by(recipe.task).of_a_row,
    )


def _count(name: str, examples: Sequence[Example], recipe: Recipe, tokenizer: ModelTokenizer, base: Path) -> _Counted:
    """Every row whole, then those that are too long as the recipe treats them."""
    data = recipe.data.model_copy(update={"max_seq_length": NO_LIMIT, "truncation": "drop"})
    whole = tokenize_rows(examples, tokenizer, data, task=recipe.task, base=base, may_be_empty=True)
    rows = rows_of(whole.rows)
    places = [(row.source, row.line) for row in rows]
    lengths = sequence_lengths(rows, recipe.task)
    long = {place for place, one in zip(places, lengths.tolist(), strict=True) if one > recipe.data.max_seq_length}
    if not long:
        return _Counted(name, lengths, whole.report, len(rows))
    chosen = [example for example in examples if (example.source, example.line) in long]
    again = tokenize_rows(chosen, tokenizer, recipe.data, task=recipe.task, base=base, may_be_empty=True).report
    by_length = {kind: outcome for kind, outcome in again.outcomes.items() if kind in _BY_LENGTH}
    outcomes = _sum_of(whole.report.outcomes, by_length)
    num_usable = sum(place not in long for place in places) + again.num_rows
    return _Counted(name, lengths, replace(whole.report, outcomes=outcomes), num_usable)


def _problem(part: _Counted, recipe: Recipe) -> Problem:
    """That a training would refuse this split; its rows are among the outcomes."""
    error = nothing_left(part.report, recipe.data, part.name)
    return Problem("", error.message, error.hint)


def _joined_outcomes(parts: Sequence[_Counted]) -> Mapping[str, Outcome]:
    joined: Mapping[str, Outcome] = {}
    for part in parts:
        joined = _sum_of(joined, part.report.outcomes)
    return joined


def _sum_of(one: Mapping[str, Outcome], other: Mapping[str, Outcome]) -> Mapping[str, Outcome]:
    tally = Tally()
    for outcomes in (one, other):
        tally.add_outcomes(outcomes)
    return tally.outcomes()
