"""What the figures say, as sentences made from tests.

The measure that leads was named first, by the user or by the rule that looked at the references, so nobody picks the
best of many afterwards, and where it has no figure no other stands in for it. "It learned it" means: the corrected test
of the leading measure says so, and where that counts right classes, another says that the commonest class is beaten
too. Every other tested measure is looked at for a loss.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mlx_finetune.app.eval.baseline import Baseline
from mlx_finetune.app.eval.figures import ALPHA, Change, Figure, Result
from mlx_finetune.app.eval.measures import ANSWER, LABELS, Measure
from mlx_finetune.scoring.intervals import holm
from mlx_finetune.units import decimals_beside, format_figure, format_pair

#: The sides of a run: its base alone, and with what was trained; and the one side of a model.
BASE, TUNED, MODEL = "base", "tuned", "model"
FEW_ROWS = 30

Outcome = Literal["learned", "unproven", "worse", "alone"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """``sentence`` for a person; ``outcome`` of the leading measure, and the other measures that changed for sure."""

    outcome: Outcome
    sentence: str
    better: tuple[str, ...] = ()
    worse: tuple[str, ...] = ()


def judge(
    results: Sequence[Result],
    *,
    has_base: bool,
    leading: Measure | None = None,
    cut: Mapping[str, tuple[int, int]] | None = None,
    unit: str = "row",
    baseline: Baseline | None = None,
) -> Verdict:
    """The verdict over all measures; ``alone`` where there is nothing to compare with.

    ``leading`` is the measure that leads, None for the first that is tested. ``unit`` is what a row is called. ``cut``
    has for each side how many answers ended at the limit, of how many; ``baseline`` is what the right classes must
    beat.
    """
    tested = [one for one in results if one.measure.is_tested and one.change is not None]
    if not has_base:
        return Verdict("alone", "There is nothing to compare with: these are the model's own figures.")
    if not tested and any(BASE not in one.figures and one.figures for one in results):
        return Verdict("alone", "The base has nothing to compare with: these are the figures of what was trained.")
    if not results or (not tested and leading is None):
        return Verdict("unproven", "Too little was measured for a verdict.")
    if leading is not None and leading.name not in [one.measure.name for one in tested[:1]]:
        return _unled(leading, results, tested)
    lead, others = tested[0], tested[1:]
    better, worse = _changed(others)
    beside = _beside(lead, baseline)
    if lead.is_better and not beside:
        outcome, opening = "learned", "It learned it"
    elif lead.is_worse:
        outcome, opening = "worse", "It got worse"
    else:
        outcome, opening = "unproven", "No proof that it learned it"
    if is_sure(lead) and not _is_seen(lead):
        opening = "It hardly changed"
    parts = [f"{opening}: {_lead(lead)}{beside}"]
    if outcome != "learned" and better:
        parts.append(f"better: {_list(better)}")
    if worse:
        parts.append(f"worse: {_list(worse)}")
    elif others:
        parts.append("nothing else got worse" if outcome != "unproven" else "nothing got worse for sure")
    caution, note = _cut(lead, cut or {})
    sentences = [caution, _few(lead, unit), _powerless(tested), f"{'; '.join(parts)}.", note, _with_shots(lead)]
    return Verdict(outcome, " ".join(text for text in sentences if text), _names(better), _names(worse))


def _unled(leading: Measure, results: Sequence[Result], tested: Sequence[Result]) -> Verdict:
    """Where the measure that leads has no figure: what changed beside it is said, and nothing of what was learned."""
    better, worse = _changed(tested)
    why = f"{leading.title}, which leads, has no figure"
    if leading.kind == "gap" and any(one.measure.work == leading.work for one in results):
        why = "answers marked good are set against answers marked bad, and these are all of one kind"
    changed = [f"{name}: {_list(found)}" for name, found in (("better", better), ("worse", worse)) if found]
    sentence = "; ".join([f"It cannot be judged: {why}", *changed])
    return Verdict("unproven", f"{sentence}.", _names(better), _names(worse))


def _changed(results: Sequence[Result]) -> tuple[list[Result], list[Result]]:
    """Those that got better for sure, and those that got worse."""
    return [one for one in results if one.is_better], [one for one in results if one.is_worse]


def _names(results: Sequence[Result]) -> tuple[str, ...]:
    return tuple(one.measure.name for one in results)


def _beside(lead: Result, baseline: Baseline | None) -> str:
    """Said of classes that are named right more often than before, yet not surely more often than the commonest is."""
    if baseline is None or baseline.is_beaten or not (lead.is_better and lead.measure.work == LABELS):
        return ""
    return f", but always `{baseline.label}` is right for {baseline.figure.num_right} of {baseline.figure.num_rows}"


def amount(result: Result, side: str) -> str:
    """The figure of one side in words: ``41 of 50 right``, ``loss of the answers 1.94``."""
    figure = result.figures[side]
    if figure.num_right is not None:
        return f"{figure.num_right} of {figure.num_rows}"
    return format_figure(figure.value)


def is_sure(result: Result) -> bool:
    """Whether the change is said to be better or worse."""
    return result.is_better or result.is_worse


def shown_pair(result: Result, first: str, second: str) -> tuple[str, str]:
    """The values of two sides; of a sure change with digits that tell them apart, alike where these are too many."""
    one, other = (result.figures[side].value for side in (first, second))
    return format_pair(one, other) if is_sure(result) else (format_figure(one), format_figure(other))


def decimals_of(result: Result, change: Change) -> int:
    """Those with which a sure change does not look like none."""
    same = 1.0 if change.is_factor else 0.0
    return decimals_beside(same, (change.value, change.low, change.high)) if is_sure(result) else 2


def _lead(lead: Result) -> str:
    assert lead.change is not None
    what = (
        f"{amount(lead, TUNED)} right, was {amount(lead, BASE)}"
        if lead.measure.kind == "right"
        else f"{lead.measure.title} {_amounts(lead)}"
    )
    return f"{what} ({_interval(lead, lead.change)})"


def _amounts(result: Result) -> str:
    """``41 of 50, was 12 of 50``; ``264.2, was 264.4``."""
    if result.figures[TUNED].num_right is not None:
        return f"{amount(result, TUNED)}, was {amount(result, BASE)}"
    after, before = shown_pair(result, TUNED, BASE)
    return f"{after}, no change that shows" if is_sure(result) and not _is_seen(result) else f"{after}, was {before}"


def _is_seen(result: Result) -> bool:
    """Whether both sides differ as they are printed."""
    if result.figures[TUNED].num_right is not None:
        return amount(result, TUNED) != amount(result, BASE)
    after, before = shown_pair(result, TUNED, BASE)
    return after != before


def no_interval(found: Figure | Change) -> str:
    """Why a bootstrap gave none."""
    return "one row" if found.num_rows == 1 else "rows all alike"


def _interval(result: Result, change: Change) -> str:
    if change.low is None or change.high is None:
        return f"no interval: {no_interval(change)}"
    what = "factor" if change.is_factor else "gain" if result.measure.is_higher_better else "change"
    decimals = decimals_of(result, change)
    return f"95 % interval of the {what} {change.low:.{decimals}f} to {change.high:.{decimals}f}"


def _few(lead: Result, unit: str) -> str:
    change = lead.change
    if change is None or change.num_rows >= FEW_ROWS:
        return ""
    rows = f"One {unit} proves" if change.num_rows == 1 else f"{change.num_rows} {unit}s prove"
    if change.low is None or change.high is None:
        return f"{rows} little."
    what = "factor" if change.is_factor else "gain" if lead.measure.is_higher_better else "change"
    same = 1.0 if change.is_factor else 0.0
    if not (lead.is_better or lead.is_worse) and not change.low <= same <= change.high:
        return f"{rows} little: the interval of the {what} leaves out no change, but the test asks for more."
    decimals = decimals_of(lead, change)
    ends = f"{change.low:.{decimals}f} to {change.high:.{decimals}f}"
    few = f"{change.num_rows} {unit}s are few" if is_sure(lead) else f"{rows} little"
    return f"{few}: from base to tuned, the 95 % interval of the {what} in {lead.measure.title} is {ends}."


def _cut(lead: Result, cut: Mapping[str, tuple[int, int]]) -> tuple[str, str]:
    """Said before the figures where tuned was cut off, which they hang on, and behind them where the others were."""
    found = {side: f"{count} of {total}" for side, (count, total) in cut.items() if count}
    if lead.measure.work != ANSWER or not found:
        return "", ""
    caution = ""
    if tuned := found.pop(TUNED, ""):
        caution = (
            f"Answers of tuned were cut at the limit ({tuned}), so this says little of what they would have been: "
        )
        caution += "raise --max-tokens."
    others = ", ".join(f"{side} {count}" for side, count in found.items())
    return caution, f"Answers without what was trained came to no end before the limit: {others}." if others else ""


def _powerless(tested: Sequence[Result]) -> str:
    """Said where the leading change could not be found whatever the answers: p is at least 2 / 2^rows in each test."""
    rows = [one.change.num_rows for one in tested if one.change is not None]
    enough = next(count for count in range(1, 100) if _least_p([max(one, count) for one in rows]) < ALPHA)
    if enough <= rows[0]:
        return ""
    with_rows = f"{rows[0]} row{'' if rows[0] == 1 else 's'} and {len(rows)} test{'' if len(rows) == 1 else 's'}"
    return f"With {with_rows} no change can be found, however large: that takes {enough} rows."


def _least_p(rows: Sequence[int]) -> float:
    """The smallest corrected p that the first of tests over so many rows can have."""
    return holm([2.0 ** (1 - count) for count in rows])[0]


def _with_shots(lead: Result) -> str:
    if lead.to_shots is None:
        return ""
    side = next(name for name in lead.figures if name not in (BASE, TUNED))
    gap = lead.to_shots
    return (
        f"With {_examples(side)} in its prompt the base has {amount(lead, side)} "
        f"({_interval(lead, gap).replace('gain', 'gain over that').replace('change', 'change from that')})."
    )


def _examples(side: str) -> str:
    """``base 4-shot`` -> ``4 examples``."""
    shots = side.rpartition(" ")[2].removesuffix("-shot")
    return "1 example" if shots == "1" else f"{shots} examples"


def _list(results: Sequence[Result]) -> str:
    return ", ".join(f"{one.measure.title} {_amounts(one)}" for one in results)
