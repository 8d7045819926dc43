"""The top of the page: what was trained, whether it learned, what it cost, in words for somebody who never did this."""

from collections.abc import Iterator

from mlx_finetune.events import RunFailed, RunFinished, RunStopped
from mlx_finetune.monitor.ending import FEW_ROWS, reason_text, what_was_trained
from mlx_finetune.monitor.plain import number
from mlx_finetune.monitor.report.facts import ReportFacts
from mlx_finetune.monitor.report.markup import Child, Html, code, foreign, moment, tag
from mlx_finetune.recipe.learned import Judged
from mlx_finetune.units import counted, format_bytes, format_count, format_energy, format_seconds

_BADGES = {
    "running": "still training",
    "finished": "finished",
    "stopped": "stopped, can go on",
    "failed": "failed",
    "interrupted": "ended without a word, can go on",
}
_VERDICTS = {"learned": "good", "worse": "bad"}
#: A change of the validation loss, or what stands in for it, below this share is called none.
_SAME = 0.005


def headline(facts: ReportFacts) -> Html:
    """Name, sentence, verdicts and figures."""
    status = facts.run.status
    return tag(
        "header",
        tag("p", "Training report", tag("span", _BADGES[status], class_=f"badge {status}"), class_="kicker"),
        tag("h1", foreign(facts.run.name, 120)),
        tag("p", *_what(facts), class_="lead"),
        tag("div", *_verdicts(facts), class_="verdicts"),
        tag("dl", *(_tile(name, value) for name, value in _figures(facts)), class_="tiles"),
        id="top",
    )


def _what(facts: ReportFacts) -> Iterator[Child]:
    """``An adapter for smollm2-135m, trained on 395 rows of data/timeline: 149 steps in 17m 28s on CPU.``"""
    started = facts.summary.started
    if started is None:
        yield "This run did not come to its first step."
        return
    yield "A fully trained copy of " if what_was_trained(facts.summary) == "model" else "An adapter for the model "
    yield foreign(started.model, 120)
    yield f", trained on {counted(started.train_rows, 'row')}"
    if source := data_source(facts):
        yield " of "
        yield foreign(source, 120)
    steps, total = facts.summary.steps_done, started.total_steps
    yield f": {counted(steps, 'step')}" if steps >= total else f": {steps:,} of {counted(total, 'step')}"
    if facts.summary.step is not None:
        epoch = facts.summary.step.epoch
        passes = f"{epoch:.2g} times" if epoch >= 1 else f"{epoch:.0%} of the steps of one pass"
        yield f" ({passes} through the data)"
    if (seconds := train_seconds(facts)) is not None:
        yield f", {format_seconds(seconds)}"
    yield " on "
    yield foreign(started.device, 80)
    yield "."
    if facts.summary.first_time is not None:
        yield " Begun "
        yield moment(facts.summary.first_time)
        yield "."


def data_source(facts: ReportFacts) -> str:
    """Where the rows come from, as the recipe names it; "" where it names several places."""
    data = facts.info.resolved.get("data")
    values = [data.get(key) for key in ("path", "train")] if isinstance(data, dict) else []  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    return next((value for value in values if isinstance(value, str) and value), "")  # pyright: ignore[reportUnknownVariableType]


def train_seconds(facts: ReportFacts) -> float | None:
    """Seconds in steps; of a run that has not finished the sum over what was logged."""
    outcome = facts.summary.outcome
    if isinstance(outcome, RunFinished):
        return outcome.train_seconds
    return sum(one.step_seconds for one in facts.summary.steps) if facts.summary.steps else None


def _verdicts(facts: ReportFacts) -> Iterator[Html | None]:
    yield _ended(facts)
    yield _learned(facts)
    current = [one for one in facts.evaluations if not one.other_weights]
    if current:
        newest = current[0]
        title = ["Newest evaluation, ", foreign(newest.name, 60), ": "]
        has_worse = any(one.is_worse for one in newest.measures)  # learned, and something forgotten for it
        look = "open" if has_worse else _VERDICTS.get(newest.verdict.outcome, "open")
        look = "bad" if newest.verdict.outcome == "worse" else look
        yield _verdict(look, tag("b", *title), foreign(newest.verdict.sentence, 1500))
    elif facts.summary.outcome is not None and facts.run.checkpoints:
        title = "The weights of now are not evaluated yet. " if facts.evaluations else "Not evaluated yet. "
        yield _verdict("open", tag("b", title), "What it learned and forgot is measured by ", _eval(facts))


def _eval(facts: ReportFacts) -> Html:
    return code(f"mlxft eval {facts.shell_name}")


def _verdict(look: str, *children: Child) -> Html:
    return tag("p", *children, class_=f"verdict {look}")


def _ended(facts: ReportFacts) -> Html | None:
    """How it ended, where that is not simply at the last step."""
    outcome = facts.summary.outcome
    if facts.run.is_running:
        return _verdict(
            "open", tag("b", "The training is still at work. "), "This page shows it as it was when it was made."
        )
    match outcome:
        case RunFinished(reason="finished"):
            return None
        case RunFinished():
            return _verdict("open", tag("b", "It ended early: "), f"{reason_text(outcome.reason)}.")
        case RunFailed():
            hint: list[Child] = [" ", foreign(outcome.hint)] if outcome.hint else []
            return _verdict("bad", tag("b", "It failed: "), foreign(outcome.message, 800), ".", *hint)
        case RunStopped():
            text = f"It was stopped after step {outcome.step:,}. "
            return _verdict("open", tag("b", text), "Everything up to there is saved.")
        case None:
            text = f"It ended without a word after step {facts.summary.steps_done:,}. "
            saved = (
                f"The last checkpoint is {facts.run.checkpoints[-1][0]}."
                if facts.run.checkpoints
                else "Nothing was saved."
            )
            return _verdict("bad", tag("b", text), saved)


def _learned(facts: ReportFacts) -> Html | None:
    """Did the validation loss improve, and what that means."""
    summary, started = facts.summary, facts.summary.started
    if started is None:
        return None
    if not started.valid_rows:
        return _verdict(
            "open",
            tag("b", "Nothing tells whether it learned. "),
            "There were no validation rows: rows that it is not trained on and is tested with.",
        )
    first, result = facts.run.first_loss, facts.run.result_loss
    if first is None or result is None:
        return _verdict("open", tag("b", "Not measured yet. "), "It ended before its first evaluation.")
    learned, on = summary.learned, f"{counted(started.valid_rows, 'row')}, on which it was not trained,"
    name, means, is_higher_better = "validation loss", learned.loss_means(on), False
    judged = learned.judged
    if judged is not None and (values := _judged_values(facts, judged)) is not None:
        (first, result), name, means = values, judged.title, judged.says.format(on=on)
        is_higher_better = judged.is_higher_better
    few = " Those are few to judge by." if started.valid_rows < FEW_ROWS else ""
    look, title = _moved(name, first, result, is_higher_better=is_higher_better)
    course, beside = f", from {number(first, 3)} to {number(result, 3)}.", ""
    if started.constant_loss is not None and not is_higher_better:
        beside = f" The same answer for every row would come to {number(started.constant_loss, 3)}."
        if look == "good" and started.is_no_better(result):
            look, title = "open", f"It is no better than the same answer for every row: {title.partition(': ')[2]}"
    return _verdict(look, tag("b", f"{title}{course}"), f"{beside} {means}{few}")


def _judged_values(facts: ReportFacts, judged: Judged) -> tuple[float, float] | None:
    """What the metric was before training and is of the result; None in journals without it."""
    before, after = facts.summary.first_evaluation, facts.run.result_evaluation
    first, result = (one.metrics.get(judged.metric) if one else None for one in (before, after))
    return None if first is None or result is None else (first, result)


def _moved(name: str, first: float, result: float, *, is_higher_better: bool) -> tuple[str, str]:
    """The look of the verdict and what it says; of what may be below 0 nobody wants the share."""
    change = result - first
    by = f" by {abs(change / first):.0%}" if first and not is_higher_better else ""
    verb = "rose" if change > 0 else "fell"
    if abs(change) <= _SAME * max(abs(first), abs(result)):
        return "open", f"It learned little: {name} stayed where it was"
    if (change > 0) == is_higher_better:
        return "good", f"It learned: {name} {verb}{by}"
    return "bad", f"It did not learn what was asked: {name} {verb}{by}"


def _figures(facts: ReportFacts) -> Iterator[tuple[str, Child]]:
    """Name and value of the figures that people ask for first."""
    summary, run = facts.summary, facts.run
    if run.result_loss is not None:
        before = f"{number(run.first_loss, 3)} \u2192 " if run.first_loss is not None else ""
        yield "validation loss", f"{before}{number(run.result_loss, 3)}"
    if summary.lead_at_end is not None:
        name, mean = summary.lead_at_end
        yield name, number(mean, 3)
    best = summary.best_evaluation
    if best is not None and best.step:
        yield "best step", f"{best.step:,}"
    if (seconds := train_seconds(facts)) is not None:
        yield "time in steps", format_seconds(seconds)
    if summary.started is not None:
        started = summary.started
        yield "parameters trained", f"{format_count(started.trainable_parameters)} ({started.trained_share:.1%})"
    if (peak := summary.peak_memory_bytes()) is not None:
        yield "peak memory", format_bytes(peak)
    if (joules := energy_joules(facts)) is not None:
        yield "energy", format_energy(joules)


def energy_joules(facts: ReportFacts) -> float | None:
    """The last count of the run's energy; None where nothing measured it."""
    found = [one.energy_joules for one in facts.summary.resources if one.energy_joules is not None]
    return found[-1] if found else None


def _tile(name: str, value: Child) -> Html:
    return tag("div", tag("dt", name), tag("dd", value))
