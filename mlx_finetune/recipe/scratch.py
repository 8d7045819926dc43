"""[scratch] of a recipe: a language model that begins with random weights, and its tokenizer.

The model is llama-shaped: pre-norm blocks, RMSNorm, SwiGLU, rotary positions, grouped queries, no biases. A recipe with
this section names no ``model``; what it leaves out of [training] and [data] has the defaults of pretraining.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from mlx_finetune.recipe.fields import Count, CountOrZero, Section, Text, refuse

#: What `model` is in a recipe with [scratch].
SCRATCH = "scratch"
#: ``model_type`` of a model with sinks or experts, which mlx-lm has no architecture for.
OWN_TYPE = "mlxft_scratch"
HEAD_WIDTH = 64
_ROUNDED_TO = 64
#: The tokenizer that is made from the training rows.
TRAINED_HERE = "bpe"
#: The 256 bytes and the control tokens that every tokenizer made here has.
SMALLEST_VOCABULARY = 256 + 3

#: What [training] and [data] are where a recipe with [scratch] says nothing (ALGORITHMS.md sections 4 and 9).
TRAINING_DEFAULTS: dict[str, object] = {
    "lr_scheduler": "wsd",
    "adam_beta1": 0.9,
    "adam_beta2": 0.95,
    "weight_decay": 0.1,
}
#: The same with another optimizer than AdamW.
OPTIMIZERS: Mapping[str, Mapping[str, object]] = {
    "lion": {"adam_beta2": 0.99, "weight_decay": 0.3},
    "adafactor": {"weight_decay": 0.0},
}
DATA_DEFAULTS: Mapping[str, object] = {"documents": "file", "truncation": "split", "test_split": 0.0}


class ScratchRecipe(Section):
    """[scratch]: a new model with random weights instead of `model`; every weight is trained."""

    hidden_size: Annotated[int, Field(ge=8, le=16_384)] = Field(256, description="Width of the hidden states.")
    num_layers: Annotated[int, Field(ge=1, le=256)] = Field(6, description="Transformer blocks.")
    num_heads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None, description="Attention heads; default is one for each 64 of hidden_size."
    )
    num_kv_heads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None, description="Heads of keys and values, shared by groups of attention heads; default is num_heads."
    )
    intermediate_size: Annotated[int, Field(ge=8, le=131_072)] | None = Field(
        None, description="Width inside the MLP; default is 8/3 of hidden_size, rounded up to a multiple of 64."
    )
    context_length: Annotated[int, Field(ge=8, le=1_048_576)] = Field(
        256, description="Tokens that the model reads at once, and the length of what it is trained on."
    )
    tie_embeddings: bool = Field(
        True, description="The embedding is the output layer too; false learns one of its own."
    )
    rope_theta: Annotated[float, Field(ge=10, le=1e9)] = Field(
        10_000.0, description="Base of the rotary positions; long contexts want a larger one."
    )
    attention_sinks: bool = Field(
        False, description="Learn one more logit for each head, which takes attention that no token should get."
    )
    num_experts: CountOrZero = Field(0, description="MLPs in each block of which a token goes through a few; 0 is one.")
    experts_per_token: Count = Field(2, description="Experts that each token goes through.")
    balance_loss: Annotated[float, Field(ge=0, le=10)] = Field(
        0.01, description="Weight of the loss that spreads tokens evenly over experts (2101.03961)."
    )
    tokenizer: Text = Field(
        TRAINED_HERE,
        description='"bpe" makes a byte-level BPE from the training rows; otherwise the tokenizer of a model: '
        "catalogue name, hub id or folder.",
        examples=["smollm2-135m"],
    )
    vocab_size: Annotated[int, Field(ge=SMALLEST_VOCABULARY, le=1_000_000)] = Field(
        4096, description="Tokens of a tokenizer that is made here; small data makes fewer."
    )
    z_loss: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="Weight of logsumexp^2, which keeps logits from growing; 0 is off, 1e-4 is usual."
    )

    @property
    def heads(self) -> int:
        """Attention heads."""
        return self.num_heads or max(1, self.hidden_size // HEAD_WIDTH)

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_kv_heads or self.heads

    @property
    def inner_size(self) -> int:
        """Width inside the MLP: ``round_up(8 / 3 hidden_size, 64)`` where none is given."""
        return self.intermediate_size or -(-8 * self.hidden_size // (3 * _ROUNDED_TO)) * _ROUNDED_TO

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        problems: list[str] = []
        if self.hidden_size % (2 * self.heads):
            problems.append(
                f"`hidden_size` = {self.hidden_size} and `num_heads` = {self.heads} make no heads of an even width; "
                f"write hidden_size = {2 * self.heads * max(1, round(self.hidden_size / (2 * self.heads)))}"
            )
        if self.heads % self.kv_heads:
            problems.append(
                f"`num_heads` = {self.heads} is no multiple of `num_kv_heads` = {self.kv_heads}; "
                "each head of keys and values serves as many attention heads"
            )
        if self.num_experts == 1:
            problems.append("`num_experts` = 1 leaves nothing to choose; write 0 for one MLP, or 8")
        if 1 < self.num_experts < self.experts_per_token:
            problems.append(
                f"`experts_per_token` = {self.experts_per_token} is more than `num_experts` = {self.num_experts}; "
                "write a smaller number"
            )
        return refuse(self, problems)


def with_scratch_defaults(values: object) -> object:
    """The values of a recipe with what pretraining has for keys that a recipe with [scratch] leaves out."""
    if not isinstance(values, dict) or not isinstance(values.get("scratch"), dict | ScratchRecipe):
        return values  # pyright: ignore[reportUnknownVariableType]
    found: dict[str, Any] = {"model": SCRATCH, "task": "pretrain", **values}
    scratch = found["scratch"]
    length = scratch.context_length if isinstance(scratch, ScratchRecipe) else scratch.get("context_length", 256)
    data_defaults = dict(DATA_DEFAULTS)
    if isinstance(length, int) and not isinstance(length, bool):
        data_defaults["max_seq_length"] = length + 1  # so many positions have a next token to predict
    training = found.get("training")
    optimizer = training.get("optimizer") if isinstance(training, dict) else None
    training_defaults = {**TRAINING_DEFAULTS, **OPTIMIZERS.get(optimizer if isinstance(optimizer, str) else "", {})}
    for name, defaults in (("training", training_defaults), ("data", data_defaults)):
        section = found.get(name, {} if name == "training" else None)
        if isinstance(section, dict):
            found[name] = {**defaults, **section}
    return found  # pyright: ignore[reportUnknownVariableType]


def scratch_problems(scratch: ScratchRecipe, values: Mapping[str, object], max_seq_length: int) -> list[str]:
    """What does not go with [scratch] among other keys: one line ``problem; way out`` each.

    ``values`` are those of the top level: model, revision, adapter, quantize, lora, task.
    """
    problems: list[str] = []
    if values["model"] != SCRATCH:
        problems.append(
            f"`model` = {values['model']!r} and [scratch] both say what is trained; remove `model` to begin with "
            "random weights, or [scratch] to begin with that model"
        )
    words = {
        "revision": "a model from random weights has no revision",
        "adapter": "a model from random weights has no adapter to start from",
        "quantize": "quantised weights cannot be trained",
        "lora": "random weights have to be trained themselves, not an adapter on them",
    }
    for name, reason in words.items():
        if values[name] not in (None, ""):
            shown = "[lora]" if name == "lora" else f"`{name}` = {values[name]!r}"
            problems.append(f"{shown} does not go with [scratch]: {reason}; remove one of the two")
    if values["task"] != "pretrain":
        problems.append(
            f"`task` = {values['task']!r} does not go with [scratch], whose first task is pretrain; train it on text "
            "first, then name the run's model folder as `model` of another recipe"
        )
    if max_seq_length > scratch.context_length + 1:
        problems.append(
            f"`data.max_seq_length` = {max_seq_length} is more than the {scratch.context_length} tokens of "
            "scratch.context_length and the one that follows; leave it out"
        )
    return problems
