"""Runs in a table, and one run as a page of text: settings, losses, answers, checkpoints."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from mlx_finetune.events import Evaluated, RunFailed, RunFinished, summarise_resources
from mlx_finetune.monitor.braille import draw_curve, thin
from mlx_finetune.monitor.ending import restarted_lines
from mlx_finetune.monitor.plain import notice_lines, number, one_line
from mlx_finetune.monitor.summary import Summary
from mlx_finetune.recipe.learned import applies
from mlx_finetune.recipe.values import toml_value
from mlx_finetune.units import format_bytes, format_count, format_energy, format_seconds

CURVE_WIDTH, CURVE_LINES = 64, 6


@dataclass(frozen=True, slots=True)
class RunFacts:
    """One run. ``checkpoints`` are (folder name, bytes) by rising step."""

    name: str
    path: str
    num_bytes: int
    is_running: bool
    checkpoints: tuple[tuple[str, int], ...]
    summary: Summary

    @property
    def status(self) -> str:
        """As ``Summary.status`` calls it."""
        return self.summary.status(is_running=self.is_running)

    @property
    def model(self) -> str:
        """The base model, "" before it was loaded."""
        return self.summary.started.model if self.summary.started else ""

    @property
    def first_loss(self) -> float | None:
        """Validation loss before training."""
        first = self.summary.first_evaluation
        return first.loss if first else None

    @property
    def best_loss(self) -> float | None:
        """The best validation loss after a step."""
        best = self.summary.best_evaluation
        return best.loss if best and best.step else None

    @property
    def result_evaluation(self) -> Evaluated | None:
        """The evaluation of the weights in the folder; None where they were not evaluated."""
        found = [one for one in self.summary.evaluations if one.step and one.loss == self.result_loss]
        outcome = self.summary.outcome
        step = outcome.result_step if isinstance(outcome, RunFinished) else None
        return next((one for one in found if one.step == step), found[0] if found else None)

    @property
    def result_loss(self) -> float | None:
        """Validation loss of the weights in the folder, of the best ones so far where it has not finished."""
        outcome = self.summary.outcome
        return outcome.result_loss if isinstance(outcome, RunFinished) else self.best_loss


def table_lines(runs: Sequence[RunFacts]) -> Iterator[str]:
    """A table with a heading; columns as wide as they need."""
    rows = [("NAME", "MODEL", "STATUS", "STEPS", "VALIDATION LOSS", "SIZE")]
    for run in runs:
        total = run.summary.total_steps
        losses = f"{_short(run.first_loss)} -> {_short(run.result_loss)}"
        steps = f"{run.summary.steps_done}/{total}" if total else "-"
        rows.append((run.name, run.model or "-", run.status, steps, losses, format_bytes(run.num_bytes)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def _short(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.4f}"


def facts_json(run: RunFacts) -> dict[str, object]:
    """One run of the list as plain values."""
    return {
        "name": run.name,
        "path": run.path,
        "model": run.model,
        "status": run.status,
        "step": run.summary.steps_done,
        "total_steps": run.summary.total_steps,
        "first_loss": run.first_loss,
        "best_loss": run.best_loss,
        "result_loss": run.result_loss,
        "num_bytes": run.num_bytes,
    }


def report_json(run: RunFacts, settings: Mapping[str, object]) -> dict[str, object]:
    """Everything ``runs show`` knows, as plain values."""
    summary = run.summary
    return {
        **facts_json(run),
        "settings": dict(settings),
        "losses": [[point.step, point.loss] for point in summary.losses],
        "evaluations": [asdict(one) for one in summary.evaluations],
        "samples": [asdict(one) for one in summary.samples],
        "checkpoints": [{"name": name, "num_bytes": size} for name, size in run.checkpoints],
        "notices": [asdict(one) for one in summary.notices],
        "pause_seconds": summary.pause_seconds,
        "sleep_seconds": summary.sleep_seconds,
        "restarts": [asdict(one) for one in summary.restarts],
        "resources": summarise_resources(summary.resources),
        "outcome": asdict(summary.outcome) if summary.outcome else None,
    }


def report_lines(run: RunFacts, settings: Mapping[str, object]) -> Iterator[str]:
    """One run for a person."""
    yield f"{run.name}: {run.status}, {run.path}, {format_bytes(run.num_bytes)}"
    yield from _outcome_lines(run)
    yield from _settings_lines(settings)
    yield from _loss_lines(run.summary)
    yield from _sample_lines(run.summary)
    warnings = [one for one in run.summary.notices if one.level == "warning"]
    if warnings:
        yield ""
        for one in warnings:
            yield from notice_lines(one)
    if run.checkpoints:
        yield ""
        yield "checkpoints"
        for name, size in run.checkpoints:
            yield f"  {name}  {format_bytes(size)}"


def _outcome_lines(run: RunFacts) -> Iterator[str]:
    started = run.summary.started
    if started is not None:
        yield (
            f"{started.task} of {started.model} on {started.device}, {started.compute_dtype}; "
            f"{format_count(started.trainable_parameters)} parameters trained ({started.trained_share:.1%}); "
            f"step {run.summary.steps_done} of {started.total_steps}"
        )
    yield from _lost_time_lines(run)
    yield from restarted_lines(run.summary)
    match run.summary.outcome:
        case RunFinished() as end:
            seconds, peak = format_seconds(end.train_seconds), format_bytes(end.peak_memory_bytes)
            yield f"{seconds}, {format_count(end.targets_trained)} {run.summary.learned.units}, peak {peak}"
        case RunFailed() as end:
            yield f"failed: {end.message}"
        case _:
            pass
    yield from _machine_lines(run.summary)


def _machine_lines(summary: Summary) -> Iterator[str]:
    """Energy, heat and what was slowed down for it, as far as the machine told; nothing where it told nothing."""
    samples = summary.resources
    watts = [one.watts for one in samples if one.watts is not None]
    degrees = [one.temperature_celsius for one in samples if one.temperature_celsius is not None]
    energy = next((one.energy_joules for one in reversed(samples) if one.energy_joules is not None), None)
    slowed = [one for one in samples if one.throttled]
    parts = [] if energy is None else [f"{format_energy(energy)} used"]
    parts += [f"{sum(watts) / len(watts):.1f} W on average"] if watts else []
    parts += [f"{max(degrees):.0f} C at the hottest"] if degrees else []
    parts += [f"slowed down for the heat in {len(slowed) / len(samples):.0%} of the time"] if slowed else []
    if parts:
        yield ", ".join(parts)


def _lost_time_lines(run: RunFacts) -> Iterator[str]:
    """What it waits for, and how long it was paused and asleep so far; nothing where it never was."""
    summary = run.summary
    if summary.paused is not None and run.is_running:
        yield f"paused: {summary.paused.reason}"
    parts = [f"paused for {format_seconds(summary.pause_seconds)} in all"] * (summary.pause_seconds > 0)
    parts += [f"the machine was asleep for {format_seconds(summary.sleep_seconds)}"] * (summary.sleep_seconds > 0)
    if parts:
        yield ", ".join(parts)


def _settings_lines(settings: Mapping[str, object]) -> Iterator[str]:
    if settings:
        yield ""
        yield "settings"
    plain = {key: value for key, value in settings.items() if not isinstance(value, Mapping)}
    task = str(settings.get("task", "sft"))
    for section, values in (("", plain), *settings.items()):
        if isinstance(values, Mapping):
            shown = [
                f"{key} = {_value(value)}"
                for key, value in values.items()
                if _is_worth_showing(value) and applies(section, key, task)
            ]
            if shown:
                yield from _wrapped(f"  [{section}] " if section else "  ", shown)


def _is_worth_showing(value: object) -> bool:
    return value not in ("", "auto", [], {}, False) or (value == 0 and not isinstance(value, bool))


def _value(value: object) -> str:
    if isinstance(value, list):
        return one_line(f"[{', '.join(map(_value, value))}]", 60)
    if isinstance(value, bool):
        return str(value).lower()
    return one_line(toml_value(value), 60) if isinstance(value, str) else str(value)


def _wrapped(head: str, parts: Sequence[str], width: int = 100) -> Iterator[str]:
    line = head + parts[0]
    for part in parts[1:]:
        if len(line) + len(part) + 2 > width:
            yield f"{line},"
            line = " " * len(head) + part
        else:
            line += f", {part}"
    yield line


def _loss_lines(summary: Summary) -> Iterator[str]:
    if len(summary.leading) >= 10:
        points = thin([(float(point.step), point.smooth) for point in summary.leading], 4 * CURVE_WIDTH)
        low, high = min(y for _, y in points), max(y for _, y in points)
        labels = [f"{high:8.3f} "] + [" " * 9] * (CURVE_LINES - 2) + [f"{low:8.3f} "]
        yield ""
        yield f"{summary.lead or 'training loss'} (smoothed)"
        for label, row in zip(labels, draw_curve(points, width=CURVE_WIDTH, height=CURVE_LINES), strict=True):
            yield label + row
    if summary.evaluations:
        best = summary.best_evaluation
        yield ""
        yield "validation loss"
        for one in summary.evaluations:
            yield f"  step {one.step:<6} {number(one.loss, 4)}{'  * best' if one is best else ''}"


def _sample_lines(summary: Summary) -> Iterator[str]:
    prompts = list(dict.fromkeys(one.prompt for one in summary.samples))
    for prompt in prompts:
        yield ""
        yield f"prompt: {one_line(prompt, 90)}"
        last = None
        for one in summary.samples:
            if one.prompt == prompt and one.answer != last:
                last = one.answer
                yield f"  step {one.step:<6} {one_line(one.answer, 120)}"
