"""Rows of ``--data`` that a run knows already: they stand in its training or validation rows.

On those its figures say what it remembers. They are counted and said, not left out: the user named them.
"""

from dataclasses import replace

from mlx_finetune.app.eval.rows import Chosen, Seen
from mlx_finetune.app.eval.subject import Subject, has_no_data
from mlx_finetune.dataset.corpus import Splits, load_splits
from mlx_finetune.dataset.split import content_key
from mlx_finetune.errors import DataError, Problem


def own_splits(subject: Subject) -> tuple[Splits, bool]:
    """The rows of a run's own data, and whether they have changed since its training. Raises ``DataError``."""
    splits = load_splits(subject.data, base=subject.folder, task=subject.task)
    return splits, subject.trained_data_sha256 not in ("", splits.content_hash)


def with_seen(subject: Subject, chosen: Chosen, given: str | None) -> Chosen:
    """``chosen`` with how many of its rows the run was taught by; unknown, with a notice, where its data is gone."""
    if given is None or has_no_data(subject):
        return chosen
    try:
        splits, is_other = own_splits(subject)
    except DataError as error:
        message = f"whether {subject.opened.name} was trained on these rows cannot be told: {error.message}"
        return replace(chosen, notices=(*chosen.notices, Problem("--data", message)))
    train, valid = ({f"{content_key(row):016x}" for row in rows} for rows in (splits.train, splits.valid))
    keys = [row.whole_key for row in chosen.rows]
    seen = Seen(sum(key in train for key in keys), sum(key in valid and key not in train for key in keys), is_other)
    return replace(chosen, seen=seen)
