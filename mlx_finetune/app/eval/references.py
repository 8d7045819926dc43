"""Several right answers of a row: the columns they stand in, and the best score of an answer beside any of them.

As ``rouge-score`` and SQuAD do it: each measure takes the reference that suits it best. The row's own answer is always
one of them, and the one that losses are of.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mlx_finetune.app.eval.score import AnswerScorer, Values
from mlx_finetune.dataset.corpus import locate_sources
from mlx_finetune.dataset.examples import read_file
from mlx_finetune.dataset.formats import Example
from mlx_finetune.dataset.layouts import column_named
from mlx_finetune.dataset.problems import Findings, show_names
from mlx_finetune.dataset.row import DataFile, Row
from mlx_finetune.errors import DataError
from mlx_finetune.recipe.data import DataRecipe
from mlx_finetune.recipe.evaluation import split_task

#: Tasks whose measures compare an answer with a reference, and are larger where it is better.
_COMPARED = frozenset({"exact_match", "token_f1", "rouge", "bleu"})
_ANSWERS = ("completion", "output")

Place = tuple[str, int]  # file and line


def with_answer_column(data: DataRecipe, base: Path, columns: Sequence[str]) -> DataRecipe:
    """``data`` with the first of ``columns`` for the answer, where its own column is in no row and that one is.

    DialogSum trains with ``summary`` and tests with ``summary1`` to ``summary3``.
    """
    name = next((name for name in _ANSWERS if name in data.columns), None)
    if name is None or not columns:
        return data
    rows = (row for source in locate_sources(data, base) for files in source.located.values() for row in _rows(files))
    fields = next((row.fields for row in rows), {})
    if column_named(fields, data.columns[name]) or columns[0] not in fields:
        return data
    return data.model_copy(update={"columns": {**data.columns, name: columns[0]}})


def read_references(
    data: DataRecipe, base: Path, columns: Sequence[str], examples: Sequence[Example]
) -> Mapping[Place, tuple[str, ...]]:
    """What stands in ``columns`` of the rows of ``examples``. Raises ``DataError`` where a row lacks one."""
    wanted = {(example.source, example.line) for example in examples}
    found: dict[Place, tuple[str, ...]] = {}
    for source in locate_sources(data, base) if columns else ():
        for files in source.located.values():
            for row in _rows(files):
                if (row.source, row.line) not in wanted:
                    continue
                missing = next((name for name in columns if not isinstance(row.fields.get(name), str)), None)
                if missing is not None:
                    have = show_names(list(row.fields))
                    raise DataError(
                        f"{row.where}: the row has no text in `{missing}`, which is to be a reference; it has {have}",
                        "name other columns: --reference COLUMN",
                    )
                found[row.source, row.line] = tuple(str(row.fields[name]) for name in columns)
    return found


def best_values(scorer: AnswerScorer, references: Sequence[str], answer: str) -> Values:
    """Every measure of ``answer``: compared with the first of ``references``, or with the best where that is fair."""
    first, *others = references
    found = scorer.values(first, answer)
    compared = [task for task in scorer.tasks if split_task(task)[0] in _COMPARED]
    for other in others if compared else ():
        for name, value in AnswerScorer(compared, (), None).values(other, answer).items():
            found[name] = max(found[name], value)
    return found


def _rows(files: Sequence[DataFile]) -> Iterator[Row]:
    for file in files:
        yield from read_file(file, Findings())
