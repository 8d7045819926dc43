"""The memory of a whole run: that of its largest microbatch, and of the answers it draws where it learns from these."""

from dataclasses import dataclass, replace

from mlx_finetune.dataset.stream import count_parts
from mlx_finetune.hardware.planning.answering import answer_bytes, answers_a_row, num_growing
from mlx_finetune.hardware.planning.facts import Facts
from mlx_finetune.hardware.planning.memory import Layout, MemoryPlan, plan_memory, trainable_bytes
from mlx_finetune.hardware.planning.microbatch import what_learns
from mlx_finetune.hardware.planning.moments import moment_bytes
from mlx_finetune.recipe.schema import Recipe


@dataclass(frozen=True, slots=True)
class Sequences:
    """``batch_size`` of ``length`` positions, of which ``microbatch`` go through the model at once; packs or rows."""

    batch_size: int
    microbatch: int
    length: int
    is_packed: bool


def plan_run_memory(
    recipe: Recipe, facts: Facts, sequences: Sequences, *, value_bytes: int, recompute: bool, is_whole: bool
) -> MemoryPlan:
    """The terms for ``recipe``; ``is_whole``: a CPU does not compute a microbatch in two halves."""
    length, is_packed = sequences.length, sequences.is_packed
    most_targets = recipe.grpo.max_tokens if recipe.task == "grpo" else facts.most_targets
    share = 1.0 if is_packed or most_targets is None else min(1.0, most_targets / length)
    num_sequences = sequences.batch_size * answers_a_row(recipe)
    num_parts = count_parts(num_sequences, recipe.training.gradient_accumulation_steps, sequences.microbatch)
    moments = moment_bytes(facts.shape, recipe.lora, recipe.training.optimizer)
    memory = plan_memory(
        facts.shape,
        recipe.lora,
        Layout(sequences.microbatch, length, num_parts, share, is_packed, is_whole=is_whole),
        value_bytes=value_bytes,
        stored_bits=(recipe.quantize or facts.stored_bits) if facts.machine.on_gpu else None,
        recompute=recompute,
        on_gpu=facts.machine.on_gpu,
        moments=moments,
    )
    if recipe.task != "grpo":
        return memory
    drawing = drawing_bytes(recipe, facts, num_sequences, value_bytes=value_bytes)
    num_learned = what_learns(facts.shape, recipe.lora).total
    held = memory.trainable - trainable_bytes(num_learned, accumulation=1, moments=moments)
    return replace(memory, weights=memory.weights + facts.scorer_bytes, drawing=drawing - held)


def drawing_bytes(recipe: Recipe, facts: Facts, num_sequences: int, *, value_bytes: int) -> int:
    """While answers to the problems of a step, ``num_sequences`` a microbatch, or of an evaluation grow.

    On a CPU the model of the other thread still has the weights of the step before.
    """
    on_gpu, num_processes = facts.machine.on_gpu, facts.num_processes
    drawn = num_sequences * recipe.training.gradient_accumulation_steps
    num_rows = num_growing(-(-max(drawn, facts.num_valid) // num_processes), on_gpu=on_gpu)
    longest = int(facts.lengths.max())
    prompt = max(1, longest - recipe.grpo.max_tokens)
    said = answer_bytes(facts.shape, prompt, longest, num_rows, value_bytes=value_bytes, on_gpu=on_gpu)
    return said + (0 if on_gpu else 4 * what_learns(facts.shape, recipe.lora).total)
