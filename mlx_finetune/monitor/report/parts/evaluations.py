"""What ``mlxft eval`` found: the verdict, figures of base and tuned with intervals, the rows that changed most."""

from collections.abc import Iterator, Sequence

from mlx_finetune.monitor.report.chart import interval_picture
from mlx_finetune.monitor.report.evaluated import Change, Changed, Evaluation, Figure, Measured
from mlx_finetune.monitor.report.facts import ReportFacts
from mlx_finetune.monitor.report.markup import Child, Html, code, cut, details, foreign, older_note, section, table, tag
from mlx_finetune.units import counted, decimals_beside, format_figure, format_pair

#: Evaluations that are written out; older ones have their verdict only.
_MOST_WHOLE = 8
_MOST_CATEGORIES = 40
_MOST_CLASSES = 30
_HOW_TO_READ = (
    "Base is the model before training, tuned is with what was trained, both on the same rows. 95 times of 100 an "
    "interval holds the true value. Better and worse are said only where a test finds the change too large for chance."
)
_CHANGED = ("base", "tuned")  # the sides that a change is between
_LOOKS = {"learned": "good", "worse": "bad"}


def evaluations(facts: ReportFacts) -> Html | None:
    """The section; None where there was no evaluation."""
    if not facts.evaluations and not facts.damaged:
        return None
    older = facts.evaluations[_MOST_WHOLE:]
    return section(
        "evaluation",
        "What it learned, measured",
        tag("p", _HOW_TO_READ, class_="hint"),
        *(_evaluation(one) for one in facts.evaluations[:_MOST_WHOLE]),
        details(f"{len(older)} older", tag("ul", *(_older(one) for one in older[:200]))) if older else None,
        *(tag("p", code(f"eval/{name}"), " cannot be read and is left out.") for name in facts.damaged[:20]),
    )


def _older(one: Evaluation) -> Html:
    other = f" ({one.other_weights})" if one.other_weights else ""
    return tag("li", tag("b", foreign(one.name, 60)), other, " ", foreign(one.verdict.sentence, 600))


def _evaluation(one: Evaluation) -> Html:
    rows = f"{one.data.num_rows:,} {'blocks' if one.data.unit == 'block' else 'rows'} of "
    whole = None if one.is_whole else tag("p", "Interrupted: the figures are of what was measured so far.")
    return tag(
        "article",
        tag(
            "h3",
            foreign(one.name, 60),
            " ",
            tag("span", rows, foreign(one.data.source, 200), _split(one), class_="same"),
        ),
        older_note(one.other_weights),
        tag("p", foreign(one.verdict.sentence, 1500), class_=f"verdict {_LOOKS.get(one.verdict.outcome, 'open')}"),
        whole,
        _figures([measured for measured in one.measures if measured.is_shown]),
        tag("p", foreign(one.baseline.sentence, 600), class_="note") if one.baseline else None,
        *_readings(one),
        *_gates(one),
        *_confusions(one),
        *_changed("Gained most", one, one.gained),
        *_changed("Lost most", one, one.lost),
        _categories(one),
        *_failed(one),
        class_="evaluation",
    )


def _readings(one: Evaluation) -> Iterator[Html]:
    """How the text of each perplexity was read; results of earlier versions do not say."""
    for name, facts in one.texts.items():
        if "how" in facts:
            what = f"{facts.get('tokens')} tokens, {facts['how']}, tokenizer {facts.get('tokenizer')}"
            yield tag("p", foreign(name, 40), ": ", foreign(what, 200), class_="note")


def _split(one: Evaluation) -> str:
    """``, split test``; nothing for a whole file."""
    return "" if one.data.split in ("", "all") else f", split {one.data.split}"


def _figures(measures: Sequence[Measured]) -> Html:
    """One line a measure: both sides, the change with its interval, what the test says; other sides below, alone."""
    sides = list(dict.fromkeys(side for one in measures for side in one.sides))
    has_change = any(one.change for one in measures)
    head: list[Child] = ["", *(foreign(side, 40) for side in sides)]
    head += ["change", "95 % interval", "", ""] if has_change else ["", "95 % interval"]
    rows: list[list[Child]] = []
    for one in measures:
        texts = _values(one)
        cells: list[Child] = [texts.get(side, "") for side in sides]
        rows.append([foreign(one.title, 120), *cells, *(_change(one) if has_change else _alone(one))])
    return table(head, rows, class_="figures")


def _values(one: Measured) -> dict[str, str]:
    """Each side's figure; of a sure change those that it is between with digits that tell them apart."""
    texts = {side: _value(figure) for side, figure in one.sides.items()}
    both = [one.sides[side] for side in _CHANGED if side in one.sides]
    if _is_sure(one) and len(both) == 2 and not any(map(_is_counted, both)):
        pair = format_pair(both[0].value, both[1].value, grouped=True)
        texts |= dict(zip(_CHANGED, pair, strict=True))
    return texts


def _is_shown(one: Measured) -> bool:
    """Whether a sure change can be seen in the figures of its sides."""
    texts = [text for side, text in _values(one).items() if side in _CHANGED]
    return len(texts) < 2 or texts[0] != texts[1]


def _is_sure(one: Measured) -> bool:
    return one.is_better or one.is_worse


def _change(one: Measured) -> list[Child]:
    if one.change is None:
        return ["", "", "", ""]
    word = "better" if one.is_better else "worse" if one.is_worse else "unsure" if one.is_tested else ""
    change, same = one.change, 1.0 if one.change.is_factor else 0.0
    decimals = decimals_beside(same, (change.value, change.low, change.high)) if _is_sure(one) else 2
    said = word if _is_shown(one) or not _is_sure(one) else "no change that shows"
    sign = tag("b", said, class_=word) if word else ""
    return [_amount(change, decimals), _span(change, decimals), _picture(change, word), sign]


def _picture(change: Change, word: str) -> Html | None:
    """The interval as a bar around no change."""
    if change.low is None or change.high is None:
        return None
    none = 1.0 if change.is_factor else 0.0
    return interval_picture(change.low - none, change.value - none, change.high - none, look=word or "unsure")


def _alone(one: Measured) -> list[Child]:
    figure = next(iter(one.sides.values()), None)
    if figure is None:
        return ["", ""]
    return ["", _ends(figure.low, figure.high)]


def _is_counted(figure: Figure) -> bool:
    return figure.num_right is not None and figure.num_rows < 1000


def _value(figure: Figure) -> str:
    """``41 of 50`` for a rate of few rows."""
    if _is_counted(figure):
        return f"{figure.num_right} of {figure.num_rows}"
    return _digits(figure.value)


def _amount(change: Change, decimals: int) -> str:
    return f"\u00d7 {change.value:.{decimals}f}" if change.is_factor else f"{change.value:+.{decimals}f}"


def _span(change: Change, decimals: int) -> str:
    if change.low is None or change.high is None:
        return "none: too few rows, or all alike"
    sign = "\u00d7 " if change.is_factor else ""
    form = f".{decimals}f" if change.is_factor else f"+.{decimals}f"
    return f"{sign}{change.low:{form}} to {change.high:{form}}"


def _ends(low: float | None, high: float | None) -> str:
    return "none" if low is None or high is None else f"{_digits(low)} to {_digits(high)}"


def _digits(value: float) -> str:
    """Two or three digits that matter."""
    return format_figure(value, grouped=True)


def _confusions(one: Evaluation) -> Iterator[Html]:
    """Of each side a matrix of classes: rows are the right ones, columns what they were taken for, darker for more."""
    for side, found in one.classes.items():
        if not found.labels or len(found.labels) > _MOST_CLASSES:
            continue
        has_none = any(row[-1] for row in found.counts)
        head: list[Child] = ["", *(foreign(label, 40) for label in found.labels), *(["none"] if has_none else [])]
        rows: list[list[Child]] = []
        for label, row in zip(found.labels, found.counts, strict=False):
            total = max(1, sum(row))
            shown = row if has_none else row[:-1]
            rows.append([foreign(label, 40), *(_cell(count, count / total) for count in shown)])
        yield details(
            tag("span", foreign(side, 40), f": which of {len(found.labels)} classes was taken for which"),
            table(head, rows, class_="figures"),
        )


def _cell(count: int, share: float) -> Html:
    """A number on a ground as dark as the share of its class."""
    return tag("span", f"{count:,}", class_=f"cell share{round(10 * share)}", title=f"{share:.0%} of the class")


def _gates(one: Evaluation) -> Iterator[Html]:
    for gate in one.gates[:50]:
        found = "not measured" if gate.value is None else _digits(gate.value)
        word = "met" if gate.is_met else "missed"
        yield tag("p", "Gate ", code(gate.gate, 200), f" {word}: {found}", class_="better" if gate.is_met else "worse")


def _changed(title: str, one: Evaluation, rows: Sequence[Changed]) -> Iterator[Html]:
    """The rows with both answers side by side."""
    if not rows:
        return
    asked = "Text " if one.identity.get("kind") == "text" else "Asked "
    items = [
        tag(
            "article",
            tag("p", code(row.where, 200), "  ", _moved(row), class_="same"),
            tag("p", tag("b", asked), foreign(row.question, 800)),
            tag("div", _answer("base", row.base_answer), _answer("tuned", row.tuned_answer), class_="frames pair")
            if row.base_answer or row.tuned_answer
            else None,
        )
        for row in rows[:10]
    ]
    yield details(tag("span", f"{title}: ", foreign(one.lead, 80)), *items)


def _moved(row: Changed) -> str:
    return " \u2192 ".join(format_pair(row.before, row.after, grouped=True))


def _answer(side: str, text: str) -> Html:
    return tag("div", tag("h4", side), tag("bdi", cut(text, 1500), class_="text"), class_="frame")


def _categories(one: Evaluation) -> Html | None:
    """The leading measure of each category."""
    if not one.categories:
        return None
    rows: list[list[Child]] = []
    for category in one.categories[:_MOST_CATEGORIES]:
        lead = next((found for found in category.measures if found.title == one.lead), None)
        lead = lead or next(iter(category.measures), None)
        if lead is None:
            continue
        values = [f"{side} {_value(figure)}" for side, figure in lead.sides.items()]
        rows.append(
            [foreign(category.name, 80), f"{category.num_rows:,}", foreign(lead.title, 80), foreign(", ".join(values))]
        )
    more = f" (the first {_MOST_CATEGORIES} of {len(one.categories)})" if len(one.categories) > _MOST_CATEGORIES else ""
    return details(f"By category{more}", table(("category", "rows", "measure", "sides"), rows))


def _failed(one: Evaluation) -> Iterator[Html]:
    if one.failed:
        first = one.failed[0]
        yield tag(
            "p",
            f"{counted(len(one.failed), 'row')} could not be measured; the first: ",
            code(first.where, 200),
            " ",
            foreign(first.message),
        )
