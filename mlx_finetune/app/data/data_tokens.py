"""The rows of a recipe in tokens: lengths, what becomes of rows that are too long, the share that is learned."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlx_finetune.app.data.data_report import TokenReport
from mlx_finetune.dataset.corpus import Splits
from mlx_finetune.dataset.formats import Example
from mlx_finetune.dataset.pairs import num_read, sequence_lengths, tokenize_rows
from mlx_finetune.dataset.stats import summarize_lengths
from mlx_finetune.dataset.template import nothing_left
from mlx_finetune.dataset.token_rows import TokenRows, rows_of
from mlx_finetune.dataset.tokens import Outcome, Tally, TokenizeReport
from mlx_finetune.errors import Problem
from mlx_finetune.events import Phase
from mlx_finetune.model.files.config import context_of, too_long
from mlx_finetune.model.scratch.begin import recipe_model
from mlx_finetune.model.sources.fetch import LocalModel
from mlx_finetune.model.tokens.tokenizer import ModelTokenizer, load_tokenizer
from mlx_finetune.recipe.learned import learned_by
from mlx_finetune.recipe.schema import Recipe

#: Beyond every length: rows are measured whole, and those longer than the recipe allows are read again as it says.
NO_LIMIT = 1 << 30

#: What can become of a row because it is too long; everything else was found when it was read whole.
_BY_LENGTH = ("too_long", "cut", "split", "no_target", "refused")


@dataclass(frozen=True, slots=True)
class _Counted:
    """One split: ``lengths`` of its whole rows; ``report`` is on whole rows, its outcomes those of a training, which
    has ``num_usable`` rows, the longest of them ``longest`` tokens long and from ``where``."""

    name: str
    lengths: NDArray[np.integer]
    report: TokenizeReport
    num_usable: int
    longest: int
    where: str


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
        tuple(_problems([part for part in parts if part.name != "test"], recipe, local)),
        learned_by(recipe.task).of_a_row,
    )


def _count(name: str, examples: Sequence[Example], recipe: Recipe, tokenizer: ModelTokenizer, base: Path) -> _Counted:
    """Every row whole, then those that are too long as the recipe treats them."""
    data = recipe.data.model_copy(update={"max_seq_length": NO_LIMIT, "truncation": "drop"})
    whole = tokenize_rows(examples, tokenizer, data, task=recipe.task, base=base)
    rows = rows_of(whole.rows)
    places = [(row.source, row.line) for row in rows]
    lengths = sequence_lengths(rows, recipe.task)
    long = {place for place, one in zip(places, lengths.tolist(), strict=True) if one > recipe.data.max_seq_length}
    if not long:
        return _Counted(name, lengths, whole.report, len(rows), *_longest(rows, lengths))
    chosen = [example for example in examples if (example.source, example.line) in long]
    again = tokenize_rows(chosen, tokenizer, recipe.data, task=recipe.task, base=base)
    by_length = {kind: outcome for kind, outcome in again.report.outcomes.items() if kind in _BY_LENGTH}
    outcomes = _sum_of(whole.report.outcomes, by_length)
    is_short = np.array([place not in long for place in places])
    cut = rows_of(again.rows)
    found = (_longest(rows, lengths * is_short), _longest(cut, sequence_lengths(cut, recipe.task)))
    longest = max(found, key=lambda one: one[0])
    num_usable = int(is_short.sum()) + again.report.num_rows
    return _Counted(name, lengths, replace(whole.report, outcomes=outcomes), num_usable, *longest)


def _longest(rows: TokenRows, lengths: NDArray[np.integer]) -> tuple[int, str]:
    """Tokens of the longest row, and where it is from."""
    return (int(lengths.max()), rows.where(int(lengths.argmax()))) if len(rows) else (0, "")


def _problems(parts: Sequence[_Counted], recipe: Recipe, local: LocalModel) -> Iterator[Problem]:
    """What a training would refuse: splits without a row, which are among the outcomes, and what no model reads."""
    context = context_of(local.folder)
    errors = [nothing_left(part.report, recipe.data, part.name, context) for part in parts if not part.num_usable]
    first = max(parts, key=lambda part: part.longest, default=None)
    if first is not None and context is not None and num_read(first.longest, recipe.task) > context:
        errors.append(too_long(first.where, first.longest, local.name, context))
    for error in errors:
        yield Problem("", error.message, error.hint)


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
