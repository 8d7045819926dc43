"""Rows that are named on the command line (``--data``, ``--probes``): what is wrong with them without a word of [data].

Whoever evaluates has no recipe to change: the way out is the file itself.
"""

import re
import shlex
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace

from mlx_finetune.dataset.kinds import formats_for
from mlx_finetune.dataset.unknown import example_rows
from mlx_finetune.errors import DataError

_KEYS = re.compile(r"\[data\.columns\]|\[data\] format")
_PATH = "[data] path = "
_CHECK = "mlxft data check RECIPE"


@contextmanager
def given_rows(given: str | None, task: str) -> Generator[None]:
    """Errors of the block about the rows of ``given``, as a person can mend them who wants them for ``task``.

    Where nothing was ``given`` they are left as they are. Raises ``DataError``.
    """
    try:
        yield
    except DataError as error:
        if given is None:
            raise
        problems = [replace(problem, hint=_hint(problem.hint, given, task)) for problem in error.problems]
        raise DataError(error.message, _hint(error.hint, given, task), problems) from error


def _hint(hint: str, given: str, task: str) -> str:
    if hint == _CHECK:
        return f"mlxft data check {shlex.quote(given)}"
    if _KEYS.search(hint):
        return f"rows are {example_rows(formats_for(task))}: name the columns of the file so"
    return hint.replace(_PATH, "")
