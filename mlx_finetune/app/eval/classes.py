"""Which class was taken for which: a confusion matrix of each side, and precision, recall and F1 of each class."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mlx_finetune.app.text import shorten

#: Classes that are printed; all of them are in the JSON.
_SHOWN = 10
_NAME, _CELL = 16, 7


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One class: rows of it, rows taken for it, and shares of 0 to 1 (0 where there is nothing to divide by)."""

    name: str
    num_rows: int
    num_named: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True)
class Confusion:
    """``counts[i][j]`` rows of class i were taken for class j; the last column are rows where none was named."""

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    @property
    def classes(self) -> tuple[ClassScore, ...]:
        """Every class by itself: ``2 tp / (2 tp + fp + fn)`` is its F1."""
        found: list[ClassScore] = []
        for place, name in enumerate(self.labels):
            hits = self.counts[place][place]
            own, named = sum(self.counts[place]), sum(row[place] for row in self.counts)
            f1 = 2 * hits / (own + named) if own + named else 0.0
            found.append(ClassScore(name, own, named, hits / named if named else 0.0, hits / own if own else 0.0, f1))
        return tuple(found)


def confusion_of(labels: Sequence[str], pairs: Sequence[tuple[float, ...]]) -> Confusion:
    """From pairs (right class, named class) by their numbers, -1 for none; rows without a right class are left out."""
    counts = [[0] * (len(labels) + 1) for _ in labels]
    for right, named in pairs:
        if right >= 0:
            counts[int(right)][int(named)] += 1  # -1 is the last column
    return Confusion(tuple(labels), tuple(tuple(row) for row in counts))


def confusion_lines(sides: Mapping[str, Confusion], side: str) -> Iterator[str]:
    """The matrix of one side and its classes, in lines of at most 80 columns where there are few classes."""
    found = sides.get(side)
    if found is None:
        return
    yield ""
    if len(found.labels) <= _SHOWN - 2:
        has_none = any(row[-1] for row in found.counts)
        heads = [*found.labels, *(["none"] if has_none else [])]
        yield f"{side + ', taken for':<{_NAME}}" + "".join(f"{shorten(head, _CELL - 1):>{_CELL}}" for head in heads)
        for name, row in zip(found.labels, found.counts, strict=True):
            yield f"{shorten(name, _NAME - 1):<{_NAME}}" + "".join(f"{count:>{_CELL}}" for count in row[: len(heads)])
        yield ""
    yield f"{side + ', by class':<{_NAME}}{'rows':>{_CELL}}{'named':>{_CELL}}{'precision':>11}{'recall':>8}{'F1':>7}"
    for one in found.classes[:_SHOWN]:
        numbers = f"{one.precision:>11.3f}{one.recall:>8.3f}{one.f1:>7.3f}"
        yield f"{shorten(one.name, _NAME - 1):<{_NAME}}{one.num_rows:>{_CELL}}{one.num_named:>{_CELL}}{numbers}"
    if len(found.labels) > _SHOWN:
        yield f"{len(found.labels) - _SHOWN} more classes are in the JSON"
