"""All rows of a recipe: read, checked, turned into examples and split; or every problem at once.

Nothing is left out silently: one malformed row stops a training before its first step. Memory is that of the
examples, about 1.5 kB and the text for each row.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlx_finetune.dataset.formats import DetectedFormat, Example, FormatCounter, example_of
from mlx_finetune.dataset.problems import Findings, RowError
from mlx_finetune.dataset.read import read_rows
from mlx_finetune.dataset.row import DataFile, Report, Row
from mlx_finetune.dataset.sources.columnar import read_table, table_files
from mlx_finetune.dataset.sources.locate import Located, locate
from mlx_finetune.dataset.split import TEST, TRAIN, VALID, choose_sides, content_key
from mlx_finetune.errors import DataError, Problem
from mlx_finetune.recipe.schema import DataRecipe

#: What the tasks of this version learn from.
TRAINABLE = ("text", "messages", "sharegpt", "alpaca", "prompt-completion")

#: Format -> what its rows are, what they are for, and how sft can use them all the same.
_REFUSED = {
    "preference": (
        "are preference pairs (chosen and rejected)",
        "preference training",
        'sft can learn the chosen answers: [data.columns] prompt = "prompt", completion = "chosen"',
    ),
    "unpaired-preference": (
        "are answers marked good or bad",
        "preference training",
        'sft can learn all of them alike: [data] format = "messages" or "prompt-completion"',
    ),
    "labels": (
        "are texts with labels",
        "a classifier",
        'sft can learn the labels: [data.columns] prompt = "text", completion = "label"; or only the texts: '
        '[data] format = "text"',
    ),
}


@dataclass(frozen=True, slots=True)
class Splits:
    """The examples of a recipe. ``content_hash`` is the SHA-256 of all files' bytes, in order; ``format`` of the first.

    ``problems`` are warnings (duplicates across given files, sides left empty); ``counts`` has the rows of each split.
    """

    train: Sequence[Example]
    valid: Sequence[Example]
    test: Sequence[Example]
    format: str
    files: tuple[Path, ...]
    content_hash: str
    problems: tuple[Problem, ...]
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Source:
    """The files of one of the recipe's sources, and the weight of its training rows."""

    located: Located
    weight: float


def load_splits(data: DataRecipe, *, base: Path) -> Splits:
    """Read and split everything [data] names; paths count from ``base``. Raises ``DataError`` with all problems.

    Sides depend on content alone (``split``) and on no seed, so that runs of different seeds can be compared and an
    adapter trained further under another seed never meets its validation rows.
    """
    findings = Findings()
    sources = locate_sources(data, base)
    rows: dict[str, list[Example]] = {"train": [], "valid": [], "test": []}
    formats: list[str] = []
    for source in sources:
        for split, files in source.located.items():
            for file in files:
                detected = _load_file(file, source.weight if split == "train" else 1.0, data, rows[split], findings)
                formats += [detected] if detected else []
    files = [file for source in sources for files in source.located.values() for file in files]
    if findings.count:
        names = ", ".join(file.source for file in files[:3]) + (", ..." if len(files) > 3 else "")
        few = "one problem" if findings.count == 1 else f"{findings.count} problems"
        is_plain = not data.columns and data.format == "auto"
        hint = f"mlxft data check {files[0].source if is_plain else 'RECIPE'}"
        raise DataError(f"{names}: {few} in the data", hint, findings.problems())
    return _split(rows, data, files, formats[0])


def locate_sources(data: DataRecipe, base: Path) -> Sequence[Source]:
    """The files of [data], with valid and test files named one by one beside the first source."""
    given = {name: locate(text, base=base)["train"] for name in ("valid", "test") if (text := getattr(data, name))}
    if data.path is not None:
        return [Source(locate(data.path, base=base), 1.0)]
    if data.train is not None:
        return [Source({"train": locate(data.train, base=base)["train"], **given}, 1.0)]
    sources = [Source(locate(source.path, base=base), source.weight) for source in data.sources]
    if given:
        sources = [Source({"train": source.located["train"]}, source.weight) for source in sources]
        sources[0] = Source({**sources[0].located, **given}, sources[0].weight)
    return sources


def read_file(file: DataFile, report: Report) -> Iterator[Row]:
    """Rows of one located file, wherever it comes from."""
    if file.table:
        return read_table(file, report)
    return read_rows(file.path, source=file.source, report=report)


def _load_file(file: DataFile, weight: float, data: DataRecipe, into: list[Example], findings: Findings) -> str:
    """Add the file's examples to ``into``; the name of its format, empty where there is none."""
    counter = FormatCounter(data.columns, data.format)
    for row in read_file(file, findings):
        layout = counter.add(row)
        if layout is None or layout.format not in TRAINABLE:
            continue
        try:
            example = example_of(row, layout)
        except RowError as error:
            findings(error.problem)
            continue
        into.append(replace(example, weight=weight) if weight != 1.0 else example)
    detected = counter.result()
    for problem in detected.problems:
        findings(problem)
    if detected.name in _REFUSED:
        findings(refused_format(detected, file))
    return detected.name


def refused_format(detected: DetectedFormat, file: DataFile) -> Problem:
    """The sentence for a format that is recognised, but that no task of this version learns from."""
    what, use, hint = _REFUSED[detected.name]
    message = f"the rows {what}, which are for {use}; task sft learns from conversations, instructions or text"
    return Problem(file.source, message, hint)


def _split(rows: Mapping[str, list[Example]], data: DataRecipe, files: Sequence[DataFile], format: str) -> Splits:
    warnings: list[Problem] = []
    train, valid, test = rows["train"], rows["valid"], rows["test"]
    val_split = 0.0 if valid else data.val_split
    test_split = 0.0 if test or valid else data.test_split  # files that are given win: nothing is taken from train
    keys = [content_key(example) for example in train]
    if valid or test:
        warnings += _leaks(keys, valid, test)
    sides = choose_sides(keys, val_split, test_split)
    chosen = {
        side: [row for row, its in zip(train, sides, strict=True) if its == side] for side in (TRAIN, VALID, TEST)
    }
    valid, test = valid or chosen[VALID], test or chosen[TEST]
    if val_split > 0 and not valid:
        warnings.append(Problem(files[0].source, "too few different rows for a validation set; all are trained on"))
    counts = {"train": len(chosen[TRAIN]), "valid": len(valid), "test": len(test)}
    return Splits(
        tuple(chosen[TRAIN]),
        tuple(valid),
        tuple(test),
        format,
        tuple(file.path for file in files),
        hash_files(files),
        tuple(warnings),
        counts,
    )


def _leaks(train_keys: Sequence[int], valid: Sequence[Example], test: Sequence[Example]) -> Iterator[Problem]:
    known = set(train_keys)
    for name, examples in (("validation", valid), ("test", test)):
        again = [example for example in examples if content_key(example) in known]
        if again:
            first = again[0]
            yield Problem(
                f"{first.source}:{first.line}",
                f"{len(again)} of {len(examples)} {name} rows are training rows too: their loss says little",
                "remove them from one of the files",
            )


def hash_files(files: Sequence[DataFile]) -> str:
    """SHA-256 over the bytes of every file, in order; of a split of a Hugging Face data set, over its Arrow files."""
    digest = hashlib.sha256()
    for file in files:
        for path in table_files(file) if file.table else [file.path]:
            with path.open("rb") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
    return digest.hexdigest()
