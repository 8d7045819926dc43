"""What was measured at every point of a run, added up; as CSV, as JSON, and for a person.

An interval draws rows again, not tokens. From one point to the next the same rows are compared, so the interval of a
change is much narrower than those of its two ends.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from mlx_finetune.app.eval.checkpoints.measure import LOSSES, Sample
from mlx_finetune.app.eval.checkpoints.setup import Course
from mlx_finetune.app.eval.figures import ALPHA, Change, Figure, change, figure
from mlx_finetune.app.eval.journal import Journal
from mlx_finetune.app.eval.measures import Measure
from mlx_finetune.app.eval.table import WIDTH, wrapped
from mlx_finetune.app.eval.verdict import FEW_ROWS, no_interval
from mlx_finetune.app.text import shorten
from mlx_finetune.units import counted

FORMAT_VERSION = 1
#: Prompts whose answers are printed; all of them are in the JSON.
_SHOWN_PROMPTS = 5
#: Sums and counts of one row, by name.
Values = Mapping[str, tuple[float, ...]]
#: Values of a row -> the figure that they add up to.
_FIGURES = {
    "loss": Measure("loss", "loss", LOSSES, "ratio", "loss", is_higher_better=False),
    "perplexity": Measure("loss", "loss", LOSSES, "ratio", "perplexity", is_higher_better=False, scale="exp"),
    "bits_per_byte": Measure(
        "bits_per_byte", "loss", LOSSES, "ratio", "bits per byte", is_higher_better=False, scale="bits"
    ),
}


@dataclass(frozen=True, slots=True)
class At:
    """One point. ``figures`` by name: loss in nats a token, perplexity, bits per byte; empty where nothing is finite.

    ``change`` is that of bits per byte from the point before.
    """

    step: int
    name: str
    figures: Mapping[str, Figure]
    change: Change | None

    @property
    def place(self) -> str:
        """For a sentence."""
        return f"at step {self.step}" if self.step else "before training"


@dataclass(frozen=True, slots=True)
class CourseReport:
    """All points in order, with what the figures are of. ``how`` says how texts were read, "" for answers; ``window``
    and ``stride`` are None where no text was longer than the context.
    """

    run: str
    model: str
    what: str
    source: str
    split: str
    num_rows: int
    num_tokens: int
    num_bytes: int
    tokenizer: str
    window: int | None
    stride: int | None
    points: tuple[At, ...]
    samples: tuple[Sample, ...]
    sentence: str
    num_failed: int
    is_whole: bool
    unit: str = "row"
    how: str = ""


def course_report(course: Course, journal: Journal, samples: Sequence[Sample], *, is_whole: bool) -> CourseReport:
    """The report over what the journal has."""
    columns = {point.key: _rows(journal, point.key) for point in course.points}
    filled = [frozenset(rows) for rows in columns.values() if rows]
    shared = sorted(frozenset.intersection(*filled)) if filled else []
    columns = {key: {row: rows[row] for row in shared} if rows else {} for key, rows in columns.items()}
    points: list[At] = []
    before: Mapping[int, Values] | None = None
    for point in course.points:
        rows = columns[point.key]
        if not rows and not is_whole:
            continue
        figures = {name: made for name, one in _FIGURES.items() if (made := _figure(one, rows, course.recipe.seed))}
        points.append(At(point.step, point.name, figures, _change(before, rows, course.recipe.seed)))
        before = rows or before
    first = next((rows for rows in columns.values() if rows), {})
    tokens, sizes = (
        [first[row][name][1] for row in shared if name in first[row]] for name in ("loss", "bits_per_byte")
    )
    reading = course.reading
    return CourseReport(
        course.run.path.name,
        course.model_name,
        "texts" if reading else "answers",
        course.chosen.source,
        course.chosen.split,
        len(shared),
        int(sum(tokens)),
        int(sum(sizes)),
        course.tokenizer.settings_hash[:12],
        reading.window if reading and reading.num_long else None,
        reading.stride if reading and reading.num_long else None,
        tuple(points),
        tuple(samples),
        f"{course.chosen.remark} {_sentence(points, columns, course, shared)}".strip(),
        len({one.row for one in journal.found.values() if one.work == LOSSES and one.error}),
        is_whole,
        course.chosen.unit,
        reading.described() if reading else "",
    )


def _rows(journal: Journal, key: str) -> dict[int, Values]:
    return {
        one.row: one.values for one in journal.found.values() if one.work == LOSSES and one.side == key and one.values
    }


def _of(measure: Measure, rows: Mapping[int, Values]) -> dict[int, tuple[float, ...]]:
    return {row: values[measure.name] for row, values in rows.items() if measure.name in values}


def _figure(measure: Measure, rows: Mapping[int, Values], seed: int) -> Figure | None:
    return figure(measure, _of(measure, rows), seed=seed)


def _change(before: Mapping[int, Values] | None, rows: Mapping[int, Values], seed: int) -> Change | None:
    if not before or not rows:
        return None
    measure = _FIGURES["bits_per_byte"]
    return change(measure, _of(measure, before), _of(measure, rows), seed=seed)


def _sentence(
    points: Sequence[At], columns: Mapping[str, Mapping[int, Values]], course: Course, shared: Sequence[int]
) -> str:
    """From the first point to the last in words, and where it was lowest.

    The lowest of many is low by luck too, so the last point is tested as if against each of the others (Bonferroni).
    """
    known = [(at, point.key) for at in points for point in course.points if point.step == at.step and at.figures]
    if len(known) < 2:
        return "Too little was measured for a course."
    is_or_are = "is" if len(shared) == 1 else "are"
    few = f"{counted(len(shared), course.chosen.unit)} {is_or_are} few. " if len(shared) < FEW_ROWS else ""
    value = {at.step: at.figures["bits_per_byte"].value for at, _ in known if "bits_per_byte" in at.figures}
    if len(value) < 2:
        return "The rows have no bytes to count."
    (first, first_key), (last, last_key) = known[0], known[-1]
    lowest, lowest_key = min(known, key=lambda one: value.get(one[0].step, float("inf")))
    moved = _change(columns[first_key], columns[last_key], course.recipe.seed)
    parts = [f"Bits per byte {_number(value[first.step])} {first.place}, {_number(value[last.step])} {last.place}"]
    parts.append(f" ({_moved(moved)})" if moved else "")
    if lowest is not last:
        back = _change(columns[lowest_key], columns[last_key], course.recipe.seed)
        sure = "worse for sure" if back and back.p * (len(known) - 1) < ALPHA else "not worse for sure"
        parts.append(f". It was lowest {lowest.place}, {_number(value[lowest.step])}; the last one is {sure}")
    return f"{few}{''.join(parts)}."


def _moved(moved: Change) -> str:
    if moved.low is None or moved.high is None:
        return f"change {moved.value:+.3f}, no interval: {no_interval(moved)}"
    return f"change {moved.value:+.3f}, 95 % interval {moved.low:+.3f} to {moved.high:+.3f}"


def _number(value: float) -> str:
    return f"{value:.3f}" if value < 100 else f"{value:.4g}"


COLUMNS = ("loss", "perplexity", "bits_per_byte")


def csv_text(report: CourseReport) -> str:
    """One line for each point; nats for each token, perplexity, bits for each byte, with 95 % intervals."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    ends = [f"{name}{end}" for name in COLUMNS for end in ("", "_low", "_high")]
    change_names = ["change_bits_per_byte", "change_low", "change_high", "change_p"]
    of = ["rows", "tokens", "bytes", "read", "window", "stride", "tokenizer"]
    writer.writerow(["step", "name", *ends, *change_names, *of])
    what = [report.num_rows, report.num_tokens, report.num_bytes, report.how, report.window, report.stride]
    what += [report.tokenizer]
    for at in report.points:
        cells: list[object] = []
        for name in COLUMNS:
            one = at.figures.get(name)
            cells += [one.value, one.low, one.high] if one else ["", "", ""]
        moved = at.change
        cells += [moved.value, moved.low, moved.high, moved.p] if moved else [""] * 4
        writer.writerow([at.step, at.name, *cells, *what])
    return out.getvalue()


def report_json(report: CourseReport) -> dict[str, object]:
    """Everything as plain values."""
    return {"format_version": FORMAT_VERSION, **asdict(report)}


def report_lines(report: CourseReport) -> Iterator[str]:
    """The course for a person, in 80 columns."""
    split = "" if report.split == "all" else f"{report.split} "
    what = f"{report.unit}s" if report.what == "texts" else "rows with answers"
    start = "" if report.is_whole else "interrupted, what was measured so far; "
    yield from wrapped(f"{start}{report.run} ({report.model}) on {report.num_rows} {split}{what} of {report.source}")
    yield ""
    yield from wrapped(report.sentence)
    yield ""
    yield f"{'step':>6}{'loss':>7}{'perplexity':>11}{'bits/byte':>10}  {'95 % interval':<17}{'change':<8}95 % interval"
    for at in report.points:
        yield _line(at).rstrip()
    yield from _sample_lines(report)
    yield ""
    yield from wrapped(_reading(report))
    if report.num_failed:
        yield from wrapped(
            f"{report.num_failed} {report.unit}s could not be measured at some point and are left out of all."
        )


def _sample_lines(report: CourseReport) -> Iterator[str]:
    """Each prompt with its answers below one another, the first characters of each."""
    prompts = list(dict.fromkeys(one.prompt for one in report.samples))
    for prompt in prompts[:_SHOWN_PROMPTS]:
        yield ""
        yield shorten(f"prompt {prompt}", WIDTH)
        for one in report.samples:
            if one.prompt == prompt:
                yield f"{one.step:>6}  {shorten(one.answer, WIDTH - 8) or '(nothing)'}"
    if len(prompts) > _SHOWN_PROMPTS:
        yield f"{len(prompts) - _SHOWN_PROMPTS} more prompts are in the JSON and the report"


def _line(at: At) -> str:
    bits = at.figures.get("bits_per_byte")
    if not at.figures or bits is None:
        return f"{at.step:>6}  no loss is a finite number"
    loss, perplexity = at.figures["loss"].value, at.figures["perplexity"].value
    span = no_interval(bits) if bits.low is None or bits.high is None else f"{bits.low:.3f} to {bits.high:.3f}"
    line = f"{at.step:>6}{loss:>7.3f}{_short(perplexity):>11}{bits.value:>10.3f}  {span:<17}"
    moved = at.change
    if moved is None:
        return line
    if moved.low is None or moved.high is None:
        return f"{line}{moved.value:<+8.3f}{no_interval(moved)}"
    return f"{line}{moved.value:<+8.3f}{moved.low:+.3f} to {moved.high:+.3f}"


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 10_000 else f"{value:.3g}"


def _reading(report: CourseReport) -> str:
    of = f"{report.num_tokens:,} tokens, {report.num_bytes:,} bytes"
    if not report.how:
        how = f"Loss and perplexity are of the answers: {of}, tokenizer {report.tokenizer}."
    else:
        how = f"Loss and perplexity are of the text, read {report.how}: {of}, tokenizer {report.tokenizer}."
    return f"{how} With another tokenizer only bits per byte can be compared. A change is from the point before."
