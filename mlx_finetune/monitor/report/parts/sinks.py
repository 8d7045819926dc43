"""Texts longer than the context: the loss by position, with what is kept of them in four ways."""

from collections.abc import Sequence
from pathlib import Path

from mlx_finetune.journal import of_other_weights
from mlx_finetune.monitor.report.chart import Chart, Series, draw
from mlx_finetune.monitor.report.facts import ReportFacts
from mlx_finetune.monitor.report.markup import (
    Child,
    Html,
    code,
    details,
    foreign,
    joined,
    older_note,
    section,
    table,
    tag,
)
from mlx_finetune.monitor.report.text_results import SinkExperiment
from mlx_finetune.rundir import RunDir
from mlx_finetune.scoring.positions import Loss

MOST = 4
_LOOKS = ("first", "second", "third", "fourth")


def sinks(facts: ReportFacts) -> Html | None:
    """The section; None where no such text was read."""
    damaged = [name for name in facts.texts.damaged if name.startswith("sinks/")]
    if not facts.texts.experiments and not damaged:
        return None
    run = RunDir(Path(facts.run.path))
    return section(
        "sinks",
        "Past the context",
        tag(
            "p",
            "Texts three times as long as the context, read to their end. Where the keys and values of all tokens are "
            "not kept, those of the first few (the sinks) are often what a model leans on.",
            class_="hint",
        ),
        *(
            _experiment(one, of_other_weights(run, one.step, measured=one.measured, subject=one.subject))
            for one in facts.texts.experiments[:MOST]
        ),
        *(tag("p", code(f"eval/{name}"), " cannot be read and is left out.") for name in damaged[:20]),
    )


def _experiment(one: SinkExperiment, other_weights: str) -> Html:
    methods = one.methods[:8]
    chart = draw(
        Chart(
            "Loss by position",
            tuple(_series(one, method, look) for method, look in zip(methods, _LOOKS, strict=False)),
            marks=(float(one.context),),
            mark_name="end of the context",
            across="token",
            from_zero=False,
        )
    )
    kept = [
        tag("li", tag("b", foreign(name, 40)), " keeps ", foreign(one.meaning.get(name, ""), 200)) for name in methods
    ]
    texts = "1 text" if one.num_texts == 1 else f"{one.num_texts} texts"
    what = joined([foreign(one.subject, 100), f" on {texts} of {one.num_tokens:,} tokens from "])
    return tag(
        "article",
        tag("h3", foreign(one.name, 60), " ", tag("span", what, foreign(one.source, 200), class_="same")),
        older_note(other_weights),
        tag("p", foreign(one.sentence, 1000), class_="verdict open"),
        chart,
        tag("ul", *kept),
        details("As a table", _table(one, methods)),
        tag("p", "Nats a token, mean over texts; tokenizer ", code(one.tokenizer, 40), ".", class_="note"),
        class_="evaluation",
    )


def _series(one: SinkExperiment, method: str, look: str) -> Series:
    known = [bucket for bucket in one.buckets if method in bucket.losses]
    return Series(
        method, look, [float(bucket.last) for bucket in known], [bucket.losses[method].value for bucket in known], True
    )


def _table(one: SinkExperiment, methods: Sequence[str]) -> Html:
    rows: list[list[Child]] = [
        [f"{bucket.first:,} to {bucket.last:,}", *(_cell(bucket.losses.get(method)) for method in methods)]
        for bucket in one.buckets[:200]
    ]
    return table(("tokens", *(foreign(method, 40) for method in methods)), rows, class_="figures")


def _cell(loss: Loss | None) -> str:
    if loss is None:
        return ""
    span = "" if loss.low is None or loss.high is None else f" ({loss.low:.3f} to {loss.high:.3f})"
    return f"{loss.value:.3f}{span}"
