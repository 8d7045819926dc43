"""The loss by bucket of positions for each of the four ways; as CSV, as JSON, and for a person."""

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from mlx_finetune.app.eval.journal import Journal
from mlx_finetune.app.eval.sinks.setup import BUCKETS, CONTEXTS, NUM_TEXTS, Experiment
from mlx_finetune.app.eval.table import wrapped
from mlx_finetune.model.long_text.reading import FULL, METHODS, SINKS, TURNED, WINDOW
from mlx_finetune.model.long_text.sink_cache import NUM_SINKS
from mlx_finetune.scoring.intervals import bootstrap_mean, paired_bootstrap
from mlx_finetune.scoring.positions import Bucket, Loss

FORMAT_VERSION = 1
#: Method -> what is kept.
MEANING = {
    FULL: "every token",
    WINDOW: "the latest tokens, as many as a context",
    SINKS: f"the first {NUM_SINKS} tokens and the latest, where they stood in the text",
    TURNED: f"the same, the first {NUM_SINKS} turned to their positions among what is kept",
}


@dataclass(frozen=True, slots=True)
class SinkReport:
    """Every bucket; ``inside`` and ``behind`` are the losses up to the context and from there on, by method.

    ``step`` is that of the weights of a run.
    """

    subject: str
    model: str
    source: str
    context: int
    own_context: int | None
    num_texts: int
    num_tokens: int
    tokenizer: str
    methods: tuple[str, ...]
    meaning: Mapping[str, str]
    buckets: tuple[Bucket, ...]
    inside: Mapping[str, Loss]
    behind: Mapping[str, Loss]
    sentence: str
    is_whole: bool
    step: int | None = None


def sink_report(experiment: Experiment, journal: Journal, *, is_whole: bool) -> SinkReport:
    """The report over the texts that all methods have read."""
    opened = experiment.subject.opened
    read = {
        method: {one.row: one.values["nats"] for one in journal.found.values() if one.work == method}
        for method in METHODS
    }
    shared = sorted(frozenset.intersection(*(frozenset(rows) for rows in read.values())))
    values = {method: np.array([rows[text] for text in shared]) for method, rows in read.items()}  # (N, buckets)
    length, seed = experiment.texts.shape[1] - 1, experiment.subject.seed
    edges = experiment.edges
    inside, sizes = BUCKETS, np.diff(edges)
    whole = {
        part: {m: _loss(np.average(v[:, where], axis=1, weights=sizes[where]), seed) for m, v in values.items()}
        for part, where in (("inside", slice(0, inside)), ("behind", slice(inside, None)))
        if shared
    }
    return SinkReport(
        opened.name,
        opened.info.name,
        experiment.chosen.source,
        experiment.context,
        opened.info.context_length,
        len(shared),
        length,
        opened.tokenizer.settings_hash[:12],
        METHODS,
        MEANING,
        tuple(
            Bucket(edges[place] + 1, edges[place + 1], {m: _loss(v[:, place], seed) for m, v in values.items()})
            for place in range(len(sizes) if shared else 0)
        ),
        whole.get("inside", {}),
        whole.get("behind", {}),
        " ".join(
            filter(
                None,
                (
                    experiment.chosen.remark,
                    _sentence(whole, values, inside, sizes, seed),
                    _joined(experiment.row_tokens, length),
                ),
            )
        )
        if shared
        else "Nothing has been read by all four yet.",
        is_whole,
        experiment.subject.step,
    )


def _loss(values: NDArray[np.float64], seed: int) -> Loss:
    """The mean over texts."""
    mean = float(values.mean())
    if len(values) < 2 or not np.isfinite(values).all():
        return Loss(mean, None, None)
    interval = bootstrap_mean(values, seed=seed)
    return Loss(mean, interval.low, interval.high)


def _sentence(
    whole: Mapping[str, Mapping[str, Loss]],
    values: Mapping[str, NDArray[np.float64]],
    inside: int,
    sizes: NDArray[np.int64],
    seed: int,
) -> str:
    """The four losses behind the context, and whether turning the sinks changes anything."""
    behind = whole["behind"]
    said = ", ".join(f"{behind[method].value:.3f} with {_SHORT[method]}" for method in METHODS)
    text = f"Up to the context a token costs {whole['inside'][FULL].value:.3f} nats; behind it {said}."
    few = "" if len(values[FULL]) >= NUM_TEXTS else f"{_texts(len(values[FULL]))} little. "
    stock, turned = (np.average(values[m][:, inside:], axis=1, weights=sizes[inside:]) for m in (SINKS, TURNED))
    if len(stock) < 2:
        return f"{few}{text} One text gives no interval."
    moved = paired_bootstrap(stock, turned, seed=seed)
    low, high = moved.interval.low, moved.interval.high
    return f"{few}{text} Turning the sinks changes {moved.value:+.3f} (95 % interval {low:+.3f} to {high:+.3f})."


def _joined(row_tokens: float, length: int) -> str:
    """Of rows shorter than a text most tokens have other rows before them, which training may never have shown."""
    if row_tokens >= length:
        return ""
    return (
        f"A text is many rows, of {row_tokens:.0f} tokens on average, one behind the other: a model that saw each row "
        "by itself has not learned to read them so (the task perplexity reads each by itself)."
    )


def _texts(count: int) -> str:
    return "One text proves" if count == 1 else f"{count} texts prove"


_SHORT = {FULL: "every token kept", WINDOW: "a window", SINKS: "sinks", TURNED: "turned sinks"}


def csv_text(report: SinkReport) -> str:
    """One line for each bucket: nats a token and 95 % interval of each method."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    ends = [f"{method}{end}" for method in METHODS for end in ("", "_low", "_high")]
    writer.writerow(["first", "last", *ends, "texts", "context", "tokenizer"])
    for one in report.buckets:
        losses = [one.losses[method] for method in METHODS]
        cells = [number for loss in losses for number in (loss.value, loss.low, loss.high)]
        writer.writerow([one.first, one.last, *cells, report.num_texts, report.context, report.tokenizer])
    return out.getvalue()


def report_json(report: SinkReport) -> dict[str, object]:
    """Everything as plain values."""
    return {"format_version": FORMAT_VERSION, **asdict(report)}


def report_lines(report: SinkReport) -> Iterator[str]:
    """The experiment for a person, in 80 columns."""
    start = "" if report.is_whole else "interrupted, what was read so far; "
    texts = "1 text" if report.num_texts == 1 else f"{report.num_texts} texts"
    yield from wrapped(
        f"{start}{report.subject} on {texts} of {report.num_tokens:,} tokens from {report.source}, {CONTEXTS} times "
        f"the context of {report.context:,}"
    )
    if report.own_context not in (None, report.context):
        yield from wrapped(
            f"The model's own context is {report.own_context:,}: up to there it has learned to use every token kept."
        )
    yield ""
    yield from wrapped(report.sentence)
    yield ""
    yield f"{'tokens':>15}" + "".join(f"{method:>16}" for method in METHODS)
    for one in report.buckets:
        mark = "  behind the context" if one.first == report.context + 1 else ""
        if mark:
            yield mark
        yield f"{f'{one.first:,}-{one.last:,}':>15}" + "".join(f"{_cell(one.losses[m]):>16}" for m in METHODS)
    yield ""
    for method in METHODS:
        yield from wrapped(f"{method}: keeps {report.meaning[method]}")
    yield from wrapped(
        "Loss in nats a token, and what to add and take away for the 95 % interval over texts; tokenizer "
        f"{report.tokenizer}."
    )


def _cell(loss: Loss) -> str:
    if loss.low is None or loss.high is None:
        return f"{loss.value:.3f}"
    return f"{loss.value:.3f} +-{max(loss.high - loss.value, loss.value - loss.low):.2f}"
