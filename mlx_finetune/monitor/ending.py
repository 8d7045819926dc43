"""The last words of a run: what was learned, what it cost, where it is, and the next command to type."""

import textwrap
from collections import Counter

from mlx_finetune.events import RunFinished, Sampled
from mlx_finetune.monitor.plain import number, one_line
from mlx_finetune.monitor.summary import Summary
from mlx_finetune.recipe.asking import talk_command
from mlx_finetune.units import counted, format_bytes, format_count, format_seconds

#: Longest part of an answer that is shown beside the other, in lines of its column.
ANSWER_LINES = 8

#: With fewer validation rows their loss says little.
FEW_ROWS = 8

_REASONS = {
    "finished": "all steps done",
    "early_stopping": "validation loss stopped improving",
    "max_minutes": "its time was up",
}


def finished_lines(
    summary: Summary, finished: RunFinished, *, folder: str, name: str, width: int, report: str = ""
) -> list[str]:
    """The last words of a finished run, no line longer than ``width`` where they allow it. ``report`` is its page."""
    lines = ["", f"finished at step {finished.step}: {reason_text(finished.reason)}", ""]
    lines += [f"  {line}" for line in learned_lines(summary, finished)]
    lines += compared_lines(summary, finished, width=width)
    took = f"{format_seconds(finished.train_seconds)} of training, {format_count(finished.targets_trained)} "
    took += summary.learned.units
    peak = f"peak memory {format_bytes(finished.peak_memory_bytes)}"
    lines += [
        "",
        *([f"  {took}", f"  {finished.planned}"] if finished.planned else [f"  {took}, {peak}"]),
        f"  {what_was_trained(summary)} in {folder}",
        *([f"  report for your browser: {report}"] if report else []),
        *(f"  {line}" for line in restarted_lines(summary)),
        "",
    ]
    measure, following = f"mlxft eval {name}", talk_command(summary.started.task if summary.started else "", name)
    if summary.started and summary.started.valid_rows and measure != following:
        lines.append(f"what it learned, measured: {measure}")
    return [*lines, f"next: {following}"]


def reason_text(reason: str) -> str:
    """Why a run finished, in words."""
    return _REASONS.get(reason, reason)


def restarted_lines(summary: Summary) -> list[str]:
    """How often the training process was started again and why, one line a cause; none for a quiet run."""
    times = Counter(one.message for one in summary.restarts)
    lines = [f"restarted {_times(count)}: {message}" for message, count in times.items()]
    if not all(one.is_bitwise for one in summary.restarts):
        lines.append("equal to a run without a restart up to rounding, not bit for bit")
    return lines


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def what_was_trained(summary: Summary) -> str:
    """``adapter``, or ``model`` where every weight was trained."""
    started = summary.started
    return "model" if started and started.trainable_parameters >= started.total_parameters else "adapter"


def _no_better(summary: Summary, finished: RunFinished) -> list[str]:
    """Said of a result that tells no rows apart, where the task has such a thing."""
    started, judged, loss = summary.started, summary.learned.judged, finished.result_loss
    if judged is not None:
        found = next((one for one in summary.evaluations if one.step == finished.result_step), None)
        loss = found.metrics.get(judged.metric) if found else None
    if started is None or loss is None or not started.is_no_better(loss):
        return []
    name = judged.title if judged else "validation loss"
    figures = f"{name} {number(loss, 4)}, and {number(started.constant_loss, 4)} with that"
    return [f"no better than the same answer for every row: {figures}"]


def learned_lines(summary: Summary, finished: RunFinished) -> list[str]:
    """Validation loss of the base and of the result, in a few lines; the training loss where there is no
    validation set."""
    first, best, last = finished.first_loss, finished.best_loss, finished.last_loss
    if first is None and last is None and best is None:
        at_end = summary.lead_at_end
        return [f"no validation set; {at_end[0]}: {number(at_end[1], 4)}"] if at_end is not None else []
    end = finished.result_loss
    if first is None:
        return [f"validation loss {number(end, 4)}{_best_at(finished)}"]
    if end is None:
        return [f"validation loss {number(first, 4)} before training; after a step it was no number"]
    change = (end - first) / abs(first) if first else 0.0
    share = f"{abs(change):.0%}" if abs(change) >= 0.005 else "less than 1%"
    by = "unchanged" if end == first else f"{share} {'lower' if change < 0 else 'higher'}"
    lines = [f"validation loss {number(first, 4)} -> {number(end, 4)}, {by}{_best_at(finished)}"]
    if end >= first and _taught_nothing(summary):
        lines.append("no step taught it anything: the rewards of every group were all equal; take easier problems, a")
        lines[-1] += " model that solves some of them, another reward, or a larger grpo.group_size"
    elif end >= first:
        before = "the start was better still: " if end > first else ""
        learned = "it did not learn what the validation rows ask for; a lower learning rate or more rows may help"
        lines.append(f"{before}{learned}")
    lines += _no_better(summary, finished)
    rows = summary.started.valid_rows if summary.started else 0
    if 0 < rows < FEW_ROWS:
        more = "a validation file or a larger data.val_split tells more"
        lines.append(f"{counted(rows, 'validation row')} {'is' if rows == 1 else 'are'} few to judge by: {more}")
    return lines


def _taught_nothing(summary: Summary) -> bool:
    """Whether a run of grpo has left out every group of answers in each of its steps."""
    dropped = [one.metrics.get("dropped_groups") for one in summary.steps]
    return bool(dropped) and all(share == 1.0 for share in dropped)


def _best_at(finished: RunFinished) -> str:
    if finished.best_step is None:
        return ""
    if not finished.is_best_the_result and finished.last_loss is not None:
        if finished.best_step == finished.step:
            return " (at the end)"
        return f" (at the end, which is the result; best {number(finished.best_loss, 4)} at step {finished.best_step})"
    if finished.last_loss is None or finished.best_step == finished.step:
        return f" (best at step {finished.best_step})"
    return f" (best at step {finished.best_step}; {number(finished.last_loss, 4)} at the end)"


def compared_lines(summary: Summary, finished: RunFinished, *, width: int) -> list[str]:
    """One prompt answered by the base and by the adapter, side by side; nothing without samples from both.

    The adapter's answer is that of the best step where it was sampled, else the last one. The first prompt whose
    answers differ is taken.
    """
    pair = _pair(summary, finished)
    if pair is None:
        return []
    before, after = pair
    column = max(20, (min(width, 120) - 6) // 2)
    left, right = _column(before.answer, column), _column(after.answer, column)
    rows = max(len(left), len(right))
    left += [""] * (rows - len(left))
    right += [""] * (rows - len(right))
    head = f"  {'before':<{column}}  after step {after.step}"
    body = [f"  {one:<{column}}  {two}".rstrip() for one, two in zip(left, right, strict=True)]
    return ["", f"  prompt: {one_line(before.prompt, max(20, width - 12))}", "", head, *body]


def _pair(summary: Summary, finished: RunFinished) -> tuple[Sampled, Sampled] | None:
    steps = [step for step in summary.sample_steps() if step > 0]
    if not steps or not summary.answers(0):
        return None
    chosen = finished.best_step if finished.best_step in steps else steps[-1]
    assert chosen is not None, "there is a step to choose"
    base, tuned = summary.answers(0), summary.answers(chosen)
    both = [prompt for prompt in base if prompt in tuned]
    if not both:
        return None
    prompt = next((one for one in both if base[one] != tuned[one]), both[0])
    return Sampled(0, prompt, base[prompt]), Sampled(chosen, prompt, tuned[prompt])


def _column(text: str, width: int) -> list[str]:
    lines: list[str] = []
    for paragraph in text.strip().splitlines():
        flat = "".join(char if char.isprintable() else " " for char in paragraph)
        lines += textwrap.wrap(flat, width) or [""]
    if len(lines) > ANSWER_LINES:
        lines = [*lines[: ANSWER_LINES - 1], "..."]
    return lines or ["(nothing)"]
