"""A plan as lines for a person and as plain values for ``--json``."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from mlx_finetune.app.planning.fitting import Fix
from mlx_finetune.app.planning.plan import Plan
from mlx_finetune.app.planning.suggestions import Suggestion, suggest
from mlx_finetune.app.planning.time_report import time_lines
from mlx_finetune.hardware.limits import memory_limit
from mlx_finetune.hardware.planning.forecast import Forecast
from mlx_finetune.hardware.planning.ranges import Range
from mlx_finetune.hardware.planning.rollouts import plan_rollouts
from mlx_finetune.hardware.planning.shapes import adapted_layers, target_linears
from mlx_finetune.model.sources.catalogue import CATALOGUE
from mlx_finetune.recipe.learned import learned_by
from mlx_finetune.recipe.overrides import train_command
from mlx_finetune.units import counted, format_bytes, format_count, format_energy

BAR_WIDTH = 24
LABEL_WIDTH = 9
FROZEN = "frozen weights"


def exact_bytes(num_bytes: float) -> str:
    """Two decimals, so that an error bar of a few percent can be seen."""
    return format_bytes(num_bytes, 2)


def plan_lines(plan: Plan, *, name: str) -> Iterator[str]:
    """The whole plan of the recipe ``name``."""
    yield f"plan of {name}" + (f" for a Mac with {plan.mac.name}" if plan.mac else "")
    yield ""
    for label, lines in (
        ("model", _model_lines(plan)),
        ("data", _data_lines(plan)),
        ("run", _run_lines(plan)),
        ("trains", _adapter_lines(plan)),
        ("memory", _memory_lines(plan)),
        ("time", time_lines(plan)),
        ("energy", _energy_lines(plan)),
        ("disk", _disk_lines(plan)),
        ("decided", _decision_lines(plan)),
        ("advice", (one.sentence for one in suggestions(plan))),
    ):
        for line in lines:
            yield f"{label:<{LABEL_WIDTH}}{line}".rstrip()
            label = ""


def suggestions(plan: Plan) -> tuple[Suggestion, ...]:
    """What rows like these are usually trained with, where the recipe says otherwise."""
    tokens = plan.tokens
    rows, valid = tokens.num_used, tokens.num_valid
    share = tokens.target_share
    return suggest(
        plan.recipe,
        plan.resolved,
        plan.facts.lengths,
        num_rows=rows,
        num_valid=valid,
        target_share=share,
        num_parameters=plan.shape.num_parameters,
    )


def warning_lines(plan: Plan, *, command: str) -> Iterator[str]:
    """Warnings, and what stands against a start with ways out; ``command`` is the one that made this plan."""
    for warning in plan.warnings:
        yield f"warning: {warning}"
    peak, limit = plan.forecast.peak_bytes, format_bytes(plan.resolved.limits.memory_bytes)
    if not plan.fits_memory:
        yield f"error: this training needs about {format_bytes(peak.expected)}, and the limit is {limit}"
        yield from _ways_out(plan, f"plan with one of them: {command} --fix 1")
    elif plan.is_tight:
        high = format_bytes(peak.high)
        yield f"warning: it fits if the peak is what is expected, not at the upper end of the error bar, {high}"
        yield from _ways_out(plan, f"for room to spare plan with one of them: {command} --fix 1")
    if not plan.fits_disk:
        disk = plan.disk
        yield f"error: {format_bytes(disk.needed)} of disk are needed and {format_bytes(disk.free)} are free"
        yield "hint: make room, set training.keep_checkpoints = 1, or choose another output_dir"


def _ways_out(plan: Plan, closing: str) -> Iterator[str]:
    """The fixes with their numbers and ``closing``; a limit that was set too low; else a smaller model."""
    for number, fix in enumerate(plan.fixes, start=1):
        yield f"hint: {number}. {fix.sentence()}"
    if plan.fixes:
        yield f"hint: {closing}"
    own, peak = memory_limit(plan.machine), plan.forecast.peak_bytes
    is_raised_enough = plan.recipe.hardware.memory_limit not in ("auto", "off") and peak.expected <= own
    is_raised_enough = is_raised_enough and own > plan.resolved.limits.memory_bytes
    if is_raised_enough:
        asked = format_bytes(plan.resolved.limits.memory_bytes)
        left_out = f"{format_bytes(own)} on {'that Mac' if plan.mac else 'this machine'}, where it fits"
        yield f"hint: hardware.memory_limit = {asked} was asked for; left out it is {left_out}"
    if plan.is_tight or plan.fixes or is_raised_enough:
        return
    smaller = [one for one in CATALOGUE if one.num_parameters < plan.shape.num_parameters]
    if smaller:
        yield "hint: no setting makes it fit; choose a smaller model: mlxft models list"
    else:
        yield "hint: no setting makes it fit, and no model of mlxft models list is smaller: it takes more memory"


def _model_lines(plan: Plan) -> Iterator[str]:
    shape = plan.shape
    if not plan.source:
        yield f"{plan.recipe.model}, about {format_count(shape.num_parameters)} parameters; not on this machine yet"
        yield f"estimated from its size and four characters a token; exact after: mlxft models get {plan.recipe.model}"
        return
    about = "" if shape.is_exact else "about "
    yield (
        f"{plan.recipe.model}: {shape.model_type}, {shape.num_layers} blocks, {about}"
        f"{format_count(shape.num_parameters)} parameters, {plan.source}"
    )
    bits = _quantised_bits(plan)
    if bits and not plan.machine.on_gpu:
        yield f"{bits} bits a weight: on a CPU the same numbers are written out as float32, which saves no memory"


def _quantised_bits(plan: Plan) -> int | None:
    """Those that the recipe asks for, or that the base has on disk."""
    return plan.recipe.quantize or plan.facts.stored_bits


def _data_lines(plan: Plan) -> Iterator[str]:
    rows, tokens = plan.rows, plan.tokens
    corrected = f" ({rows['corrections']:,} of them corrections)" if "corrections" in rows else ""
    counts = (
        f"{counted(rows['train'], 'row')} to train on{corrected}, {rows['valid']:,} to validate, "
        f"{rows['test']:,} to test"
    )
    yield f"{counts}; {plan.data_format}"
    lengths = tokens.lengths
    of_a_row = learned_by(plan.recipe.task).of_a_row
    share = "" if tokens.target_share is None else f", {tokens.target_share:.0%} of them targets ({tokens.method})"
    is_divided = lengths.count != rows["train"]
    made = f"{counted(lengths.count, 'sequence')} made of them: " if is_divided else ""
    yield f"{made}{format_count(lengths.total)} tokens in an epoch{'' if of_a_row else share}"
    yield (
        f"a {'sequence' if is_divided else 'row'} has {lengths.mean:.0f} on average, half at most {lengths.median}, "
        f"90 % {lengths.p90}, longest {lengths.longest}"
    )
    most = max((bucket.count for bucket in lengths.histogram), default=1)
    for bucket in lengths.histogram:
        if bucket.count:
            bar = "#" * max(1, round(BAR_WIDTH * bucket.count / most))
            yield f"{bucket.low:>7} - {bucket.high - 1:<6} {bucket.count:>7}  {bar}"
    data = plan.recipe.data
    if not tokens.num_cut:
        yield f"no row is longer than max_seq_length = {data.max_seq_length}"
        return
    fate = {"drop": "left out", "keep-end": "cut", "split": "split"}[data.truncation]
    yield (
        f"{tokens.num_cut:,} of {counted(tokens.num_read, 'training row')} ({tokens.num_cut / tokens.num_read:.1%}) "
        f"{'is' if tokens.num_cut == 1 else 'are'} longer than max_seq_length = {data.max_seq_length} and {fate}"
    )


def _run_lines(plan: Plan) -> Iterator[str]:
    resolved = plan.resolved
    epochs = resolved.total_steps / max(1, resolved.steps_per_epoch)
    what = counted(resolved.microbatch, "pack" if resolved.packed_length else "row")
    what += f" of {resolved.packed_length} tokens" if resolved.packed_length else ""
    accumulation = resolved.recipe.training.gradient_accumulation_steps
    times = f", {accumulation} times a step" if accumulation > 1 else ""
    if resolved.microbatch != resolved.batch_size:
        times = f", {resolved.batch_size * accumulation} a step"
    yield (
        f"{counted(resolved.total_steps, 'step')}, {resolved.steps_per_epoch:,} in an epoch ({epochs:.2f} epochs); "
        f"{what} at once{times}"
    )
    rollouts = plan_rollouts(resolved, on_gpu=plan.machine.on_gpu)
    if rollouts is not None:
        tokens = rollouts.num_answers * rollouts.max_tokens
        every = "each step" if rollouts.updates == 1 else f"one drawing for {rollouts.updates} steps"
        drawings = math.ceil(resolved.total_steps / rollouts.updates)
        yield (
            f"{every} draws {rollouts.num_answers:,} answers, {rollouts.group_size} to a problem, of at most "
            f"{rollouts.max_tokens:,} tokens, {rollouts.at_once} at a time: at most {rollouts.num_passes:,} passes"
        )
        yield (
            f"up to {format_count(tokens * drawings)} tokens are said in all, which is often most of the "
            "time; grpo.max_tokens and grpo.group_size make it less"
        )


def _adapter_lines(plan: Plan) -> Iterator[str]:
    total = plan.shape.num_parameters
    lora = plan.recipe.lora
    if lora is None:
        yield f"all {format_count(total)} parameters"
        return
    share = plan.trainable / max(1, total)
    linears, blocks = len(target_linears(plan.shape, lora)), adapted_layers(plan.shape, lora)
    about = "" if plan.shape.is_exact else "about "
    yield (
        f"{about}{plan.trainable:,} parameters ({share:.2%}): rank {lora.rank} on {linears} layers in each of {blocks} "
        f"blocks; the adapter's output is multiplied by {lora.scale:g}"
    )


def _memory_lines(plan: Plan) -> Iterator[str]:
    """The terms of the arithmetic, then the peak with its error bar and where that comes from."""
    memory, limits = plan.resolved.memory, plan.resolved.limits
    what = "weights learned, gradients, optimizer" if plan.recipe.lora is None else "adapter, gradients, optimizer"
    terms = [(FROZEN, memory.weights)] if memory.weights else []
    terms += [(what, memory.trainable)]
    if memory.drawing > max(memory.activations + memory.logits, memory.update):
        terms += [("answers while they grow together", memory.drawing)]
    elif memory.activations + memory.logits >= memory.update:
        terms += [("activations", memory.activations), ("logits", memory.logits)]
    else:
        terms += [("the update itself", memory.update)]
    if not plan.is_peak_measured:
        is_written_out = bool(_quantised_bits(plan)) and not plan.machine.on_gpu
        for label, num_bytes in terms:
            note = "  written out as float32" if is_written_out and label == FROZEN else ""
            yield f"{label:<40}{format_bytes(num_bytes):>10}{note}"
        runs = plan.corrections.num_runs
        if runs and plan.mac is None:
            change = plan.resolved.peak_bytes - memory.total
            share = f"all but the frozen weights x {plan.corrections.memory_factor:.2f}"
            yield f"{f'corrected by {runs} runs on this machine':<40}{_signed(change):>10}  {share}"
    verdict = "fits" if plan.fits_memory else "does not fit"
    source = "measured on the longest rows" if plan.is_peak_measured else "by arithmetic"
    if plan.measured is not None and not plan.is_peak_measured:
        source += ", as no measured step has the answers of a run"
    limit = format_bytes(limits.memory_bytes)
    yield f"peak {plan.forecast.peak_bytes.text(exact_bytes)} of {limit}: {verdict}; {source}"
    if plan.measured is not None:
        yield f"the whole process took {format_bytes(plan.measured.process_bytes)} while it was measured"
    yield f"{'kept for reuse, given back when needed':<40}{format_bytes(limits.cache_bytes):>10}  at most"


def _signed(num_bytes: int) -> str:
    return f"{'-' if num_bytes < 0 else '+'}{format_bytes(abs(num_bytes))}"


def _energy_lines(plan: Plan) -> Iterator[str]:
    if plan.forecast.joules is None:
        yield "not available" + ("" if plan.mac else ": no power sensor here")
        return
    yield f"{plan.forecast.joules.text(format_energy)} at {plan.measured.watts if plan.measured else 0:.1f} W"


def _disk_lines(plan: Plan) -> Iterator[str]:
    disk = plan.disk
    what = "adapter" if plan.recipe.lora is not None else "model"
    free = "" if plan.mac else f" of {format_bytes(disk.free)} free"
    answers = f" and up to {format_bytes(disk.answers)} for the answers between two updates" if disk.answers else ""
    yield (
        f"{what} {format_bytes(disk.adapter)}, a checkpoint {format_bytes(disk.checkpoint)}{answers}; "
        f"{format_bytes(disk.needed)} at most{free}"
    )
    yield f"{plan.forecast.disk_bytes.text(exact_bytes)} when it has finished"


def _decision_lines(plan: Plan) -> Iterator[str]:
    resolved = plan.resolved
    for key, reason in resolved.reasons.items():
        section, _, name = key.partition(".")
        values: dict[str, object] = resolved.recipe.model_dump()[section]
        value = values[name]
        shown = str(value).lower() if isinstance(value, bool) else value
        yield f"{key} = {shown}  # {reason}"


def plan_json(
    plan: Plan, *, path: Path | None = None, overrides: Sequence[str] = (), more: Sequence[str] = ()
) -> dict[str, object]:
    """The plan as plain values. ``path``, ``overrides`` and ``more`` options make the commands in it."""
    resolved, run = plan.resolved, None if plan.mac else plan.recipe.run_folder
    return {
        "fits": plan.fits,
        "fits_memory": plan.fits_memory,
        "fits_disk": plan.fits_disk,
        "is_tight": plan.is_tight,
        "machine": plan.mac.name if plan.mac else plan.machine.chip,
        "is_this_machine": plan.mac is None,
        "model": {
            "name": plan.recipe.model,
            "source": plan.source,
            "is_here": bool(plan.source),
            "is_exact": plan.shape.is_exact,
            "model_type": plan.shape.model_type,
            "num_layers": plan.shape.num_layers,
            "num_parameters": plan.shape.num_parameters,
            "trainable_parameters": plan.trainable,
        },
        "rows": dict(plan.rows),
        "format": plan.data_format,
        "tokens": asdict(plan.tokens),
        "steps": {
            "total": resolved.total_steps,
            "per_epoch": resolved.steps_per_epoch,
            "batch_size": resolved.batch_size,
            "microbatch": resolved.microbatch,
            "packed_length": resolved.packed_length,
        },
        "forecast": _forecast_json(plan.forecast),
        "corrections": asdict(plan.corrections)
        | {"memory_factor": plan.corrections.memory_factor, "time_factor": plan.corrections.time_factor},
        "measured": plan.measured.to_json() if plan.measured else None,
        "memory_bytes": {**asdict(resolved.memory), "total": resolved.memory.total},
        "limits": asdict(resolved.limits),
        "disk_bytes": asdict(plan.disk) | ({"free": None} if plan.mac else {}),
        "recipe": resolved.recipe.model_dump(mode="json"),
        "reasons": dict(resolved.reasons),
        "warnings": list(plan.warnings),
        "suggestions": [asdict(one) for one in suggestions(plan)],
        "fixes": [_fix(fix, path, overrides, run, more) for fix in plan.fixes],
        "command": train_command(path, overrides, run, more),
    }


def _forecast_json(forecast: Forecast) -> dict[str, object]:
    return {
        "source": forecast.source,
        "is_calibrated": forecast.is_calibrated,
        "peak_bytes": forecast.peak_bytes.to_json(),
        "step_seconds": _range(forecast.step_seconds),
        "finish_seconds": _range(forecast.finish_seconds),
        "disk_bytes": forecast.disk_bytes.to_json(),
        "joules": _range(forecast.joules),
        "saying_seconds": _range(forecast.answers.saying) if forecast.answers else None,
        "learning_seconds": _range(forecast.answers.learning) if forecast.answers else None,
    }


def _range(value: Range | None) -> dict[str, float] | None:
    return value.to_json() if value is not None else None


def _fix(
    fix: Fix, path: Path | None, overrides: Sequence[str], run: Path | None, more: Sequence[str]
) -> dict[str, object]:
    return {
        "settings": dict(fix.settings),
        "options": fix.options,
        "price": fix.price,
        "relative_time": fix.relative_time,
        "peak_bytes": fix.peak_bytes,
        "keeps_result": fix.keeps_result,
        "command": train_command(path, fix.merged(overrides), run, more),
    }
