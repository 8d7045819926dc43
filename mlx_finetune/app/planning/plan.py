"""What a recipe will cost: rows and tokens for real, the rest by arithmetic or by measuring. No mlx.

``make_plan`` takes under a second and loads no weight; ``with_measured`` puts what the measuring process found
(``app.planning.measuring``) in the place of the arithmetic.

Where the model is on this machine its own tokenizer counts the tokens. Where it is not, nothing is downloaded: a
token is taken to be four characters and the sizes come from the catalogue's parameter count, and the plan says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mlx_finetune import rundir
from mlx_finetune.app.planning.counting import TokenCount, count_tokens, estimate_tokens
from mlx_finetune.app.planning.fitting import Fix, find_fixes
from mlx_finetune.dataset.corpus import Splits, load_splits
from mlx_finetune.dataset.corrections import find_corrections
from mlx_finetune.dataset.labels import num_outputs
from mlx_finetune.dataset.pairs import num_read
from mlx_finetune.errors import DataError, ModelError
from mlx_finetune.events import Phase
from mlx_finetune.hardware.limits import Machine, memory_limit
from mlx_finetune.hardware.planning.answering import scorer_bytes
from mlx_finetune.hardware.planning.auto import Resolved, resolve_auto
from mlx_finetune.hardware.planning.chips import Mac
from mlx_finetune.hardware.planning.disk import DiskPlan, free_bytes, plan_run_disk
from mlx_finetune.hardware.planning.facts import Facts
from mlx_finetune.hardware.planning.forecast import (
    Forecast,
    disk_at_end,
    forecast_arithmetic,
    forecast_mac,
    forecast_measured,
    plan_beside,
)
from mlx_finetune.hardware.planning.layout import epoch_positions, why_unpackable
from mlx_finetune.hardware.planning.measured import Measured
from mlx_finetune.hardware.planning.memory import trainable_parameters
from mlx_finetune.hardware.planning.rollouts import add_rollouts, assume_drawing
from mlx_finetune.hardware.planning.shapes import ModelShape, guess_shape, read_shape, target_linears
from mlx_finetune.hardware.profile import Corrections
from mlx_finetune.hardware.tuned import NOTHING_TUNED, TunedSettings
from mlx_finetune.model.files.config import read_config, refuse_more_blocks
from mlx_finetune.model.scratch.begin import recipe_model
from mlx_finetune.model.sources.catalogue import find_entry
from mlx_finetune.model.sources.fetch import LocalModel
from mlx_finetune.recipe.learned import learned_by
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.units import format_bytes, format_seconds

BUSY_SHARE = 0.1  # of the processors, from which on other programs are named


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything ``mlxft plan`` prints. ``source`` says where the model is, "" where it is not here yet.

    ``corrections`` are what earlier runs on this machine taught; ``mac`` is the other Mac it is planned for, None where
    it is this machine.
    """

    recipe: Recipe
    source: str
    shape: ModelShape
    facts: Facts
    corrections: Corrections
    mac: Mac | None
    measured: Measured | None
    forecast: Forecast
    rows: Mapping[str, int]
    data_format: str
    tokens: TokenCount
    resolved: Resolved
    trainable: int
    disk: DiskPlan
    warnings: tuple[str, ...]
    fixes: tuple[Fix, ...]

    @property
    def machine(self) -> Machine:
        """What it is planned for."""
        return self.facts.machine

    @property
    def is_peak_measured(self) -> bool:
        """True where real steps showed the peak; False where arithmetic says more, or nothing was measured."""
        found = self.measured
        return found is not None and self.forecast.peak_bytes.expected <= max(found.peak_bytes, found.load_peak_bytes)

    @property
    def fits_memory(self) -> bool:
        """True where the expected peak is within the limit."""
        return round(self.forecast.peak_bytes.expected) <= self.resolved.limits.memory_bytes

    @property
    def is_tight(self) -> bool:
        """True where it fits, but would not at the upper end of the peak's error bar."""
        return self.fits_memory and round(self.forecast.peak_bytes.high) > self.resolved.limits.memory_bytes

    @property
    def fits_disk(self) -> bool:
        """True where the checkpoints find room; of another Mac nobody knows."""
        return self.mac is not None or self.disk.needed <= self.disk.free

    @property
    def fits(self) -> bool:
        """True where nothing stands against a start."""
        return self.fits_memory and self.fits_disk


def make_plan(
    recipe: Recipe,
    *,
    base: Path,
    machine: Machine,
    corrections: Corrections | None = None,
    tuned: TunedSettings | None = None,
    mac: Mac | None = None,
    num_processes: int = 1,
) -> Plan:
    """The plan of ``recipe`` by arithmetic; relative paths are looked up in ``base``.

    ``tuned`` is what ``mlxft tune`` found on ``machine``, another one where there is a ``mac``. Raises ``MlxftError``.
    """
    splits, local = _load_rows(recipe, base), find_local(recipe, base)
    if local is None:
        shape, bits = _guess(recipe), None
        lengths, tokens, tokenizer_bytes = *estimate_tokens(splits, recipe), 0
    else:
        shape, bits = _read_config(local)
        lengths, tokens, tokenizer_bytes = count_tokens(splits, recipe, local, base, shape)
    shape = replace(shape, num_outputs=num_outputs(recipe.task, splits.train))
    known = corrections or Corrections()
    _check_blocks(recipe, shape)
    run, unpackable = base / recipe.run_folder, why_unpackable(shape.model_type, recipe.task)
    facts = Facts(lengths, shape, machine, unpackable, bits, known.memory_factor, num_processes=num_processes)
    facts = replace(facts, tuned=tuned or NOTHING_TUNED, scorer_bytes=_scorer_bytes(recipe, base, machine))
    facts = _with_tokens(facts, tokens, run, is_here=mac is None)
    resolved = resolve_auto(recipe, facts)
    trainable = trainable_parameters(shape, recipe.lora)
    disk = plan_run_disk(resolved.recipe, shape, lengths, resolved.total_steps, run, beside=tokenizer_bytes)
    plan = Plan(
        recipe=recipe,
        source=local.source if local else "",
        shape=shape,
        facts=facts,
        corrections=known,
        mac=mac,
        measured=None,
        forecast=_forecast(resolved, facts, known, mac, disk),
        rows=_count_rows(splits, tokens, recipe),
        data_format=splits.format,
        tokens=tokens,
        resolved=resolved,
        trainable=trainable,
        disk=disk,
        warnings=_warnings(recipe, splits, facts, trainable, resolved, tokens),
        fixes=(),
    )
    return _with_fixes(plan)


def _scorer_bytes(recipe: Recipe, base: Path, machine: Machine) -> int:
    """What the runs hold that grpo.rewards names. Raises ``MlxftError`` for one that cannot score."""
    if recipe.task != "grpo":
        return 0
    from mlx_finetune.model.heads.scorer import find_scorers  # mlx, which other plans without measuring do not need

    runs = find_scorers(recipe.grpo.rewards, base=base, report=lambda _: None)
    asked = recipe.hardware.compute_dtype
    return sum(scorer_bytes(read_config(one.local.folder), one.recipe, asked, on_gpu=machine.on_gpu) for one in runs)


def _load_rows(recipe: Recipe, base: Path) -> Splits:
    rundir.check_folder(recipe.run_folder)
    splits = load_splits(recipe.data, base=base, task=recipe.task, corrections=find_corrections(recipe, base=base))
    if not splits.train:
        raise DataError("no row is left to train on", "see why with: mlxft data check RECIPE")
    return splits


def _count_rows(splits: Splits, tokens: TokenCount, recipe: Recipe) -> Mapping[str, int]:
    """Rows by split; the corrections among the training rows beside them where the recipe includes any."""
    counts = {"train": tokens.num_used, "valid": tokens.num_valid, "test": len(splits.test)}
    return counts if recipe.data.corrections is False else counts | {"corrections": splits.num_corrections}


def _with_tokens(facts: Facts, tokens: TokenCount, run: Path, *, is_here: bool) -> Facts:
    """How much is learned of a row, and what it takes to keep hidden states of all."""
    lengths = tokens.lengths
    return replace(
        facts,
        most_targets=tokens.most_targets,
        train_positions=lengths.total - lengths.count,
        valid_positions=tokens.valid_positions,
        num_valid=tokens.num_valid,
        free_disk_bytes=free_bytes(run) if is_here else None,
    )


def with_measured(plan: Plan, measured: Measured) -> Plan:
    """The plan with the forecast that follows from what was measured on this machine.

    Where the time was up before the longest rows it stays as it was, with a warning that says so.
    """
    if not measured.has_longest:
        others = f"other programs used {measured.others_share:.0%} of the processors"
        why = others if measured.others_share >= BUSY_SHARE else f"{format_seconds(measured.startup_seconds)} to load"
        warning = (
            f"nothing was measured: the time for it was up after {format_seconds(measured.seconds)}, before the "
            f"longest rows ({why}); memory and time are by arithmetic, and planning again may find more time"
        )
        return replace(plan, warnings=(*plan.warnings, warning))
    beside = plan_beside(plan.resolved, plan.recipe.eval, plan.disk.checkpoint)
    disk_bytes, on_gpu = plan.forecast.disk_bytes, plan.machine.on_gpu
    says = plan.recipe.task == "grpo"
    forecast = forecast_measured(
        measured,
        beside,
        plan.corrections,
        planned_peak_bytes=plan.resolved.peak_bytes if says else plan.resolved.memory.total,
        on_gpu=on_gpu,
        disk_bytes=disk_bytes,
        has_own_answers=says,
    )
    asked = (measured, plan.tokens.num_valid, beside.num_evaluations)
    forecast = add_rollouts(forecast, plan.resolved, *asked, on_gpu=on_gpu)
    facts = replace(plan.facts, memory_factor=plan.resolved.memory.factor(forecast.peak_bytes.expected))
    return _with_fixes(replace(plan, measured=measured, forecast=forecast, facts=facts, fixes=()))


def _with_fixes(plan: Plan) -> Plan:
    """Ways to make it fit, or to fit with room for the upper end of the error bar."""
    if plan.fits_memory and not plan.is_tight:
        return plan
    peak = plan.forecast.peak_bytes
    margin = peak.high / peak.expected if plan.is_tight else 1.0
    return replace(plan, fixes=find_fixes(plan.recipe, plan.facts, margin=margin))


def _forecast(resolved: Resolved, facts: Facts, corrections: Corrections, mac: Mac | None, disk: DiskPlan) -> Forecast:
    """Without measuring: from earlier runs on this machine, or from the chip table for another one."""
    epochs = resolved.total_steps / max(1, resolved.steps_per_epoch)
    positions = epochs * epoch_positions(facts.lengths, resolved.packed_length, resolved.batch_size)
    at_end = disk_at_end(resolved, disk, plan_beside(resolved, resolved.recipe.eval, disk.checkpoint))
    on_gpu = facts.machine.on_gpu
    forecast = forecast_arithmetic(resolved, facts.shape, positions, corrections, on_gpu=on_gpu, disk_bytes=at_end)
    if mac is not None:
        forecast = forecast_mac(resolved, facts.shape, positions, mac, disk_bytes=at_end)
    assumed = assume_drawing(resolved, facts, forecast.step_seconds) if forecast.step_seconds is not None else None
    return add_rollouts(forecast, resolved, None, 0, 0, on_gpu=on_gpu, assumed=assumed)


class _WouldDownloadError(Exception):
    """Raised by the reporter below: fetching announces a download before it asks anybody."""


def find_local(recipe: Recipe, base: Path) -> LocalModel | None:
    """The recipe's model where it is on this machine; None where it would have to be downloaded."""

    def report(phase: Phase) -> None:
        if phase.name == "download":
            raise _WouldDownloadError

    try:
        return recipe_model(recipe, base=base, report=report)
    except _WouldDownloadError:
        return None


def _read_config(local: LocalModel) -> tuple[ModelShape, int | None]:
    config = read_config(local.folder)
    quantization = config.get("quantization")
    bits = quantization.get("bits") if isinstance(quantization, dict) else None
    try:
        return read_shape(config), bits if isinstance(bits, int) else None
    except ValueError as error:
        raise ModelError(f"{local.name}: {error}", "the plan cannot tell this model's size") from error


def _check_blocks(recipe: Recipe, shape: ModelShape) -> None:
    """Refuse an adapter on more blocks than there are, as the training does. Raises ``ModelError``."""
    if shape.is_exact and recipe.lora is not None and recipe.lora.num_layers != "all":
        refuse_more_blocks(recipe.lora.num_layers, shape.num_layers)


def _guess(recipe: Recipe) -> ModelShape:
    entry = find_entry(recipe.model)
    if entry is None:
        raise ModelError(
            f"{recipe.model} is not on this machine and not in the catalogue, so its size is unknown",
            f"fetch it first: mlxft models get {recipe.model}",
        )
    return guess_shape(entry.num_parameters)


def _warnings(
    recipe: Recipe, splits: Splits, facts: Facts, trainable: int, resolved: Resolved, tokens: TokenCount
) -> tuple[str, ...]:
    """What a person should know before starting."""
    shape, machine = facts.shape, facts.machine
    found = [f"{one.where}: {one.message}" if one.where else one.message for one in splits.problems]
    found += tokens.lost
    if recipe.lora is not None and not target_linears(shape, recipe.lora) and shape.is_exact:
        names = ", ".join(sorted({one.name.rpartition(".")[2] for one in shape.linears}))
        found.append(f"lora.target_modules names no layer of this model; it has {names}")
    if shape.context_length and num_read(tokens.lengths.longest, recipe.task) > shape.context_length:
        found.append(
            f"the longest row has {tokens.lengths.longest} tokens, and the model reads {shape.context_length}; set "
            f"data.max_seq_length = {shape.context_length}"
        )
    limit, memory = resolved.limits.memory_bytes, machine.memory_bytes
    if limit > memory:
        found.append(
            f"hardware.memory_limit = {format_bytes(limit)} is more than the {format_bytes(memory)} of the whole "
            f"machine; left out it is {format_bytes(memory_limit(machine))}"
        )
    epochs = resolved.total_steps / max(1, resolved.steps_per_epoch)
    seen = tokens.lengths.total * (tokens.target_share or 0.5) * epochs
    if recipe.lora is not None and 0 < trainable < seen and learned_by(recipe.task).unit == "target":
        found.append(
            f"{seen:,.0f} targets for {trainable:,} adapter parameters: a higher lora.rank may learn more of them"
        )
    if facts.num_processes > 1:
        found.append(
            f"{facts.num_processes} processes train together: the memory is that of each, the time that of one alone"
        )
    if not splits.valid:
        found.append("no validation rows: nothing will tell whether it learned or memorised; see data.val_split")
    return tuple(found)
