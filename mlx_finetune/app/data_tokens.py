"""The rows of a recipe in tokens: lengths, the share that is cut, the share that is learned."""

from collections.abc import Callable, Mapping
from pathlib import Path

from mlx_finetune.app.data_report import TokenReport
from mlx_finetune.dataset.corpus import Splits
from mlx_finetune.dataset.stats import summarize_lengths
from mlx_finetune.dataset.template import tokenize
from mlx_finetune.dataset.tokens import Outcome, TokenizedSplit
from mlx_finetune.events import Phase
from mlx_finetune.model.fetch import fetch_model
from mlx_finetune.model.tokenizer import load_tokenizer
from mlx_finetune.recipe.schema import Recipe

#: Beyond every length: rows are measured whole, and those longer than the recipe allows are counted here.
NO_LIMIT = 1 << 30


def count_tokens(recipe: Recipe, splits: Splits, base: Path, report: Callable[[Phase], None]) -> TokenReport:
    """Tokenise every row with the recipe's model and template. Raises ``MlxftError`` where that cannot be done."""
    local = fetch_model(recipe.model, revision=recipe.revision, report=report)
    tokenizer = load_tokenizer(local.folder, chat_template=recipe.data.chat_template)
    data = recipe.data.model_copy(update={"max_seq_length": NO_LIMIT, "truncation": "drop"})
    parts = [
        tokenize(examples, tokenizer, data, task=recipe.task, base=base)
        for examples in (splits.train, splits.valid, splits.test)
        if examples
    ]
    lengths = [len(row.ids) for part in parts for row in part.rows]
    num_tokens = sum(part.report.num_tokens for part in parts)
    num_targets = sum(part.report.num_targets for part in parts)
    return TokenReport(
        summarize_lengths(lengths, "tokens"),
        recipe.data.max_seq_length,
        recipe.data.truncation,
        sum(length > recipe.data.max_seq_length for length in lengths),
        num_targets / num_tokens if num_tokens else 0.0,
        parts[0].report.method if parts else "",
        _joined_outcomes(parts),
    )


def _joined_outcomes(parts: list[TokenizedSplit]) -> Mapping[str, Outcome]:
    joined: dict[str, Outcome] = {}
    for part in parts:
        for name, outcome in part.report.outcomes.items():
            before = joined.get(name, Outcome())
            joined[name] = Outcome(before.count + outcome.count, (before.rows + outcome.rows)[:5])
    return joined
