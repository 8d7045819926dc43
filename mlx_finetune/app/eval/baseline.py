"""What a classifier must beat: naming always the commonest class of the rows, and chance."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mlx_finetune.app.eval.figures import ALPHA, Change, Figure, Rows, change, figure
from mlx_finetune.app.eval.measures import Measure


@dataclass(frozen=True, slots=True)
class Baseline:
    """The class that most rows have, how often it is right, and the change from it to the model; chance is one class of
    ``num_classes``. ``sentence`` says all of it.
    """

    label: str
    figure: Figure
    change: Change
    num_classes: int
    sentence: str

    @property
    def is_beaten(self) -> bool:
        """Whether the model is surely right more often."""
        return self.change.value > 0 and self.change.p < ALPHA


def baseline_of(labels: Sequence[str], accuracy: Measure, right: Rows, classes: Rows, *, seed: int) -> Baseline | None:
    """From the rows of one side, ``right`` or not and (right class, named class) by number; None without a class."""
    counts = Counter(int(classes[row][0]) for row in right if row in classes and classes[row][0] >= 0)
    if not counts:
        return None
    commonest = min(counts, key=lambda place: (-counts[place], place))
    always: Rows = {row: (float(classes[row][0] == commonest),) for row in right if row in classes}
    found, gain = figure(accuracy, always, seed=seed), change(accuracy, always, right, seed=seed)
    assert found is not None, "there is a row"
    assert gain is not None, "the rows are the same"
    sentence = (
        f"Always `{labels[commonest]}`, the commonest class of these rows, is right for {found.num_right} of "
        f"{found.num_rows} (95 % interval of the gain over it {gain.low:+.2f} to {gain.high:+.2f}); chance is 1 of "
        f"{len(labels)} classes, {1 / len(labels):.1%}."
    )
    return Baseline(labels[commonest], found, gain, len(labels), sentence)
