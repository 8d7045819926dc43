"""Which rows are evaluated: held out by the run's own split, or those of --data; always the same ones of too many.

Base and tuned answer the same rows, so what makes a row hard for both cancels out. Rows of the test split come first;
without one the validation rows are taken, and that is said, because the kept weights were chosen by their loss. A row
that stands there several times is measured once. Memory is that of the chosen rows.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from mlx_finetune.app.eval.drawn import draw_shots, smallest
from mlx_finetune.app.eval.references import read_references, with_answer_column
from mlx_finetune.app.eval.texts import FEW_TEXTS, Part, blocks
from mlx_finetune.dataset.conversation import prompt_and_reference
from mlx_finetune.dataset.corpus import Splits, load_splits, locate_sources
from mlx_finetune.dataset.examples import read_file
from mlx_finetune.dataset.formats import Example, FormatCounter, Text, example_of
from mlx_finetune.dataset.problems import Findings, RowError, show_names
from mlx_finetune.dataset.split import content_key
from mlx_finetune.dataset.tokens import Message
from mlx_finetune.errors import DataError, Problem, UsageError
from mlx_finetune.recipe.data import DataRecipe
from mlx_finetune.units import counted

#: Categories that are shown apart; more are not a way to split figures.
MAX_CATEGORIES = 50
#: [data] path of a model that no run has trained.
NO_DATA = "-"
_SPLIT_NAMES = {"test": "test", "valid": "validation", "train": "all"}


class _NoColumnError(DataError):
    """A row has nothing in the column by which figures are split."""


#: A row that a score head is given -> the question about it for a language model, with its answer.
Ask = Callable[[Example], Example]
#: ``load_splits``, or what stands in its place.
Read = Callable[..., Splits]


@dataclass(frozen=True, slots=True)
class EvalRow:
    """One held-out row. ``prompt`` are the turns before its last answer, which is ``reference``; both empty for text.

    ``key`` is the hash of the content, the same in every evaluation, ``whole_key`` that of the row of which this may
    be a block; ``scored`` what a score head is given, where ``example`` is only what a language model is asked about
    it. One that ``is_continued`` is of the same text as the row before it; an end mark stands behind one that
    ``ends``. ``block`` is its number where a long text is divided, 0 where it is whole. ``others`` are further right
    answers.
    """

    key: str
    where: str
    category: str
    example: Example
    prompt: tuple[Message, ...]
    reference: str
    scored: Example | None = None
    others: tuple[str, ...] = ()
    is_continued: bool = False
    ends: bool = True
    block: int = 0
    whole_key: str = ""

    @property
    def part(self) -> Part:
        """A row of text as it is read."""
        assert isinstance(self.example, Text), "asked for rows of text only"
        return Part(self.example.text, self.is_continued, self.ends)

    @property
    def question(self) -> str:
        """The last turn before the answer, or the text, for a person."""
        if isinstance(self.example, Text):
            return self.example.text
        return str(self.prompt[-1]["content"]) if self.prompt else ""


@dataclass(frozen=True, slots=True)
class Known:
    """How many of the rows stand in the training rows of a run, and how many others in its validation rows.

    ``name`` is that of an earlier run that the evaluated one began from, "" for the evaluated one itself. ``is_other``:
    its data has changed since its training, so they may be others.
    """

    name: str
    num_train: int
    num_valid: int
    is_other: bool = False

    def stand(self, total: str) -> str:
        """``3 of 12 rows stand in its training rows and 2 in its validation rows``; "" where none does."""
        article, whose = ("the", f" of {self.name}, which it began from") if self.name else ("its", "")
        places = [(self.num_train, f"{article} training rows"), (self.num_valid, f"{article} validation rows")]
        some = [(num, place) for num, place in places if num]
        parts = [f"{num}{'' if place else f' of {total} stand'} in {rows}" for place, (num, rows) in enumerate(some)]
        return f"{' and '.join(parts)}{whose}" if parts else ""


@dataclass(frozen=True, slots=True)
class Seen:
    """How many of the rows taught the run or one that it began from, and how many others were its validation rows.

    ``by`` has the share of each of these runs.
    """

    num_train: int
    num_valid: int
    by: tuple[Known, ...]


@dataclass(frozen=True, slots=True)
class Chosen:
    """The rows of one evaluation. ``sha256`` is that of the data files; ``num_held_out`` counts those left out too.

    ``seen`` is None where nothing tells, and where rows are held out by the split of a run that began from no other.
    ``num_copies`` further rows say the same as ``rows``.
    """

    rows: tuple[EvalRow, ...]
    split: str
    source: str
    sha256: str
    num_held_out: int
    shots: tuple[Example, ...]
    notices: tuple[Problem, ...] = ()
    seen: Seen | None = None
    num_copies: int = 0

    @property
    def remark(self) -> str:
        """What a reader of the figures must know of rows that the run had seen, or ""."""
        total = counted(len(self.rows), self.unit)
        known = {said: one for one in (self.seen.by if self.seen else ()) if (said := one.stand(total))}
        changed = data_changed([one.name for one in known.values() if one.is_other])
        return f"{', and '.join(known)}: these figures flatter it.{changed}" if known else ""

    @property
    def unit(self) -> str:
        """What one of ``rows`` is: a row of the data, or a block of a long text."""
        return "block" if any(row.block for row in self.rows) else "row"

    @property
    def described(self) -> str:
        """``all 12 rows``, ``50 of 300 test rows``, ``20 blocks of 5 rows``."""
        count, split = len(self.rows), "" if self.split == "all" else f"{self.split} "
        if self.unit == "block":
            return f"{count} blocks of {counted(self.num_held_out, f'{split}row')}"
        if self.num_copies and count + self.num_copies == self.num_held_out:
            return f"{count} different of {self.num_held_out} {split}rows"
        if count < self.num_held_out:
            return f"{count} of {self.num_held_out} {split}rows"
        return f"{'' if split else 'all '}{counted(count, f'{split}row')}"


def data_changed(runs: Sequence[str]) -> str:
    """Said behind a count of rows that ``runs`` know, whose data is no longer what they were trained on; "" of none.

    The run that is evaluated goes by "".
    """
    whose = [f"the data of {name}" if name else "its data" for name in runs]
    if not whose:
        return ""
    subject = " and ".join(whose)
    have = "has" if len(whose) == 1 else "have"
    return f" {subject[0].upper()}{subject[1:]} {have} changed since the training, so these may be others."


def choose_rows(
    data: DataRecipe,
    *,
    base: Path,
    training_base: Path,
    given: str | None,
    max_rows: int,
    category: str | None,
    shots: int,
    seed: int,
    tasks: Sequence[str] = ("sft",),
    needs_category: bool = True,
    ask: Ask | None = None,
    references: Sequence[str] = (),
    read: Read = load_splits,
) -> Chosen:
    """The rows to evaluate; ``given`` names a file or folder in the place of the run's data.

    Paths count from ``base``, those of the training rows for ``shots`` from ``training_base``. Rows without the column
    ``category`` are not split, with a notice, unless it ``needs_category``. Rows are what one of ``tasks`` learns from;
    ``ask`` makes questions of rows that a score head is given; ``references`` are columns with further right answers.
    ``read`` is another where the same rows are asked for more than once.

    Raises ``UsageError`` where ``given`` is not there, ``DataError`` where nothing is held out, the column ``category``
    is missing, or there are too few rows for ``shots``.
    """
    if given is not None and not (base / Path(given).expanduser()).exists():
        raise UsageError(f"there is no {given} for --data", f"name a file or folder; paths count from {base}")
    recipe = data if given is None else with_answer_column(data_of(given, data), base, references)
    splits = _load(recipe, base, tasks, read, is_given=given is not None)
    name = _held_out(splits, given)
    chosen, num_copies = smallest(getattr(splits, name), max_rows)
    categories, notices = _categories_of(recipe, base, category, chosen, needs_category=needs_category)
    others = read_references(recipe, base, references, chosen)
    training = _training_rows(splits, data, training_base, given, tasks) if shots else ()
    drawn = draw_shots(training, shots, seed)
    split, source = _SPLIT_NAMES[name], recipe.source_of(name)
    return Chosen(
        tuple(
            replace(row, others=others.get((row.example.source, row.example.line), ()))
            for row in _eval_rows(chosen, categories, max_rows, ask)
        ),
        split,
        source,
        splits.content_hash,
        splits.counts[name],
        tuple(map(ask, drawn)) if ask else drawn,
        (*splits.problems, *_copies(num_copies, split, source), *notices),
        num_copies=num_copies,
    )


def _copies(count: int, split: str, source: str) -> tuple[Problem, ...]:
    """What is said of rows that are left out because others say the same."""
    if not count:
        return ()
    rows = counted(count, "further row" if split == "all" else f"further {split} row")
    are = "is a copy of one that is" if count == 1 else "are copies of some that are"
    return (Problem(source, f"{rows} {are} measured: each counts once"),)


def _held_out(splits: Splits, given: str | None) -> str:
    """The split that is evaluated; train, which has all rows, of files that the user named without one."""
    name = next((name for name in ("test", "valid") if getattr(splits, name)), "train")
    if name == "train" and given is None:
        raise DataError(
            "nothing is held out: the data of this run has no test rows and no validation rows",
            "name rows that it was not trained on: --data FILE",
        )
    return name


def _load(
    data: DataRecipe, base: Path, tasks: Sequence[str], read: Read = load_splits, *, is_given: bool = False
) -> Splits:
    """The rows, as those of the first task that learns from such rows."""
    for task in tasks[:-1]:
        with contextlib.suppress(DataError):
            return read(data, base=base, task=task, is_given=is_given)
    return read(data, base=base, task=tasks[-1], is_given=is_given)


def _categories_of(
    data: DataRecipe, base: Path, column: str | None, examples: Sequence[Example], *, needs_category: bool
) -> tuple[Mapping[tuple[str, int, int], str], Sequence[Problem]]:
    """``read_categories``; none, with a notice, where rows lack the column and need not have it."""
    if not column:
        return {}, ()
    try:
        return read_categories(data, base, column, examples), ()
    except _NoColumnError:
        if needs_category:
            raise
        return {}, (Problem("[eval] category", f"nothing is split: not every row has `{column}`"),)


def data_of(given: str, data: DataRecipe) -> DataRecipe:
    """[data] with ``given`` in the place of its files, nothing of it set aside; layout and template stay."""
    places = {"path": given, "train": None, "valid": None, "test": None, "sources": ()}
    return DataRecipe.model_validate(data.model_dump() | places | {"val_split": 0.0, "test_split": 0.0})


def _training_rows(
    splits: Splits, data: DataRecipe, base: Path, given: str | None, tasks: Sequence[str]
) -> Sequence[Example]:
    """Rows that examples are drawn from: the run's own, whatever is evaluated; of a model's, those beside --data."""
    if given is None or data.path == NO_DATA:
        return splits.train if splits.test or splits.valid else ()
    return _load(data, base, tasks).train


def read_categories(
    data: DataRecipe, base: Path, column: str, examples: Sequence[Example]
) -> Mapping[tuple[str, int, int], str]:
    """What stands in ``column`` of the rows that ``examples`` came from, by file, line and content.

    Examples keep what is learned and no other column, so the files are read once more. Raises ``DataError`` where a row
    has no such column, or there are more than 50 categories.
    """
    wanted = {(example.source, example.line) for example in examples}
    found: dict[tuple[str, int, int], str] = {}
    for source in locate_sources(data, base):
        for file in (file for files in source.located.values() for file in files):
            counter = FormatCounter(data.columns, data.format)
            for row in read_file(file, Findings()):
                layout = counter.add(row)
                if layout is None or (row.source, row.line) not in wanted:
                    continue
                if row.fields.get(column) in (None, ""):
                    have = show_names(list(row.fields))
                    raise _NoColumnError(
                        f"{row.where}: the row has no `{column}` to split by; it has {have}",
                        "name another: --category COLUMN",
                    )
                try:
                    key = content_key(example_of(row, layout))
                except RowError:
                    continue  # load_splits has refused such rows
                found[row.source, row.line, key] = _category(row.fields[column])
    names = set(found.values())
    if len(names) > MAX_CATEGORIES:
        raise DataError(
            f"the column `{column}` has {len(names)} different values; figures are split by {MAX_CATEGORIES} at most",
            "name a column with a topic or a kind of request",
        )
    return found


def _category(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return " ".join(text.split())[:60]


def _eval_rows(
    chosen: Sequence[Example], categories: Mapping[tuple[str, int, int], str], max_rows: int, ask: Ask | None
) -> tuple[EvalRow, ...]:
    """One row each; of a few long texts their blocks, as many as there may be rows, from the front."""
    rows = [_row(example, categories, ask) for example in chosen]
    for place, (before, after) in enumerate(pairwise(chosen)):
        if _are_of_one_text(before, after):  # what is between them may be left out, so an end mark stands there
            rows[place] = replace(rows[place], ends=True)
            rows[place + 1] = replace(rows[place + 1], is_continued=True, ends=True)
    if len(rows) >= FEW_TEXTS or not all(isinstance(row.example, Text) for row in rows):
        return tuple(rows)
    divided = [block for row in rows for block in _blocks(row)]
    return tuple(rows if len(divided) == len(rows) else divided[: max(max_rows, len(rows))])


def _are_of_one_text(before: Example, after: Example) -> bool:
    """Whether ``after`` is a later stretch of the text of ``before``."""
    if not (isinstance(before, Text) and isinstance(after, Text)):
        return False
    return before.continues and after.follows and after.source == before.source


def _blocks(row: EvalRow) -> list[EvalRow]:
    assert isinstance(row.example, Text)
    made: list[EvalRow] = []
    parts = blocks(row.example.text)
    for number, text in enumerate(parts, 1):
        example = replace(row.example, text=text)
        where = f"{row.where}, block {number}"
        key = f"{content_key(example):016x}"
        block = replace(row, key=key, where=where, example=example, block=number)
        made.append(replace(block, is_continued=row.is_continued or number > 1, ends=row.ends and number == len(parts)))
    return made if len(parts) > 1 else [row]


def _row(example: Example, categories: Mapping[tuple[str, int, int], str], ask: Ask | None) -> EvalRow:
    key = content_key(example)
    category = categories.get((example.source, example.line, key), "")
    asked = ask(example) if ask else example
    prompt, reference = prompt_and_reference(asked)
    where = f"{example.source}:{example.line}"
    scored = example if ask else None
    ends = not (isinstance(example, Text) and example.continues)
    name = f"{key:016x}"
    return EvalRow(name, where, category, asked, prompt, reference, scored, ends=ends, whole_key=name)
