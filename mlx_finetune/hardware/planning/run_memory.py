"""The memory of a whole run: that of its largest microbatch, and of the answers it draws where it learns from these."""

from dataclasses import dataclass, replace

from mlx_finetune.dataset.stream import count_parts
from mlx_finetune.hardware.planning.answering import answer_bytes, answers_a_row
from mlx_finetune.hardware.planning.facts import Facts
from mlx_finetune.hardware.planning.memory import Layout, MemoryPlan, plan_memory
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
    share = 1.0 if is_packed or facts.most_targets is None else min(1.0, facts.most_targets / length)
    num_sequences = sequences.batch_size * answers_a_row(recipe)
    num_parts = count_parts(num_sequences, recipe.training.gradient_accumulation_steps, sequences.microbatch)
    memory = plan_memory(
        facts.shape,
        recipe.lora,
        Layout(sequences.microbatch, length, num_parts, share, is_packed, is_whole=is_whole),
        value_bytes=value_bytes,
        stored_bits=(recipe.quantize or facts.stored_bits) if facts.machine.on_gpu else None,
        recompute=recompute,
        on_gpu=facts.machine.on_gpu,
        moments=moment_bytes(facts.shape, recipe.lora, recipe.training.optimizer),
    )
    if recipe.task != "grpo":
        return memory
    said = answer_bytes(facts.shape, length, value_bytes=value_bytes, on_gpu=facts.machine.on_gpu)
    weights = memory.weights + facts.scorer_bytes
    return replace(memory, weights=weights, activations=max(memory.activations, said - memory.logits))
