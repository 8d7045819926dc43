"""What a plan suggests: settings that rows of this number and length are usually trained with, each with its reason.

Rules of thumb for adapters and instruction data (ALGORITHMS.md 14); nothing is changed by them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlx_finetune.hardware.planning.auto import Resolved
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.units import counted, format_count

FEW_ROWS = 1000
FEW_EPOCHS, MANY_EPOCHS = 3, 2  # for few rows, for many
LEAST_RANK, USUAL_RANK, MOST_RANK = 8, 16, 64
STABLE_RANK = 64  # from which on alpha / sqrt(rank) is the better scale (2312.03732)
EXAMPLES, FEW_EXAMPLES = 16, 8  # in a step
ROUND_LENGTH = 64
SHORT_ANSWER = 5  # tokens
LONG = 256  # tokens, below which the longest row decides about nothing
ADAPTER_RATE, LOW_ADAPTER_RATE = 2e-4, 5e-5
FULL_RATE, HIGH_FULL_RATE = 1e-5, 1e-4
SMALL_MODEL = 50 * 10**6  # parameters; as are made by [scratch], and hardly moved by the rates of large models
SMALL_RATE, LOW_SMALL_RATE = 5e-4, 1e-4


@dataclass(frozen=True, slots=True)
class Suggestion:
    """``key`` = ``value`` (as TOML), and why."""

    key: str
    value: str
    reason: str

    @property
    def sentence(self) -> str:
        """For a person."""
        return f"{self.key} = {self.value}  # {self.reason}"


def suggest(
    recipe: Recipe,
    resolved: Resolved,
    lengths: NDArray[np.integer],
    *,
    num_rows: int,
    num_valid: int,
    target_share: float | None,
    num_parameters: int,
) -> tuple[Suggestion, ...]:
    """What ``recipe`` might do otherwise; ``lengths`` are those of the training rows, in tokens. Only for ``sft``.

    ``num_parameters`` are the model's.
    """
    if recipe.task != "sft":
        return ()
    found = [
        *_epochs(resolved, num_rows),
        *_rank(recipe, num_rows),
        *_rate(recipe, resolved, num_parameters),
        *_examples(resolved, num_rows),
        *_evaluations(resolved, num_rows, num_valid),
        *_length(recipe, lengths),
        *_answers(recipe, lengths, target_share),
    ]
    return tuple(found)


def _few(num_rows: int) -> str:
    return f"{num_rows:,} rows are fewer than {FEW_ROWS:,}"


def _epochs(resolved: Resolved, num_rows: int) -> Iterator[Suggestion]:
    epochs = resolved.total_steps / max(1, resolved.steps_per_epoch)
    if num_rows < FEW_ROWS and epochs < FEW_EPOCHS - 0.5:
        yield Suggestion("training.epochs", str(FEW_EPOCHS), f"{_few(num_rows)}: they are usually seen three times")
    if num_rows >= FEW_ROWS and epochs > MANY_EPOCHS + 1:
        reason = f"of {num_rows:,} rows most is learned in one or two passes; more learn them by heart"
        yield Suggestion("training.epochs", str(MANY_EPOCHS), reason)


def _rank(recipe: Recipe, num_rows: int) -> Iterator[Suggestion]:
    if recipe.lora is None:
        return
    rank = recipe.lora.rank
    if num_rows < FEW_ROWS and rank > USUAL_RANK:
        reason = f"{_few(num_rows)}: a rank of {LEAST_RANK} to {USUAL_RANK} holds what they teach"
        yield Suggestion("lora.rank", str(USUAL_RANK), reason)
    if num_rows >= FEW_ROWS and rank < USUAL_RANK:
        reason = f"{num_rows:,} rows may teach more than rank {rank} holds; {USUAL_RANK} to {MOST_RANK} is usual"
        yield Suggestion("lora.rank", str(USUAL_RANK), reason)
    if rank >= STABLE_RANK and not recipe.lora.use_rslora:
        reason = f"alpha / rank makes an adapter of rank {rank} weak; alpha / sqrt(rank) does not"
        yield Suggestion("lora.use_rslora", "true", reason)


def _rate(recipe: Recipe, resolved: Resolved, num_parameters: int) -> Iterator[Suggestion]:
    rate = float(resolved.recipe.training.learning_rate)
    if recipe.lora is not None and rate < LOW_ADAPTER_RATE:
        reason = "adapters take about ten times the rate of full fine-tuning; try some: mlxft plan RECIPE --lr-range"
        yield Suggestion("training.learning_rate", f"{ADAPTER_RATE:g}", reason)
    is_small = num_parameters < SMALL_MODEL
    if recipe.lora is None and is_small and rate < LOW_SMALL_RATE:
        reason = f"a model of {format_count(num_parameters)} parameters hardly learns at a rate for large ones"
        yield Suggestion("training.learning_rate", f"{SMALL_RATE:g}", reason)
    if recipe.lora is None and not is_small and rate > HIGH_FULL_RATE:
        reason = "where every weight is trained, rates above 1e-4 forget what the model knew"
        yield Suggestion("training.learning_rate", f"{FULL_RATE:g}", reason)


def _examples(resolved: Resolved, num_rows: int) -> Iterator[Suggestion]:
    """The rows of a step; packs hold several."""
    training = resolved.recipe.training
    examples = num_rows / max(1, resolved.steps_per_epoch)
    if examples < FEW_EXAMPLES and num_rows >= 2 * EXAMPLES:
        times = round(EXAMPLES / max(examples / training.gradient_accumulation_steps, 1))
        if times > training.gradient_accumulation_steps:
            reason = f"a step sees {counted(max(1, round(examples)), 'row')}; about {EXAMPLES} make it less noisy"
            yield Suggestion("training.gradient_accumulation_steps", str(times), f"{reason}, for the same memory")


def _evaluations(resolved: Resolved, num_rows: int, num_valid: int) -> Iterator[Suggestion]:
    training = resolved.recipe.training
    every = training.eval_steps or resolved.total_steps
    if num_valid and num_rows < FEW_ROWS and 2 * every > resolved.steps_per_epoch + 1 and resolved.steps_per_epoch > 1:
        reason = f"{_few(num_rows)}: the best weights of so few come early, so look twice an epoch"
        yield Suggestion("training.evals_per_epoch", "2", reason)


def _length(recipe: Recipe, lengths: NDArray[np.integer]) -> Iterator[Suggestion]:
    """A few long rows decide about memory and padding."""
    if not len(lengths):
        return
    longest, most = int(lengths.max()), int(np.quantile(lengths, 0.95, method="inverted_cdf"))
    limit = -(-most // ROUND_LENGTH) * ROUND_LENGTH
    if longest > LONG and longest >= 2 * most and limit < recipe.data.max_seq_length:
        lost = int(np.count_nonzero(lengths > limit))
        fate = {"drop": "left out", "keep-end": "cut", "split": "split"}[recipe.data.truncation]
        reason = (
            f"95 % of the rows have at most {most} tokens and the longest {longest}, which decides the memory; "
            f"{counted(lost, 'row')} would be {fate}"
        )
        yield Suggestion("data.max_seq_length", str(limit), reason)


def _answers(recipe: Recipe, lengths: NDArray[np.integer], target_share: float | None) -> Iterator[Suggestion]:
    """Of a word or two the loss says little."""
    if target_share is None or not len(lengths) or recipe.eval.tasks:
        return
    size = float(lengths.mean()) * target_share
    if size < SHORT_ANSWER:
        reason = f"an answer has {size:.1f} tokens on average: how many are right says more than their loss"
        yield Suggestion("eval.tasks", '["labels", "loss"]', reason)
