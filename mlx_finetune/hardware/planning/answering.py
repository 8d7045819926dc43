"""What answers that a run says to learn from (grpo) hold: in memory while all grow together, in a checkpoint later."""

from collections.abc import Mapping
from typing import cast

from mlx_finetune.hardware.planning.memory import adapter_file_bytes, trainable_parameters, weight_bytes
from mlx_finetune.hardware.planning.shapes import ModelShape, read_shape
from mlx_finetune.recipe.schema import Recipe

#: Answers that grow together, on a CPU (``model.cpu.few_rows.MOST_ROWS``) and on a GPU.
CPU_AT_ONCE, GPU_AT_ONCE = 16, 32
_CACHE_STEP = 32  # positions by which their caches grow (``model.answers.caches.ROOM``)
_READ_AT_ONCE = 512  # positions of a prompt (``model.answers.generate.PREFILL_TOKENS``)
_LOGITS = 3  # arrays of fp32 over the vocabulary: as computed, scaled, drawn from
NUM_VALUES = 6  # of an answer beside the log-probabilities of its tokens (``train.objectives.grpo.values``)
_LINE = 12  # bytes of a line of a checkpoint's answers beside its number
_FLOAT = 24  # digits of a float that is written to the last bit, its exponent included
_AROUND = 100  # bytes of an answer's brackets, and of the two other numbers it has


def answers_a_row(recipe: Recipe) -> int:
    """Sequences that go through the model for each row of a step: the group of a problem, or the row itself."""
    return recipe.grpo.group_size if recipe.task == "grpo" else 1


def updates_a_drawing(recipe: Recipe) -> int:
    """Optimizer steps that learn from the same answers; 1 of every other task."""
    return recipe.grpo.updates if recipe.task == "grpo" else 1


def num_growing(num_answers: int, *, on_gpu: bool) -> int:
    """How many of ``num_answers`` grow together."""
    return min(num_answers, GPU_AT_ONCE if on_gpu else CPU_AT_ONCE)


def answer_bytes(shape: ModelShape, prompt: int, longest: int, num_rows: int, *, value_bytes: int, on_gpu: bool) -> int:
    """Beyond the weights, while ``num_rows`` answers grow together, of ``longest`` tokens with prompts of ``prompt``.

    Keys and values, those of one layer twice while they are copied; logits; and one block that reads a prompt beside
    them: four states of the model's width and three of the MLP's, and attention's scores where nothing fuses them.
    """
    positions = -(-longest // _CACHE_STEP) * _CACHE_STEP
    cache = 2 * (shape.num_layers + 1) * shape.key_width * value_bytes * positions
    read = min(prompt, _READ_AT_ONCE)
    states = read * (4 * shape.hidden_size + 3 * shape.intermediate_size) * value_bytes
    scores = 0 if on_gpu else 2 * shape.num_heads * read * prompt * value_bytes
    return num_rows * (cache + 4 * _LOGITS * shape.vocab_size) + states + scores


def kept_answers_bytes(recipe: Recipe, longest: int, vocab_size: int) -> int:
    """The answers of a drawing as a checkpoint between two updates on them holds them, at most.

    ``longest`` is the longest prompt with the longest answer, in tokens; ``recipe`` is resolved. 0 where every answer
    is learned from once.
    """
    if recipe.task != "grpo" or recipe.grpo.updates == 1:
        return 0
    grpo, training = recipe.grpo, recipe.training
    assert training.batch_size != "auto", "a resolved recipe says how many problems a step has"
    tokens = longest * (len(str(vocab_size)) + _LINE)
    values = (NUM_VALUES + grpo.max_tokens) * (_FLOAT + _LINE)
    answers = training.batch_size * training.gradient_accumulation_steps * grpo.group_size
    return answers * (tokens + values + _AROUND)


def scorer_bytes(config: Mapping[str, object], scorer: Recipe, asked_dtype: str, *, on_gpu: bool) -> int:
    """The model of a run that scores answers, beside the one that is trained; ``config`` is that of its weights.

    ``scorer`` is the run's recipe; ``asked_dtype`` is hardware.compute_dtype of the training. Raises ``ValueError``.
    """
    shape, quantization = read_shape(config), config.get("quantization")
    stored = cast("Mapping[str, object]", quantization).get("bits") if isinstance(quantization, dict) else None
    bits = scorer.quantize or (stored if isinstance(stored, int) else None)
    value_bytes = 2 if on_gpu and asked_dtype != "float32" else 4
    adapter = 0 if scorer.lora is None else adapter_file_bytes(trainable_parameters(shape, scorer.lora))
    return weight_bytes(shape, value_bytes=value_bytes, stored_bits=bits if on_gpu else None) + adapter
