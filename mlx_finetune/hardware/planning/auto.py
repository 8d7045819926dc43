"""The rule behind every "auto" and every default that depends on the run; the plan and the trainer call the same one.

``resolve_auto`` takes the recipe and a few facts about the rows, the model and the machine, and gives the recipe with
the decisions filled in, each with its reason. Pure arithmetic: the same facts give the same answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mlx_finetune.errors import DoesNotFitError, Problem, RecipeError
from mlx_finetune.hardware.limits import Limits, Machine, compute_dtype, memory_limit, plan_limits
from mlx_finetune.hardware.planning import kept_states
from mlx_finetune.hardware.planning.answering import updates_a_drawing
from mlx_finetune.hardware.planning.cadence import cadence, steps_in_epoch, total_steps
from mlx_finetune.hardware.planning.facts import Facts
from mlx_finetune.hardware.planning.kept_states import KeptStates
from mlx_finetune.hardware.planning.layout import choose_layout, count_sequences, longest_padded
from mlx_finetune.hardware.planning.memory import MemoryPlan
from mlx_finetune.hardware.planning.run_memory import Sequences, plan_run_memory
from mlx_finetune.hardware.tuned import KEYS, VARIABLES
from mlx_finetune.recipe.preference import PREFERENCE_TASKS, default_rate, settled_preference
from mlx_finetune.recipe.schema import HardwareRecipe, Recipe
from mlx_finetune.units import format_bytes

DEFAULT_BATCH_SIZE = 4
PACKED_ROWS = 16


@dataclass(frozen=True, slots=True)
class Resolved:
    """The recipe with every decision in it, and why (``training.batch_size`` -> sentence).

    ``packed_length`` is T of a pack, None where rows are not packed; ``microbatch`` sequences go through the model at
    once; ``memory`` is the predicted peak by term, ``memory_factor`` what it is corrected by. ``kept`` says what is
    kept of the frozen blocks, None where nothing is.
    """

    recipe: Recipe
    reasons: Mapping[str, str]
    batch_size: int
    microbatch: int
    packed_length: int | None
    total_steps: int
    steps_per_epoch: int
    memory: MemoryPlan
    limits: Limits
    memory_factor: float = 1.0
    kept: KeptStates | None = None

    @property
    def peak_bytes(self) -> int:
        """The predicted peak, corrected by earlier runs on this machine."""
        return self.memory.corrected(self.memory_factor)


def resolve_auto(recipe: Recipe, facts: Facts) -> Resolved:
    """Every decision that needs the rows, the model or the machine. Raises ``ValueError`` without rows, and
    ``RecipeError`` where ``reuse_frozen_layers`` is asked for and cannot be."""
    if not len(facts.lengths):
        raise ValueError("no training rows to plan for")
    decided = _Decisions(recipe, facts)
    decided.decide_type()
    decided.decide_threads()
    decided.decide_buffers()
    decided.decide_packing()
    decided.decide_batch()
    decided.decide_rates()
    decided.decide_reuse()
    decided.decide_cadence()
    return decided.result()


def default_learning_rate(recipe: Recipe) -> tuple[float, str]:
    """The peak learning rate where none is given, and why."""
    if recipe.scratch is not None:
        rate, reason = 1e-3, "for random weights"
    elif recipe.task in PREFERENCE_TASKS:
        rate, reason = default_rate(recipe.task, is_adapter=recipe.lora is not None)
    elif recipe.task == "grpo":
        rate, reason = (1e-5 if recipe.lora is not None else 1e-6), "for rewards of its own answers"
    elif recipe.lora is not None:
        rate, reason = 2e-4, "for adapters"
    else:
        rate, reason = 1e-5, "where every weight is trained"
    return (rate / 5, f"{reason}, a fifth with lion") if recipe.training.optimizer == "lion" else (rate, reason)


class _Decisions:
    """The decisions so far, in the order in which they depend on each other."""

    def __init__(self, recipe: Recipe, facts: Facts) -> None:
        self._recipe = recipe
        self._facts = facts
        self._reasons: dict[str, str] = {}
        self._training: dict[str, object] = {}
        self._hardware: dict[str, object] = {}
        self._packed_length: int | None = None
        self._batch_size = self._microbatch = DEFAULT_BATCH_SIZE
        self._threads = recipe.hardware.num_threads
        self._dtype = recipe.hardware.compute_dtype
        self._total_steps = self._steps_per_epoch = 0
        self._kept: KeptStates | None = None

    def decide_type(self) -> None:
        """Compute type and the limits the plan is held against."""
        if self._recipe.hardware.compute_dtype == "auto":
            is_full, tuned = self._recipe.lora is None, self._facts.tuned
            needs_range = self._facts.shape.decoder_layers > 0
            self._dtype, reason = compute_dtype(self._facts.machine, is_full=is_full, needs_range=needs_range)
            is_narrow = tuned.compute_dtype == "float16" and (is_full or needs_range)
            if tuned.compute_dtype is not None and not is_narrow:
                self._dtype, reason = tuned.compute_dtype, tuned.reasons["hardware.compute_dtype"]
            self._hardware["compute_dtype"] = self._dtype
            self._reasons["hardware.compute_dtype"] = reason
        self._limits = plan_limits(self._recipe.hardware, self._facts.machine, 0, {})

    def decide_threads(self) -> None:
        """How a CPU divides a microbatch; a GPU has no use for it, and what was tuned holds for one process alone."""
        if self._threads != "auto":
            return
        if self._facts.machine.on_gpu:
            self._reasons["hardware.num_threads"] = "of a CPU only"
            return
        tuned = self._tuned("num_threads")
        self._threads = "halves" if tuned is None else tuned
        rule = "half of a microbatch in each of two threads"
        self._reasons["hardware.num_threads"] = self._facts.tuned.reasons["hardware.num_threads"] if tuned else rule

    def decide_buffers(self) -> None:
        """After how much work MLX hands it to the GPU; whoever started this process told MLX (``hardware.metal``)."""
        hardware, tuned = self._recipe.hardware, self._facts.tuned
        for name, value in tuned.values().items():
            if name in VARIABLES and self._facts.machine.on_gpu and getattr(hardware, name) == "auto":
                self._hardware[name] = value
                self._reasons[KEYS[name]] = tuned.reasons[KEYS[name]]

    def _tuned(self, name: Literal["num_threads", "batch_size"]) -> int | None:
        tuned = self._facts.tuned
        value = tuned.num_threads if name == "num_threads" else tuned.batch_size
        return value if self._facts.num_processes == 1 else None

    def decide_packing(self) -> None:
        """Pack or not, and to which length."""
        wanted = self._recipe.data.packing
        batch = self._recipe.training.batch_size
        layout = choose_layout(
            self._facts.lengths,
            self._facts.shape,
            batch_size=DEFAULT_BATCH_SIZE if batch == "auto" else batch,
            max_length=self._recipe.data.max_seq_length,
            on_gpu=self._facts.machine.on_gpu,
            wanted=wanted,
            unpackable=self._facts.unpackable,
        )
        self._packed_length = layout.packed_length
        if wanted == "auto":
            self._reasons["data.packing"] = layout.reason

    def decide_batch(self) -> None:
        """Sequences at once, and recomputation where the plan needs it."""
        training, limit = self._recipe.training, self._limits.memory_bytes
        num_sequences = count_sequences(self._facts.lengths, self._packed_length)
        if training.batch_size == "auto":
            self._batch_size, self._reasons["training.batch_size"] = self._start_batch(num_sequences)
        else:
            self._batch_size = training.batch_size
        self._choose_microbatch()
        plain = self._needed(recompute=False)
        self._recompute = training.gradient_checkpointing is True
        if training.gradient_checkpointing == "auto":
            is_faster = self._facts.tuned.gradient_checkpointing is True
            self._recompute = is_faster or plain > limit
            word = "more than" if plain > limit else "within"
            rule = f"{format_bytes(plain)} without it, {word} the limit of {format_bytes(limit)}"
            key = "training.gradient_checkpointing"
            self._reasons[key] = self._facts.tuned.reasons[key] if is_faster else rule
        needed = self._needed(recompute=self._recompute)
        while training.batch_size == "auto" and self._batch_size > 1 and needed > limit:
            tried, self._batch_size = self._batch_size, self._batch_size // 2
            self._reasons["training.batch_size"] = f"{tried} needs {format_bytes(needed)}, limit {format_bytes(limit)}"
            self._choose_microbatch()
            needed = self._needed(recompute=self._recompute)

    def _choose_microbatch(self) -> None:
        """Sequences at once: what the recipe says, or what was faster here and fits, or ``batch_size``."""
        asked, tuned = self._recipe.hardware.microbatch, self._tuned("batch_size")
        whole = self._batch_size * self._recipe.training.gradient_accumulation_steps
        if asked != "auto":
            self._microbatch = min(asked, whole)
            return
        self._microbatch = min(tuned or self._batch_size, whole)
        reason = self._facts.tuned.reasons["hardware.microbatch"] if tuned else "batch_size at once"
        is_recomputing = self._recipe.training.gradient_checkpointing is True
        if self._microbatch > self._batch_size and self._needed(recompute=is_recomputing) > self._limits.memory_bytes:
            reason = f"batch_size at once, as {self._microbatch} would not fit"
            self._microbatch = self._batch_size
        self._reasons["hardware.microbatch"] = reason

    def _start_batch(self, num_sequences: int) -> tuple[int, str]:
        """4 rows; of packs as many as hold about 16 rows, at most 4; never more than there are."""
        if num_sequences < DEFAULT_BATCH_SIZE:
            return num_sequences, f"there are only {num_sequences} {'packs' if self._packed_length else 'rows'}"
        if not self._packed_length:
            return DEFAULT_BATCH_SIZE, f"{DEFAULT_BATCH_SIZE} rows, the default"
        rows_a_pack = len(self._facts.lengths) / num_sequences
        packs = max(1, min(DEFAULT_BATCH_SIZE, round(PACKED_ROWS / rows_a_pack)))
        return packs, f"about {packs * rows_a_pack:.0f} rows a microbatch, {rows_a_pack:.1f} in a pack"

    def _needed(self, *, recompute: bool) -> int:
        return self._memory(recompute=recompute).corrected(self._facts.memory_factor)

    def _memory(self, *, recompute: bool) -> MemoryPlan:
        length = self._packed_length or longest_padded(self._facts.lengths)
        sequences = Sequences(self._batch_size, self._microbatch, length, is_packed=self._packed_length is not None)
        is_whole, value_bytes = isinstance(self._threads, int), 4 if self._dtype == "float32" else 2
        return plan_run_memory(
            self._recipe, self._facts, sequences, value_bytes=value_bytes, recompute=recompute, is_whole=is_whole
        )

    def decide_rates(self) -> None:
        """Learning rate, and the length of the run."""
        training = self._recipe.training
        if training.learning_rate == "auto":
            rate, reason = default_learning_rate(self._recipe)
            self._training["learning_rate"] = rate
            self._reasons["training.learning_rate"] = reason
        num_sequences = count_sequences(self._facts.lengths, self._packed_length)
        drawings = steps_in_epoch(num_sequences, self._batch_size, training.gradient_accumulation_steps)
        self._steps_per_epoch = drawings * updates_a_drawing(self._recipe)
        epochs = training.epochs
        if epochs is None and training.max_steps is None:
            epochs = 1.0
            self._training["epochs"] = epochs
            self._reasons["training.epochs"] = "one pass where neither epochs nor max_steps is given"
        self._total_steps = training.max_steps or total_steps(self._steps_per_epoch, epochs or 1.0)

    def decide_reuse(self) -> None:
        """Compute what leaves the frozen blocks once, or in every epoch again."""
        recipe, facts = self._recipe, self._facts
        asked = recipe.training.reuse_frozen_layers
        impossible = kept_states.why_impossible(recipe, facts.shape, facts.num_processes)
        if asked is True and impossible:
            what = f"training.reuse_frozen_layers = true: {impossible}"
            raise RecipeError([Problem("", what, kept_states.way_out(impossible))])
        kept = None if impossible or asked is False else self._states_to_keep()
        reason = impossible
        if kept is not None:
            reason = (self._why_not_worth_it(kept) if asked == "auto" else "") or kept.sentence
            self._kept = kept if asked is True or reason == kept.sentence else None
        self._training["reuse_frozen_layers"] = self._kept is not None
        if asked == "auto" or self._kept is not None:
            self._reasons["training.reuse_frozen_layers"] = reason

    def _states_to_keep(self) -> KeptStates:
        facts, recipe = self._facts, self._recipe
        positions = (facts.train_positions or facts.epoch_positions) + facts.valid_positions
        value_bytes = 4 if self._dtype == "float32" else 2
        size = kept_states.state_bytes(facts.shape, positions, value_bytes=value_bytes)
        peak = self._needed(recompute=self._recompute)
        at_once = self._batch_size * (self._packed_length or longest_padded(facts.lengths))
        return KeptStates(
            num_blocks=kept_states.frozen_blocks(facts.shape, recipe),
            num_positions=positions,
            num_bytes=size,
            in_memory=kept_states.is_in_memory(size, peak_bytes=peak, limit_bytes=self._limits.memory_bytes),
            group_positions=min(kept_states.GROUP_POSITIONS, at_once),
        )

    def _why_not_worth_it(self, kept: KeptStates) -> str:
        """Why "auto" leaves it; "" where it pays and finds room."""
        facts = self._facts
        epochs = self._total_steps / self._steps_per_epoch
        passes = epochs * facts.epoch_positions / max(1, facts.train_positions or facts.epoch_positions)
        if passes < kept_states.LEAST_PASSES:
            return f"rows are seen {passes:.2f} times: computing the frozen blocks once pays from 1.5 times on"
        if kept.in_memory or kept_states.has_disk(kept.num_bytes, self._recipe, facts.shape, facts.free_disk_bytes):
            return ""
        size = format_bytes(kept.num_bytes)
        return f"what leaves the frozen blocks is {size}, too much for the memory and for the disk"

    def decide_cadence(self) -> None:
        """Warm-up, evaluations and checkpoints."""
        values, reasons = cadence(self._recipe, self._total_steps, self._steps_per_epoch)
        self._training |= values
        self._reasons |= reasons

    def result(self) -> Resolved:
        """Everything together."""
        recipe = self._recipe
        memory = self._memory(recompute=self._recompute)
        needed = memory.corrected(self._facts.memory_factor)
        limits = plan_limits(recipe.hardware, self._facts.machine, needed, self._reasons)
        preference, reasons = settled_preference(recipe.task, recipe.preference, self._facts.answers)
        self._reasons |= reasons
        training = self._training | {"batch_size": self._batch_size, "gradient_checkpointing": self._recompute}
        sizes = {"memory_limit": limits.memory_bytes, "cache_limit": limits.cache_bytes}
        if limits.wired_bytes:
            sizes["wired_limit"] = limits.wired_bytes
        decided = {name: size for name, size in sizes.items() if getattr(recipe.hardware, name) != "off"}
        hardware = self._hardware | decided | {"microbatch": self._microbatch, "num_threads": self._threads}
        resolved = recipe.model_copy(
            update={
                "data": recipe.data.model_copy(update={"packing": self._packed_length is not None}),
                "preference": preference,
                "training": recipe.training.model_copy(update=training),
                "hardware": recipe.hardware.model_copy(update=hardware),
            }
        )
        return Resolved(
            recipe=resolved,
            reasons=self._reasons,
            batch_size=self._batch_size,
            microbatch=self._microbatch,
            packed_length=self._packed_length,
            total_steps=self._total_steps,
            steps_per_epoch=self._steps_per_epoch,
            memory=memory,
            limits=limits,
            memory_factor=self._facts.memory_factor,
            kept=self._kept,
        )


def refuse_too_large(resolved: Resolved, asked: HardwareRecipe, machine: Machine, *, plan: str) -> None:
    """Raise ``DoesNotFitError`` where the predicted peak exceeds the memory limit.

    ``asked`` are the limits before anything was decided, ``plan`` is the command that lists ways to make it fit.
    """
    needed, limit = resolved.peak_bytes, resolved.limits.memory_bytes
    if needed <= limit:
        return
    own = memory_limit(machine)
    raising = "; hardware.memory_limit raises the limit"
    if asked.memory_limit not in ("auto", "off") and limit < own:
        raising = f", and hardware.memory_limit, which was set, may be left out: {format_bytes(own)} here"
    raise DoesNotFitError(
        f"the training needs about {format_bytes(needed)}, and the memory limit is {format_bytes(limit)}",
        f"what would make it fit is listed by: {plan}{raising}",
    )
