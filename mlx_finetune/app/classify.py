"""Labels for texts: what ``mlxft generate`` does with a classifier. A text is read as it was in training."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlx_finetune.app.open import Opened
from mlx_finetune.dataset.formats import Labelled
from mlx_finetune.dataset.layouts import find_layout
from mlx_finetune.dataset.read import read_rows
from mlx_finetune.dataset.row import Row
from mlx_finetune.dataset.walk import Walk
from mlx_finetune.errors import DataError, Problem, UsageError
from mlx_finetune.model.heads.token_scores import ScoringModel
from mlx_finetune.model.likelihoods import Ids

_AT_ONCE = 256
_TEXT_FIELDS = ("prompt", "text", "sentence", "review")


@dataclass(frozen=True, slots=True)
class TextRow:
    """A text of a file; ``where`` is ``file:line``, empty for one from the command line."""

    text: str
    where: str = ""


@dataclass(frozen=True, slots=True)
class Labelling:
    """The likeliest label of a text, and the probability of each, likeliest first; of one that ``is_cut`` only the end
    was read, as much as ``max_seq_length`` allows."""

    text: str
    label: str
    probabilities: Mapping[str, float]
    is_cut: bool

    def to_json(self) -> dict[str, object]:
        """Plain values, probabilities with six digits."""
        rounded = {label: round(value, 6) for label, value in self.probabilities.items()}
        return {"prompt": self.text, "label": self.label, "probabilities": rounded, "cut": self.is_cut}


def check_answers(opened: Opened, verb: str) -> None:
    """Raise ``UsageError`` where ``opened`` was trained to score and not to write: there is nothing to ``verb``."""
    head = opened.head
    if head is None or head.task not in ("classify", "reward"):
        return
    what = "a classifier: it gives labels" if head.task == "classify" else "a reward model: it gives scores"
    way = f'mlxft generate {opened.name} --prompt "TEXT" prints the label of a text'
    hint = way if head.task == "classify" else "name the run of the model whose answers it scores"
    raise UsageError(f"{opened.name} is {what} and no answers, so there is nothing to {verb}", hint)


def label_texts(opened: Opened, rows: Sequence[TextRow], report: Callable[[Problem], None]) -> Iterator[Labelling]:
    """The label of each text, in order; a text that cannot be read is reported and left out."""
    head = opened.head
    assert head is not None, "the caller has asked for a classifier"
    scoring = ScoringModel(opened.model)
    for start in range(0, len(rows), _AT_ONCE):
        read = [(row, _read(opened, row, report)) for row in rows[start : start + _AT_ONCE]]
        kept = [(row, one) for row, one in read if one is not None]
        if not kept:
            continue
        scores = scoring.last([ids for _, (ids, _) in kept]).astype(np.float64)
        exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
        for (row, (_, is_cut)), shares in zip(
            kept, exponentials / exponentials.sum(axis=1, keepdims=True), strict=True
        ):
            order = np.argsort(-shares, kind="stable")
            found = {head.labels[int(place)]: float(shares[place]) for place in order}
            yield Labelling(row.text, next(iter(found)), found, is_cut)


def read_texts(path: Path, opened: Opened, report: Callable[[Problem], None]) -> list[TextRow]:
    """The texts in a file: the lines of a text file, or the text column of a table or JSON Lines.

    Raises ``DataError`` where there is none.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file", "give a text file with one text a line, or a table of rows")
    if path.suffix.lower() in (".txt", ".md", ""):
        try:
            lines = path.read_text("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 (byte {error.start})", "save it as UTF-8") from None
        found = [TextRow(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    else:
        found = [one for row in read_rows(path, report=report) if (one := _text(row, opened, report)) is not None]
    if not found:
        raise DataError(f"{path} holds no text", "a row needs `prompt` or `text`, or the column of [data.columns]")
    return found


def _text(row: Row, opened: Opened, report: Callable[[Problem], None]) -> TextRow | None:
    layout = find_layout(row.fields, opened.data.columns, "labels")
    names = [layout.names["text"]] if layout else [name for name in _TEXT_FIELDS if name in row.fields]
    value = row.fields[names[0]] if names else None
    if isinstance(value, str) and value.strip():
        return TextRow(value, row.where)
    report(Problem(row.where, "the row has no text", "a row needs `prompt` or `text`, or the column of [data.columns]"))
    return None


def _read(opened: Opened, row: TextRow, report: Callable[[Problem], None]) -> tuple[Ids, bool] | None:
    """The tokens of a text without the one behind it, and whether they are its end alone; None where it is refused."""
    data = opened.data.model_copy(update={"truncation": "keep-end"})
    walk = Walk(opened.tokenizer, data, task="classify", base=None)
    example = Labelled(row.text, "", row.where.rpartition(":")[0], 0)
    for draft in walk.drafts(example):
        encoding, most = opened.tokenizer.encode(draft.text), opened.info.context_length
        if most and len(encoding.ids) > most:
            message = f"{len(encoding.ids)} tokens are more than the {most} that the model reads"
            report(Problem(row.where, message, "give it a shorter text"))
            return None
        if made := walk.rows(draft, encoding):
            return made[-1].ids[:-1], "cut" in walk.take_tally().outcomes()
    problem = (Problem("", "the text has no token"), *walk.problems())[-1]
    report(Problem(row.where, problem.message, problem.hint))
    return None
