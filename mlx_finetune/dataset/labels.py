"""The labels of a classification: found over the training rows, sorted, and the same numbers in every split."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mlx_finetune.dataset.formats import Example, Labelled
from mlx_finetune.dataset.problems import show
from mlx_finetune.dataset.token_rows import TokenRows
from mlx_finetune.errors import DataError
from mlx_finetune.recipe.heads import SCORED_TASKS
from mlx_finetune.units import counted

MOST_LABELS = 1000  # more of them are numbers or texts of their own, not classes
_SHOWN = 12


def sorted_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Each label once: by number where all are whole numbers, else by text."""
    found = set(labels)
    numbers = all(label.removeprefix("-").isdecimal() for label in found)
    return tuple(sorted(found, key=lambda label: (int(label), label) if numbers else (0, label)))


def num_outputs(task: str, examples: Iterable[Example]) -> int:
    """Outputs of the score head that training on ``examples`` has; 0 where the task has none."""
    if task == "classify":
        return len({str(one.label) for one in examples if isinstance(one, Labelled)})
    return 1 if task in SCORED_TASKS else 0


def counts_of(rows: TokenRows, labels: Sequence[str]) -> Mapping[str, int]:
    """How many rows have each of ``labels``."""
    counts = np.bincount(rows.values[:, 0].astype(np.int64), minlength=len(labels))
    return dict(zip(labels, counts.tolist(), strict=True))


def balance(counts: Mapping[str, int]) -> str:
    """How many rows have each label, the most frequent first: ``2 labels, rows of each: "1" 2,128 (53%), "0" ...``."""
    total = sum(counts.values())
    ordered = sorted(counts.items(), key=lambda one: -one[1])
    parts = [f"{show(label)} {count:,} ({count / total:.0%})" for label, count in ordered[:_SHOWN]]
    more = f" and {len(counts) - _SHOWN} more" if len(counts) > _SHOWN else ""
    return f"{counted(len(counts), 'label')}, rows of each: {', '.join(parts)}{more}"


def check_labels(labels: Sequence[str], where: str) -> None:
    """Refuse labels that make no classification. Raises ``DataError`` naming ``where`` the rows are."""
    if len(labels) == 1:
        raise DataError(
            f"{where}: every training row has the label {show(labels[0])}; a classification needs two",
            "add rows with other labels, or name the column of the labels: [data.columns] label = NAME",
        )
    if len(labels) > MOST_LABELS:
        raise DataError(
            f"{where}: the training rows have {len(labels):,} different labels; at most {MOST_LABELS:,} are classes",
            "name the column with the labels: [data.columns] label = NAME",
        )


def renumbered(rows: TokenRows, theirs: Sequence[str], ours: Sequence[str]) -> TokenRows:
    """``rows``, whose first value is a number among the labels ``theirs``, with the numbers of ``ours``.

    Raises ``DataError`` with file and line for a label that ``ours`` lacks.
    """
    if tuple(theirs) == tuple(ours) or not len(rows):
        return rows
    place = {label: number for number, label in enumerate(ours)}
    numbers = np.array([place.get(label, -1) for label in theirs])
    values = rows.values.copy()
    values[:, 0] = numbers[values[:, 0].astype(np.int64)]
    missing = np.flatnonzero(values[:, 0] < 0)
    if len(missing):
        row = int(missing[0])
        label = theirs[int(rows.values[row, 0])]
        known = ", ".join(show(one) for one in ours[:_SHOWN]) + (", ..." if len(ours) > _SHOWN else "")
        more = f" (and {len(missing) - 1} more rows)" if len(missing) > 1 else ""
        raise DataError(
            f"{rows.where(row)}: no training row has the label {show(label)}{more}",
            f"the labels of the training rows are {known}; correct the row, or train on rows with its label",
        )
    return rows.with_values(values)
