"""Every checkpoint beside the others: loss, perplexity, bits per byte, and the same prompts answered by each."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from mlx_finetune.monitor.filmstrip import changed_words
from mlx_finetune.monitor.report.chart import Chart, Series, draw
from mlx_finetune.monitor.report.facts import ReportFacts
from mlx_finetune.monitor.report.markup import Child, Html, code, cut, details, foreign, section, table, tag
from mlx_finetune.monitor.report.text_results import At, Course, Sample

MOST_COURSES, MOST_PROMPTS, MOST_FRAMES = 4, 12, 30
MAX_ANSWER_CHARACTERS = 1500
_BITS = "bits_per_byte"


def checkpoints(facts: ReportFacts) -> Html | None:
    """The section; None where the checkpoints were not measured."""
    results = facts.texts
    damaged = [name for name in results.damaged if name.startswith("checkpoints/")]
    if not results.courses and not damaged:
        return None
    older = results.courses[MOST_COURSES:]
    return section(
        "checkpoints",
        "Every checkpoint, measured",
        tag("p", "The same rows at every checkpoint. Lower is better in all of them.", class_="hint"),
        *(_course(one) for one in results.courses[:MOST_COURSES]),
        details(f"{len(older)} older", tag("ul", *(_older(one) for one in older[:100]))) if older else None,
        *(tag("p", code(f"eval/{name}"), " cannot be read and is left out.") for name in damaged[:20]),
    )


def _older(one: Course) -> Html:
    return tag("li", tag("b", foreign(one.name, 60)), " ", foreign(one.sentence, 600))


def _course(one: Course) -> Html:
    split = "" if one.split in ("", "all") else f", split {one.split}"
    rows = tag(
        "span",
        f"{one.num_rows:,} {'blocks' if one.unit == 'block' else 'rows'} of ",
        foreign(one.source, 200),
        split,
        class_="same",
    )
    charts = [figure for chart in _charts(one) if (figure := draw(chart)) is not None]
    return tag(
        "article",
        tag("h3", foreign(one.name, 60), " ", rows),
        tag("p", foreign(one.sentence, 1000), class_="verdict open"),
        tag("div", *charts, class_="charts") if charts else None,
        _figures(one.points),
        tag("p", *_reading(one), class_="note"),
        *_samples(one.samples),
        class_="evaluation",
    )


def _charts(one: Course) -> Iterator[Chart]:
    for name, title in ((_BITS, "Bits per byte"), ("loss", "Loss"), ("perplexity", "Perplexity")):
        known = [(float(at.step), at.figures[name]) for at in one.points if name in at.figures]
        spans = [(step, figure) for step, figure in known if figure.low is not None and figure.high is not None]
        steps = [step for step, _ in spans]
        yield Chart(
            title,
            (
                Series(
                    title.lower(), "first", [step for step, _ in known], [figure.value for _, figure in known], True
                ),
                Series("95 % interval", "raw", steps, [figure.low or 0.0 for _, figure in spans]),
                Series("", "raw", steps, [figure.high or 0.0 for _, figure in spans]),
            ),
            from_zero=False,
            may_be_log=name == "perplexity",
        )


def _figures(points: Sequence[At]) -> Html:
    """One line a checkpoint: the figures of the CSV."""
    head = ("step", "loss", "perplexity", "bits per byte", "95 % interval", "change", "95 % interval")
    rows: list[list[Child]] = []
    for at in points:
        if _BITS not in at.figures or "loss" not in at.figures:
            rows.append([f"{at.step:,}", "not a finite number", "", "", "", "", ""])
            continue
        bits, moved = at.figures[_BITS], at.change
        rows.append(
            [
                f"{at.step:,}",
                f"{at.figures['loss'].value:.3f}",
                f"{at.figures['perplexity'].value:,.2f}" if "perplexity" in at.figures else "",
                f"{bits.value:.3f}",
                _ends(bits.low, bits.high, ".3f"),
                f"{moved.value:+.3f}" if moved else "",
                _ends(moved.low, moved.high, "+.3f") if moved else "",
            ]
        )
    return table(head, rows, class_="figures")


def _ends(low: float | None, high: float | None, form: str) -> str:
    return "none" if low is None or high is None else f"{low:{form}} to {high:{form}}"


def _reading(one: Course) -> list[Child]:
    return [
        f"Loss (nats a token) and perplexity are of {one.num_tokens:,} tokens, ",
        *((foreign(one.how, 100), ", ") if one.how else ()),
        "tokenizer ",
        code(one.tokenizer, 40),
        f"; bits per byte of {one.num_bytes:,} bytes, which is what models with other tokenizers can be compared by. "
        "Intervals are over rows; a change is from the checkpoint before, over the same rows.",
    ]


def _samples(samples: Sequence[Sample]) -> Iterator[Html]:
    """Each prompt with its answers in a row, from the first checkpoint to the last."""
    prompts = list(dict.fromkeys(one.prompt for one in samples))
    if prompts:
        yield tag("h3", "The same prompts at every checkpoint")
    for prompt in prompts[:MOST_PROMPTS]:
        answered = sorted((one for one in samples if one.prompt == prompt), key=lambda one: one.step)
        count = min(MOST_FRAMES, len(answered))
        shown = [answered[(len(answered) - 1) * place // max(1, count - 1)] for place in range(count)]
        before = {later.step: earlier.answer for earlier, later in pairwise(shown)}
        yield tag(
            "article",
            tag("h4", tag("span", "Prompt ", class_="who"), foreign(prompt, 1000)),
            tag("div", *(_frame(one, before.get(one.step)) for one in shown), class_="strip"),
        )
    if len(prompts) > MOST_PROMPTS:
        yield tag("p", f"{MOST_PROMPTS} of {len(prompts)} prompts are shown; all are in the JSON file.", class_="note")


def _frame(one: Sample, before: str | None) -> Html:
    text = cut(one.answer, MAX_ANSWER_CHARACTERS)
    when = f"step {one.step:,}" if one.step else "before training"
    return tag("div", tag("h4", when), tag("bdi", *_marked(before, text), class_="text"), class_="frame")


def _marked(before: str | None, text: str) -> list[Child]:
    if not text.strip():
        return [tag("span", "(nothing)", class_="same")]
    if before is None:
        return [text]
    pieces = changed_words(cut(before, MAX_ANSWER_CHARACTERS), text)
    return [tag("mark", piece.text) if piece.is_changed else piece.text for piece in pieces]
