"""What a training learned from, in a few numbers kept in its run folder: rows, lengths, what was left out and why.

Made from the rows of a start as they are in memory, so that nobody has to read the data again to tell of it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from mlx_finetune.dataset.stats import Bucket, Lengths, even_histogram, summarize_lengths
from mlx_finetune.dataset.token_cache import CachedSplits
from mlx_finetune.dataset.token_rows import rows_of
from mlx_finetune.dataset.tokens import Outcome, TokenizedSplit
from mlx_finetune.errors import Problem

#: Located problems that are kept of each kind; the rest is counted.
_KEPT_PROBLEMS = 5


@dataclass(frozen=True, slots=True)
class SplitCard:
    """One split: ``num_rows`` rows of its files were read and ``num_used`` of them used, ``lengths`` (in tokens) are of
    the sequences made of these, ``histogram`` in buckets of one width.

    ``outcomes`` are those of ``TokenizeReport``; ``sources`` counts the sequences of each file.
    """

    num_rows: int
    num_targets: int
    lengths: Lengths
    histogram: tuple[Bucket, ...]
    method: str
    template: str
    notes: tuple[str, ...]
    outcomes: Mapping[str, Outcome]
    sources: Mapping[str, int]
    num_used: int = 0

    @property
    def target_share(self) -> float:
        """Targets over tokens, 0 to 1."""
        return self.num_targets / self.lengths.total if self.lengths.total else 0.0


@dataclass(frozen=True, slots=True)
class DataCard:
    """Splits by name, and the first problems that reading found, of ``num_problems`` in all."""

    splits: Mapping[str, SplitCard]
    problems: tuple[Problem, ...]
    num_problems: int


def card_of(found: CachedSplits) -> DataCard:
    """The card of the rows of a start."""
    splits = {name: _split_card(split) for name, split in found.splits.items()}
    return DataCard(splits, tuple(found.problems[:_KEPT_PROBLEMS]), len(found.problems))


def _split_card(split: TokenizedSplit) -> SplitCard:
    report, rows = split.report, rows_of(split.rows)
    counts = rows.count_sources()
    return SplitCard(
        num_rows=report.num_examples,
        num_targets=report.num_targets,
        lengths=summarize_lengths(rows.lengths, "tokens"),
        histogram=even_histogram(rows.lengths),
        method=report.method,
        template=report.template,
        notes=report.notes,
        outcomes={name: Outcome(one.count, one.rows[:_KEPT_PROBLEMS]) for name, one in report.outcomes.items()},
        sources=counts,
        num_used=report.num_used,
    )


def card_json(card: DataCard) -> dict[str, object]:
    """Plain values."""
    return asdict(card)
