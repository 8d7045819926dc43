"""All rows of a recipe: read, checked, turned into examples and split; or every problem at once.

Nothing is left out silently: one malformed row stops a training before its first step. Memory is that of the
examples, about 1.5 kB and the text for each row, up to ``KEPT_ROWS``; more are read again whenever they are needed,
and 13 bytes a row are kept, 28 more where rows have labels or preferences.
"""

import hashlib
import itertools
import shlex
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlx_finetune.dataset.corrections import contradicted, correction_of, first_bytes, prompt_of
from mlx_finetune.dataset.examples import FileExamples, SplitFile, read_file, stamps_of
from mlx_finetune.dataset.formats import Example, FormatCounter, example_of
from mlx_finetune.dataset.judged import JudgedScan
from mlx_finetune.dataset.kinds import formats_for, is_trainable, refused_format
from mlx_finetune.dataset.problems import Findings, RowError
from mlx_finetune.dataset.row import DataFile
from mlx_finetune.dataset.sources.columnar import table_files
from mlx_finetune.dataset.sources.locate import Located, locate
from mlx_finetune.dataset.sources.opening import FileProblem, refuse_special
from mlx_finetune.dataset.split import TEST, TRAIN, VALID, choose_sides, content_key, content_of, group_of, key_of
from mlx_finetune.errors import DataError, Problem
from mlx_finetune.recipe.data import DataRecipe

#: Up to so many rows are kept as objects after they were read.
KEPT_ROWS = 50_000
#: Of fewer rows it is said how they are divided: a share of few rows is soon too little, or too much.
FEW_ROWS = 100

_SPLITS = ("train", "valid", "test")
CORRECTED = "corrections"
_REPLACED = 255  # the side of a correction that a later one of the same prompt takes the place of


@dataclass(frozen=True, slots=True)
class Splits:
    """The examples of a recipe. ``content_hash`` is the SHA-256 of all files' bytes, in order; ``format`` of the first.

    ``problems`` are warnings (duplicates across given files, sides left empty, rows against each other); ``counts`` has
    the rows of each split.
    The last ``num_corrections`` of the training rows are corrections. ``note`` says how few rows were divided, or "".
    """

    train: Sequence[Example]
    valid: Sequence[Example]
    test: Sequence[Example]
    format: str
    files: tuple[Path, ...]
    content_hash: str
    problems: tuple[Problem, ...]
    counts: Mapping[str, int]
    num_corrections: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """The files of one of the recipe's sources, and the weight of its training rows."""

    located: Located
    weight: float


def load_splits(
    data: DataRecipe,
    *,
    base: Path,
    task: str = "sft",
    corrections: Sequence[DataFile] = (),
    kept_rows: int = KEPT_ROWS,
    is_given: bool = False,
) -> Splits:
    """Read and split everything [data] names; paths count from ``base``.

    Raises ``DataError`` with all problems; rows that ``task`` does not learn from are one. Files that were ``is_given``
    on a command line are mended themselves, without a word about the keys of a recipe.

    Sides depend on content alone (``split``) and on no seed, so that runs of different seeds can be compared and an
    adapter trained further under another seed never meets its validation rows. The rows of ``corrections`` stand behind
    the other training rows and on no other side.
    """
    reading = _Reading(kept_rows, task, is_given=is_given)
    sources = locate_sources(data, base)
    split_files = [
        SplitFile(file, split, source.weight if split == "train" else 1.0, stamps_of(file))
        for source in sources
        for split, files in source.located.items()
        for file in files
    ] + [SplitFile(file, CORRECTED, data.corrections_weight, stamps_of(file)) for file in corrections]
    formats = [detected for one in split_files if (detected := reading.read(one, data))]
    _refuse(reading.findings, [one.file for one in split_files], data, task, is_given=is_given)
    return _split(reading, data, split_files, formats[0])


def check_rows(data: DataRecipe, *, base: Path, task: str, max_rows: int) -> None:
    """Read up to ``max_rows`` of each file as a training does, and keep none. Raises ``DataError`` as it would."""
    reading = _Reading(0, task, is_given=False)
    located = [
        (split, file)
        for source in locate_sources(data, base)
        for split, files in source.located.items()
        for file in files
    ]
    for split, file in located:
        reading.read(SplitFile(file, split, 1.0, stamps_of(file)), data, max_rows)
    _refuse(reading.findings, [file for _, file in located], data, task, is_given=False)


def _refuse(findings: Findings, files: Sequence[DataFile], data: DataRecipe, task: str, *, is_given: bool) -> None:
    """Raises ``DataError`` where anything was found."""
    if findings.count:
        names = ", ".join(file.source for file in files[:3]) + (", ..." if len(files) > 3 else "")
        problems = findings.problems()
        few, what = f"{findings.count} problems", ""
        if findings.count == 1:
            few, what = "one problem", f": {problems[0].message}"
            names = problems[0].where or names
        is_plain = is_given or (not data.columns and data.format == "auto" and task == "sft")
        hint = f"mlxft data check {shlex.quote(files[0].source) if is_plain else 'RECIPE'}"
        if findings.count == 1:
            hint = problems[0].hint or hint
        raise DataError(f"{names}: {few} in the data{what}", hint, problems)


def find_format(data: DataRecipe, base: Path) -> str:
    """The format of the first training file, whatever task it is for; empty where its rows have none, or several."""
    file = locate_sources(data, base)[0].located["train"][0]
    counter = FormatCounter(data.columns, data.format)
    for row in read_file(file, lambda _: None):
        counter.add(row)
    return counter.result().name


def locate_sources(data: DataRecipe, base: Path) -> Sequence[Source]:
    """The files of [data], with valid and test files named one by one beside the first source."""

    def located(text: str) -> Located:
        found = locate(text, base=base)
        if data.documents != "file":
            return found
        return {split: [replace(file, is_whole=True) for file in files] for split, files in found.items()}

    given = {name: located(text)["train"] for name in ("valid", "test") if (text := getattr(data, name))}
    if data.path is not None:
        return [Source(located(data.path), 1.0)]
    if data.train is not None:
        return [Source({"train": located(data.train)["train"], **given}, 1.0)]
    sources = [Source(located(source.path), source.weight) for source in data.sources]
    if given:
        sources = [Source({"train": source.located["train"]}, source.weight) for source in sources]
        sources[0] = Source({**sources[0].located, **given}, sources[0].weight)
    return sources


class _Reading:
    """What one pass over the files found: a content key for each row, and the examples while they are few."""

    def __init__(self, kept_rows: int, task: str, *, is_given: bool) -> None:
        self._task = task
        self._is_given = is_given
        self.findings = Findings()
        self.warnings = Findings(shown_per_kind=1)
        self.judged = JudgedScan(self.warnings)
        self.keys = {name: array("Q") for name in (*_SPLITS, CORRECTED)}
        self.prompt_keys = array("Q")  # of the corrections
        self.groups = array("I")  # the number of each training row's label, where rows have labels
        self._group_numbers: dict[str, int] = {}
        self.examples: dict[str, list[Example]] | None = {name: [] for name in (*_SPLITS, CORRECTED)}
        self._spare_rows = kept_rows

    def add(self, split: str, example: Example) -> None:
        content = content_of(example)
        self.keys[split].append(key_of(content))
        self.judged.add(example, content, split)
        if split == "train":
            self.groups.append(self._group_numbers.setdefault(group_of(example), len(self._group_numbers)))
        if self.examples is not None:
            self.examples[split].append(example)
            self._spare_rows -= 1
            if self._spare_rows < 0:
                self.examples = None

    def read(self, one: SplitFile, data: DataRecipe, max_rows: int | None = None) -> str:
        """Add the examples of one file, or of its first ``max_rows``; the name of its format, empty where it has
        none."""
        if one.file.num_bytes is not None:
            self._read_corrections(one)
            return "messages"
        counter = FormatCounter(data.columns, data.format, formats_for(self._task), is_given=self._is_given)
        for row in itertools.islice(read_file(one.file, self.findings), max_rows):
            layout = counter.add(row)
            if layout is None or not is_trainable(layout.format, self._task):
                continue
            try:
                example = example_of(row, layout)
            except RowError as error:
                self.findings(error.problem)
                continue
            self.add(one.split, replace(example, weight=one.weight) if one.weight != 1.0 else example)
        detected = counter.result()
        for problem in detected.problems:
            self.findings(problem)
        if detected.name and not is_trainable(detected.name, self._task):
            self.findings(refused_format(detected, one.file.source, self._task, is_given=self._is_given))
        return detected.name

    def _read_corrections(self, one: SplitFile) -> None:
        for row in read_file(one.file, self.findings):
            try:
                example = correction_of(row)
            except RowError as error:
                self.findings(error.problem)
                continue
            self.prompt_keys.append(content_key(prompt_of(example)))
            self.add(one.split, replace(example, weight=one.weight))

    def said_by_rows(self) -> Sequence[Problem]:
        """Warnings of labels and preferences; none of rows named on a command line, which are not those trained on."""
        if self._is_given:
            return ()
        self.judged.finish()
        return self.warnings.problems()

    def sides_of_corrections(self) -> bytes:
        """TRAIN for each correction but those that a later one replaces."""
        last = {key: place for place, key in enumerate(self.prompt_keys)}
        return bytes(TRAIN if last[key] == place else _REPLACED for place, key in enumerate(self.prompt_keys))


def _split(
    reading: _Reading,
    data: DataRecipe,
    split_files: Sequence[SplitFile],
    format: str,
) -> Splits:
    keys = reading.keys
    has_valid, has_test = bool(keys["valid"]), bool(keys["test"])
    val_split = 0.0 if has_valid else data.val_split
    test_split = 0.0 if has_test or has_valid else data.test_split  # files that are given win over shares of train
    sides = bytes(choose_sides(keys["train"], val_split, test_split, reading.groups))
    corrected = reading.sides_of_corrections()

    def examples(split: str, sides: bytes, side: int, *more: str) -> Sequence[Example]:
        if reading.examples is None:
            return FileExamples([one for one in split_files if one.split in (split, *more)], data, sides, side)
        rows = itertools.chain(*(reading.examples[name] for name in (split, *more)))
        return tuple(row for row, its in zip(rows, sides, strict=True) if its == side)

    train = examples("train", sides + corrected, TRAIN, CORRECTED)
    given = {name: examples(name, bytes(len(keys[name])), 0) for name in ("valid", "test")}
    valid = given["valid"] or examples("train", sides, VALID)
    test = given["test"] or examples("train", sides, TEST)
    warnings = [*_leaks(keys, given)] if has_valid or has_test else []
    warnings += reading.said_by_rows()
    held_out = {key for key, side in zip(keys["train"], sides, strict=True) if side != TRAIN}
    if not held_out.isdisjoint(keys[CORRECTED]):
        message = "a correction is a validation or test row too, word for word: its loss there says little"
        warnings.append(Problem(next(one.file.source for one in split_files if one.split == CORRECTED), message))
    if corrected and reading.examples is not None:
        warnings += contradicted(train[: -corrected.count(TRAIN)], train[-corrected.count(TRAIN) :])
    files = [one.file for one in split_files]
    if val_split > 0 and not valid:
        warnings.append(Problem(files[0].source, "too few different rows for a validation set; all are trained on"))
    is_divided = (val_split > 0 or test_split > 0) and len(keys["train"]) < FEW_ROWS
    return Splits(
        train,
        valid,
        test,
        format,
        tuple(file.path for file in files),
        hash_files(files),
        tuple(warnings),
        {"train": len(train), "valid": len(valid), "test": len(test)},
        corrected.count(TRAIN),
        _division(len(train), len(valid), len(test)) if is_divided else "",
    )


def _division(num_train: int, num_valid: int, num_test: int) -> str:
    return (
        f"few rows: {num_train} to train on, {num_valid} for validation, {num_test} kept for a test; "
        "data.val_split and data.test_split set the shares, 0 keeps all to train on"
    )


def _leaks(keys: Mapping[str, Sequence[int]], given: Mapping[str, Sequence[Example]]) -> Iterator[Problem]:
    known = {*keys["train"], *keys[CORRECTED]}
    for split, name in (("valid", "validation"), ("test", "test")):
        again = [place for place, key in enumerate(keys[split]) if key in known]
        if again:
            first = given[split][again[0]]
            yield Problem(
                f"{first.source}:{first.line}",
                f"{len(again)} of {len(keys[split])} {name} rows are training rows too: their loss says little",
                "remove them from one of the files",
            )


def hash_files(files: Sequence[DataFile]) -> str:
    """SHA-256 over the bytes of every file, in order; of a split of a Hugging Face data set, over its Arrow files.

    Of a file of corrections the bytes that count are hashed. Raises ``DataError`` where a file is not there.
    """
    digest = hashlib.sha256()
    for file in files:
        if file.num_bytes is not None:
            digest.update(first_bytes(file))
            continue
        for path in table_files(file) if file.table else [file.path]:
            try:
                refuse_special(path)
            except FileProblem as problem:
                raise DataError(f"{path}: {problem.message}", problem.hint or "name another file in [data]") from None
            with path.open("rb") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
    return digest.hexdigest()
