"""A plan as lines for a person and as plain values for ``--json``."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from mlx_finetune.app.fitting import Fix
from mlx_finetune.app.plan import Plan
from mlx_finetune.hardware.ranges import Range
from mlx_finetune.hardware.shapes import adapted_layers, target_linears
from mlx_finetune.units import format_bytes, format_count, format_energy, format_seconds, format_step

BAR_WIDTH = 24
LABEL_WIDTH = 9

_SOURCES = {
    "measured": "measured on this machine",
    "earlier runs": "from the speed of earlier runs on this machine",
    "chip table": "from the chip table, a range of two",
    "arithmetic": "by arithmetic",
}


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
        ("time", _time_lines(plan)),
        ("energy", _energy_lines(plan)),
        ("disk", _disk_lines(plan)),
        ("decided", _decision_lines(plan)),
    ):
        for line in lines:
            yield f"{label:<{LABEL_WIDTH}}{line}".rstrip()
            label = ""


def warning_lines(plan: Plan, *, command: str) -> Iterator[str]:
    """Warnings, and what stands against a start with ways out; ``command`` is the one that made this plan."""
    for warning in plan.warnings:
        yield f"warning: {warning}"
    if not plan.fits_memory:
        yield (
            f"error: this training needs about {format_bytes(plan.forecast.peak_bytes.expected)}, and the limit is "
            f"{format_bytes(plan.resolved.limits.memory_bytes)}"
        )
        for number, fix in enumerate(plan.fixes, start=1):
            yield f"hint: {number}. {fix.sentence()}"
        if plan.fixes:
            yield f"hint: plan with one of them: {command} --fix 1"
        else:
            yield "hint: no setting makes it fit; choose a smaller model: mlxft models list"
    elif plan.forecast.peak_bytes.high > plan.resolved.limits.memory_bytes:
        yield "warning: it fits if the peak is what is expected, not if it is at the upper end of the error bar"
    if not plan.fits_disk:
        disk = plan.disk
        yield f"error: {format_bytes(disk.needed)} of disk are needed and {format_bytes(disk.free)} are free"
        yield "hint: make room, set training.keep_checkpoints = 1, or choose another output_dir"


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
    if not plan.machine.on_gpu and plan.recipe.quantize is not None:
        yield f"quantize = {plan.recipe.quantize}: on a CPU the same numbers are written out as float32"


def _data_lines(plan: Plan) -> Iterator[str]:
    rows, tokens = plan.rows, plan.tokens
    corrected = f" ({rows['corrections']:,} of them corrections)" if "corrections" in rows else ""
    counts = f"{rows['train']:,} rows to train on{corrected}, {rows['valid']:,} to validate, {rows['test']:,} to test"
    yield f"{counts}; {plan.data_format}"
    lengths = tokens.lengths
    share = f", {tokens.target_share:.0%} of them targets ({tokens.method})" if tokens.target_share is not None else ""
    yield f"{format_count(lengths.total)} tokens in an epoch{share}"
    yield (
        f"a row has {lengths.mean:.0f} on average, half at most {lengths.median}, 90 % {lengths.p90}, longest "
        f"{lengths.longest}"
    )
    most = max((bucket.count for bucket in lengths.histogram), default=1)
    for bucket in lengths.histogram:
        if bucket.count:
            bar = "#" * max(1, round(BAR_WIDTH * bucket.count / most))
            yield f"{bucket.low:>7} - {bucket.high - 1:<6} {bucket.count:>7}  {bar}"
    limit = plan.recipe.data.max_seq_length
    total = lengths.count + (tokens.num_cut if plan.recipe.data.truncation == "drop" else 0)
    yield (
        f"{tokens.num_cut} rows ({tokens.num_cut / max(1, total):.1%}) are longer than max_seq_length = {limit} "
        f"({plan.recipe.data.truncation})"
    )


def _run_lines(plan: Plan) -> Iterator[str]:
    resolved = plan.resolved
    epochs = resolved.total_steps / max(1, resolved.steps_per_epoch)
    what = f"packs of {resolved.packed_length} tokens" if resolved.packed_length else "rows"
    accumulation = resolved.recipe.training.gradient_accumulation_steps
    times = f", {accumulation} times a step" if accumulation > 1 else ""
    yield (
        f"{resolved.total_steps:,} steps, {resolved.steps_per_epoch:,} in an epoch ({epochs:.2f} epochs); "
        f"{resolved.batch_size} {what} at once{times}"
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
    terms = [("frozen weights", memory.weights)] if memory.weights else []
    terms += [(what, memory.trainable)]
    if memory.activations + memory.logits >= memory.update:
        terms += [("activations", memory.activations), ("logits", memory.logits)]
    else:
        terms += [("the update itself", memory.update)]
    if plan.measured is None:
        for label, num_bytes in terms:
            yield f"{label:<40}{format_bytes(num_bytes):>10}"
        runs = plan.corrections.num_runs
        if runs and plan.mac is None:
            factor = plan.corrections.memory_factor
            yield f"{f'corrected by {runs} runs on this machine':<40}{f'x {factor:.2f}':>10}"
    verdict = "fits" if plan.fits_memory else "does not fit"
    source = "measured on the longest rows" if plan.measured else "by arithmetic"
    limit = format_bytes(limits.memory_bytes)
    yield f"peak {plan.forecast.peak_bytes.text(exact_bytes)} of {limit}: {verdict}; {source}"
    if plan.measured is not None:
        yield f"the whole process took {format_bytes(plan.measured.process_bytes)} while it was measured"
    yield f"{'kept for reuse, given back when needed':<40}{format_bytes(limits.cache_bytes):>10}  at most"


def _time_lines(plan: Plan) -> Iterator[str]:
    forecast = plan.forecast
    if forecast.step_seconds is None or forecast.finish_seconds is None:
        where = "not measured" if plan.source else "not known before the model is here"
        yield f"{where}, and no run on this machine has told yet"
        return
    calibrated = "" if forecast.is_calibrated else "; not calibrated: no trustworthy figure of this chip is known"
    yield f"{forecast.step_seconds.text(format_step)} a step, {_SOURCES[forecast.source]}{calibrated}"
    runs = len(plan.corrections.time_ratios)
    if plan.measured and runs:
        yield f"corrected by {runs} planned runs on this machine: x {plan.corrections.time_factor:.2f}"
    if plan.measured is None:
        yield f"{forecast.finish_seconds.text(format_seconds)} for all steps, without evaluations and answers"
        return
    yield f"{forecast.finish_seconds.text(format_seconds)} from start to end, evaluations, answers and saving included"
    yield from _measuring_lines(plan)


def _measuring_lines(plan: Plan) -> Iterator[str]:
    measured = plan.measured
    assert measured is not None, "nothing was measured"
    many = len(measured.microbatches)
    share = f"; other programs used {measured.others_share:.0%} of the processors" * (measured.others_share >= 0.1)
    yield f"{many} microbatches were timed in {format_seconds(measured.seconds)}{share}"


def _energy_lines(plan: Plan) -> Iterator[str]:
    if plan.forecast.joules is None:
        yield "not available" + ("" if plan.mac else ": no power sensor here")
        return
    yield f"{plan.forecast.joules.text(format_energy)} at {plan.measured.watts if plan.measured else 0:.1f} W"


def _disk_lines(plan: Plan) -> Iterator[str]:
    disk = plan.disk
    what = "adapter" if plan.recipe.lora is not None else "model"
    yield (
        f"{what} {format_bytes(disk.adapter)}, a checkpoint {format_bytes(disk.checkpoint)}; "
        f"{format_bytes(disk.needed)} at most of {format_bytes(disk.free)} free"
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


def plan_json(plan: Plan, *, path: Path | None = None, overrides: Sequence[str] = ()) -> dict[str, object]:
    """The plan as plain values. ``path`` and ``overrides`` are what the commands of the fixes are made of."""
    resolved, forecast = plan.resolved, plan.forecast
    return {
        "fits": plan.fits,
        "fits_memory": plan.fits_memory,
        "fits_disk": plan.fits_disk,
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
            "packed_length": resolved.packed_length,
        },
        "forecast": {
            "source": forecast.source,
            "is_calibrated": forecast.is_calibrated,
            "peak_bytes": forecast.peak_bytes.to_json(),
            "step_seconds": _range(forecast.step_seconds),
            "finish_seconds": _range(forecast.finish_seconds),
            "disk_bytes": forecast.disk_bytes.to_json(),
            "joules": _range(forecast.joules),
        },
        "corrections": asdict(plan.corrections)
        | {"memory_factor": plan.corrections.memory_factor, "time_factor": plan.corrections.time_factor},
        "measured": plan.measured.to_json() if plan.measured else None,
        "memory_bytes": {**asdict(resolved.memory), "total": resolved.memory.total},
        "limits": asdict(resolved.limits),
        "disk_bytes": asdict(plan.disk),
        "recipe": resolved.recipe.model_dump(mode="json"),
        "reasons": dict(resolved.reasons),
        "warnings": list(plan.warnings),
        "fixes": [_fix(fix, path, overrides) for fix in plan.fixes],
        "command": train_command(path, overrides),
    }


def train_command(path: Path | None, overrides: Sequence[str]) -> str:
    """What trains the recipe that was planned, quoted for a shell."""
    options = [part for one in overrides for part in ("--set", one)]
    return shlex.join(["mlxft", "train", str(path or "RECIPE"), *options])


def _range(value: Range | None) -> dict[str, float] | None:
    return value.to_json() if value is not None else None


def _fix(fix: Fix, path: Path | None, overrides: Sequence[str]) -> dict[str, object]:
    return {
        "settings": dict(fix.settings),
        "options": fix.options,
        "price": fix.price,
        "relative_time": fix.relative_time,
        "peak_bytes": fix.peak_bytes,
        "keeps_result": fix.keeps_result,
        "command": train_command(path, fix.merged(overrides)),
    }
