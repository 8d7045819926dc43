"""Peak memory, time of a step, end of the run and energy, each with its error bar: from measuring, from earlier runs
on this machine, or from the chip table. Pure arithmetic.

An error bar is two standard deviations of a logarithm. For times that is the spread of the timings around the fit, what
other programs took and how much that held us up meanwhile, and how far earlier plans on this machine missed; before
there are such, ``UNKNOWN_CPU`` or ``UNKNOWN_GPU`` counts as four plans that missed by that much. For memory a plan that
was measured is right up to what an allocator does differently from run to run.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mlx_finetune.hardware.planning.answering import updates_a_drawing
from mlx_finetune.hardware.planning.auto import Resolved
from mlx_finetune.hardware.planning.chips import Mac, flops_per_token, tokens_per_second
from mlx_finetune.hardware.planning.disk import EVENT_BYTES, DiskPlan
from mlx_finetune.hardware.planning.measured import Measured, fit_times
from mlx_finetune.hardware.planning.overhead import step_overhead
from mlx_finetune.hardware.planning.ranges import Range
from mlx_finetune.hardware.planning.shapes import ModelShape
from mlx_finetune.hardware.profile import Corrections
from mlx_finetune.recipe.schema import EvalRecipe

Source = Literal["measured", "earlier runs", "chip table", "arithmetic"]

UNKNOWN_CPU = 0.20  # standard deviation of ln(actual / planned) before a run was compared; two cores, other programs
UNKNOWN_GPU = 0.10
PRIOR_RUNS = 4  # so many runs weigh as much as the figures above
MEASURED_PEAK = (0.95, 1.03)  # on a CPU it is chance whether both threads reach their peaks together: the longest row
MOST_MISSED = 1.08  # may come once where a plan took it often; and in more steps they may, as arithmetic takes them to
PLANNED_PEAK = (0.95, 1.05)  # on a CPU; see hardware.memory
PLANNED_DRAWING = (0.9, 1.1)  # of answers that a run says itself: how long they are, and which grow together
PREDICTED_PEAK = (0.85, 1.20)  # on a GPU nobody has measured: E in MACOS.md section 2.1
OTHERS_WEIGHT = 0.5  # standard deviation that programs add which use all the processors
DISK_SHARE = (0.98, 1.02)
SMALL_FILES = 200_000  # recipes, run.json, the log, manifests and headers
START_SIGMA = 0.15  # of the start: files may be in memory already, or no longer
SAVE_SECONDS = 0.15
SAVE_BYTES_PER_SECOND = 150e6  # written, flushed, read back
END_SECONDS = 1.0  # publishing, and the parent process
ANSWER_SHARE = (0.1, 0.7, 1.0)  # of max_new_tokens before an answer ends by itself


@dataclass(frozen=True, slots=True)
class AnswerTimes:
    """Of the mean step of a run that learns from its own answers: what saying them takes, None where nothing tells, and
    what learning from them is expected to, where few groups teach, the usual share, or all. ``is_assumed`` where saying
    was not measured."""

    saying: Range | None
    learning: Range
    is_assumed: bool


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run will take. ``disk_bytes`` is its folder at the end, ``step_seconds`` the mean over the run; None where
    nothing tells. ``joules`` is None where no sensor does. ``answers`` are parts of the step of a run that says some.
    """

    source: Source
    peak_bytes: Range
    disk_bytes: Range
    step_seconds: Range | None
    finish_seconds: Range | None
    joules: Range | None
    is_calibrated: bool = True
    answers: AnswerTimes | None = None


@dataclass(frozen=True, slots=True)
class Beside:
    """What a run does beside its steps. ``num_with_answers`` of the checkpoints that stay hold those of a drawing."""

    num_evaluations: int
    num_prompts: int
    max_new_tokens: int
    num_saves: int
    checkpoint_bytes: int
    num_with_answers: int = 0


def plan_beside(resolved: Resolved, evaluation: EvalRecipe, checkpoint_bytes: int) -> Beside:
    """How often a run evaluates (also before step 1 and at its end), answers and saves."""
    training, total = resolved.recipe.training, resolved.total_steps
    eval_steps, save_steps = training.eval_steps or total, training.save_steps or total
    saves = {*range(save_steps, total + 1, save_steps), total}
    saves |= {*range(eval_steps, total + 1, eval_steps)} if training.keep_best else set()
    updates = updates_a_drawing(resolved.recipe)
    return Beside(
        num_evaluations=1 + math.ceil(total / eval_steps),
        num_prompts=len(evaluation.prompts),
        max_new_tokens=evaluation.max_new_tokens,
        num_saves=len(saves) + len(training.save_at),
        checkpoint_bytes=checkpoint_bytes,
        num_with_answers=sum(step % updates > 0 for step in sorted(saves)[-training.keep_checkpoints :]),
    )


def disk_at_end(resolved: Resolved, disk: DiskPlan, beside: Beside) -> Range:
    """The run folder at its end: the result, the newest checkpoints, the best one if that is older, the journal."""
    training = resolved.recipe.training
    newest = min(training.keep_checkpoints, beside.num_saves)
    oldest = beside.num_saves - newest  # checkpoints that are rotated out, of which one may be the best
    low = newest * disk.checkpoint + disk.adapter
    usual = low + len(training.save_at) * disk.checkpoint * (oldest > 0)
    high = usual + disk.largest * (oldest > 0) + newest * disk.answers
    if beside.num_saves < training.keep_checkpoints:  # save_minutes may add some to a slow run
        high += disk.largest * (training.keep_checkpoints - beside.num_saves)
    usual += beside.num_with_answers * disk.answers
    journal = EVENT_BYTES * resolved.total_steps / training.logging_steps
    least, most = DISK_SHARE
    return Range(least * low, usual + journal + SMALL_FILES / 2, most * high + 3 * journal + SMALL_FILES)


def forecast_measured(
    measured: Measured,
    beside: Beside,
    corrections: Corrections,
    *,
    planned_peak_bytes: int,
    on_gpu: bool,
    disk_bytes: Range,
    has_own_answers: bool = False,
) -> Forecast:
    """The forecast of a plan that was measured on this machine; ``planned_peak_bytes`` is arithmetic's.

    No measured step has the answers of a run that ``has_own_answers``: there arithmetic's peak counts where it is more.
    """
    fit = fit_times(measured.microbatches)
    num_timed, num_steps = len(measured.microbatches), sum(one.count for one in measured.shapes)
    load = load_sigma(measured, on_gpu=on_gpu)
    spread = fit.spread * (1 / num_timed + 1 / num_steps) ** 0.5
    sigma = math.hypot(time_sigma(corrections.time_ratios, on_gpu=on_gpu), spread, load)
    steps = fit.total(measured.shapes) + measured.update_seconds * measured.total_steps
    training = Range.around(steps * corrections.time_factor, sigma)
    start = Range.around(measured.startup_seconds, math.hypot(START_SIGMA, load))
    evaluations = _evaluation_seconds(measured, fit.per_position) * beside.num_evaluations
    answers = _answer_seconds(measured, beside)
    saves = Range(0.3, 1.0, 3.0) * (
        END_SECONDS + beside.num_saves * (SAVE_SECONDS + beside.checkpoint_bytes / SAVE_BYTES_PER_SECOND)
    )
    training_and_pass = training + Range.around(measured.pass_seconds * corrections.time_factor, sigma)
    finish = training_and_pass + start + Range.around(evaluations, sigma) + answers + saves
    low, high = MEASURED_PEAK
    peak = max(measured.peak_bytes, measured.load_peak_bytes)
    if has_own_answers and planned_peak_bytes > peak:
        peak, (low, high) = planned_peak_bytes, PREDICTED_PEAK if on_gpu else PLANNED_DRAWING
    elif not on_gpu:
        high = max(high, min(planned_peak_bytes / peak, MOST_MISSED))
    return Forecast(
        source="measured",
        peak_bytes=Range(low, 1.0, high) * peak,
        disk_bytes=disk_bytes,
        step_seconds=training * (1 / measured.total_steps),
        finish_seconds=finish,
        joules=None if measured.watts is None else finish * measured.watts,
    )


def load_sigma(measured: Measured, *, on_gpu: bool) -> float:
    """What other programs may change: they may stop, or hold us up as much again.

    On a CPU a process that got the share ``own_share`` of a core may take that share of the time, or its inverse.
    """
    held_up = 0.0 if on_gpu else -math.log(min(1.0, max(0.05, measured.own_share)))
    return max(OTHERS_WEIGHT * measured.others_share, held_up / 2)


def time_sigma(ratios: Sequence[float], *, on_gpu: bool) -> float:
    """Standard deviation of ln(actual / planned): of ``ratios``, and of what is assumed before there were any."""
    prior = UNKNOWN_GPU if on_gpu else UNKNOWN_CPU
    usual = sum(math.log(one) for one in ratios) / (PRIOR_RUNS + len(ratios))  # what the plan is corrected by
    squares = sum((math.log(one) - usual) ** 2 for one in ratios)
    return math.sqrt((PRIOR_RUNS * prior**2 + squares) / (PRIOR_RUNS + len(ratios)))


def _evaluation_seconds(measured: Measured, per_position: float) -> float:
    """One pass over the validation set. Without a timing, a third of what training takes for as many positions."""
    positions = sum(one.rows * one.length * one.count for one in measured.valid_shapes)
    timed = sum(one.rows * one.length for one in measured.validation)
    if not timed:
        return positions * per_position / 3
    return positions * sum(one.seconds for one in measured.validation) / timed


def _answer_seconds(measured: Measured, beside: Beside) -> Range:
    tokens = beside.num_evaluations * beside.num_prompts * beside.max_new_tokens
    if measured.answer_seconds is None or not tokens:
        return Range(0.0, 0.0, 0.0)
    low, usual, high = ANSWER_SHARE
    return Range(low / 1.3, usual, high * 1.3) * (tokens * measured.answer_seconds)


def forecast_arithmetic(
    resolved: Resolved,
    shape: ModelShape,
    positions: float,
    corrections: Corrections,
    *,
    on_gpu: bool,
    disk_bytes: Range,
) -> Forecast:
    """The forecast without a look at the machine: memory by arithmetic, time from the speed of earlier runs here.

    ``positions`` are those of the whole run, padding included.
    """
    planned = PLANNED_DRAWING if resolved.recipe.task == "grpo" else PLANNED_PEAK
    low, high = PREDICTED_PEAK if on_gpu else planned
    peak = Range(low, 1.0, high) * resolved.peak_bytes
    if not corrections.flops_per_second:
        return Forecast("arithmetic", peak, disk_bytes, None, None, None)
    work = _operations(resolved, shape, positions)
    rates = corrections.flops_per_second
    typical = math.exp(sum(math.log(one) for one in rates) / len(rates))
    sigma = 1.5 * time_sigma([one / typical for one in rates], on_gpu=on_gpu)  # other lengths, another model
    overhead = resolved.total_steps * overhead_of(resolved, shape, positions / resolved.total_steps, on_gpu=on_gpu)
    training = Range.around(work / typical + overhead, sigma)
    return Forecast("earlier runs", peak, disk_bytes, training * (1 / resolved.total_steps), training, None)


def overhead_of(resolved: Resolved, shape: ModelShape, positions: float, *, on_gpu: bool) -> float:
    """Seconds of a step of ``positions`` beside its operations."""
    sequences = resolved.batch_size * resolved.recipe.training.gradient_accumulation_steps
    parts = -(-sequences // resolved.microbatch)
    return step_overhead(shape, num_microbatches=parts, positions=positions, on_gpu=on_gpu)


def forecast_mac(resolved: Resolved, shape: ModelShape, positions: float, mac: Mac, *, disk_bytes: Range) -> Forecast:
    """The forecast for a Mac of the chip table; evaluations and answers are not in it, only the steps."""
    speed = tokens_per_second(mac, _operations(resolved, shape, positions) / positions)
    training = Range(positions / speed.high, positions / speed.expected, positions / speed.low)
    low, high = PREDICTED_PEAK
    return Forecast(
        source="chip table",
        peak_bytes=Range(low, 1.0, high) * resolved.peak_bytes,
        disk_bytes=disk_bytes,
        step_seconds=training * (1 / resolved.total_steps),
        finish_seconds=training,
        joules=None,
        is_calibrated=mac.chip.is_calibrated,
    )


def _operations(resolved: Resolved, shape: ModelShape, positions: float) -> float:
    """Those of all steps, and of the pass before them that keeps what leaves the frozen blocks."""
    kept, recompute = resolved.kept, _recomputes(resolved)
    num_reused = kept.num_blocks if kept else 0
    each = flops_per_token(shape, resolved.recipe.lora, recompute=recompute, num_reused=num_reused)
    whole = flops_per_token(shape, resolved.recipe.lora, recompute=recompute)
    return positions * each + (kept.num_positions * (whole - each) if kept else 0.0)


def _recomputes(resolved: Resolved) -> bool:
    return resolved.recipe.training.gradient_checkpointing is True
