"""A few rows that stand for many, the same ones every time, from the shortest to the middle one; or rows by line."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from mlx_finetune.dataset.token_rows import TokenRows
from mlx_finetune.errors import UsageError

#: Longer rows are not shown unless there are no shorter ones: somebody is to read them.
MOST_TOKENS = 400
_SHOWN_LINES = 8


def typical_rows(rows: TokenRows, count: int) -> list[int]:
    """At most ``count`` row numbers: the shortest one, the one of middle length, and between them at equal shares."""
    order = np.argsort(rows.lengths, kind="stable")
    short = order[rows.lengths[order] <= MOST_TOKENS]
    pool = short if len(short) else order[:1]
    count = min(count, len(pool))
    top = max((len(pool) - 1) // 2, count - 1)
    places = np.linspace(0, top, count).round().astype(int).tolist() if count > 1 else [top]
    return [int(pool[place]) for place in places]


def rows_at_lines(rows: TokenRows, lines: Sequence[int], what: str) -> list[int]:
    """The numbers of every row made from ``lines``, in their order. Raises as ``check_lines`` does."""
    have: NDArray[np.int64] = rows.rows["line"]
    check_lines(lines, have.tolist(), what)
    return [number for line in lines for number in np.flatnonzero(have == line).tolist()]


def check_lines(lines: Sequence[int], have: Iterable[int], what: str) -> None:
    """Raise ``UsageError`` where one of ``lines`` is not among those of the rows, which are called ``what``."""
    known = sorted(set(have))
    missing = [line for line in lines if line not in set(known)]
    if missing:
        more = ", ..." if len(known) > _SHOWN_LINES else ""
        raise UsageError(
            f"line {missing[0]} is not among the {what}",
            f"lines there are: {', '.join(map(str, known[:_SHOWN_LINES]))}{more}",
        )


def sequence_note(rows: TokenRows, number: int) -> tuple[str, ...]:
    """``sequence 2 of 3 of this row`` where a row became several; else nothing."""
    row = rows.rows[number]
    its = np.flatnonzero((rows.rows["line"] == row["line"]) & (rows.rows["source"] == row["source"])).tolist()
    return (f"sequence {its.index(number) + 1} of {len(its)} of this row",) if len(its) > 1 else ()
