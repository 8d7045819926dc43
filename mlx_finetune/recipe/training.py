"""[training] of a recipe: steps, optimizer, schedule, cadence."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self, cast

from pydantic import BeforeValidator, Field, model_validator

from mlx_finetune.recipe.fields import Auto, Count, CountOrZero, Section, Shares, as_tuple, refuse

Tracker = Literal["wandb", "trackio", "tensorboard"]
Trackers = Annotated[tuple[Tracker, ...], BeforeValidator(as_tuple, json_schema_input_type=list[Tracker])]


OptimizerName = Literal["adamw", "muon", "adafactor", "lion"]
#: What other keys are where a recipe names an optimizer and leaves them out.
OPTIMIZER_DEFAULTS: Mapping[str, Mapping[str, object]] = {
    "lion": {"adam_beta2": 0.99, "weight_decay": 0.03},
    "adafactor": {"weight_decay": 0.0},
}


class TrainingRecipe(Section):
    """[training]: steps, optimizer, schedule, cadence. Every ``*_steps`` counts optimizer steps."""

    learning_rate: Auto | Annotated[float, Field(gt=0, le=10)] = Field(
        "auto",
        description="Peak learning rate; auto is 2e-4 for adapters, 1e-5 for full fine-tuning, 1e-3 for [scratch], and "
        "5e-6 or 5e-7 for tasks on preferences (orpo 8e-6); with lion a fifth of that.",
    )
    epochs: Annotated[float, Field(gt=0, le=10_000)] | None = Field(
        None, description="Passes over the training rows; give this or max_steps (1 when neither is given)."
    )
    max_steps: Count | None = Field(None, description="Optimizer steps; give this or epochs.")
    max_minutes: Annotated[float, Field(gt=0, le=525_600)] | None = Field(
        None, description="End cleanly after this many minutes of training, at the best weights so far."
    )
    batch_size: Auto | Annotated[int, Field(ge=1, le=4096)] = Field(
        "auto", description="Rows (or packs) that go through the model at once."
    )
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=4096)] = Field(
        1, description="Microbatches whose gradients are added up before one optimizer step."
    )
    lr_scheduler: Literal["cosine", "linear", "constant", "wsd"] = Field(
        "cosine", description="Shape of the learning rate after warm-up."
    )
    warmup_steps: CountOrZero | None = Field(
        None, description="Steps to the peak learning rate; default is 3 % of the steps, at most 100."
    )
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="Warm-up as a share of all steps; give this or warmup_steps."
    )
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        0.1, description="Learning rate at the end of a cosine, as a share of the peak."
    )
    optimizer: OptimizerName = Field(
        "adamw",
        description="adamw, with bias correction; muon for the hidden matrices of a full training, adamw for the rest; "
        "lion and adafactor for less memory. State is fp32.",
    )
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="Decay of the gradient average.")
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.999,
        description="Decay of the squared gradients, with lion of the momentum; left out it is 0.95 with [scratch] and "
        "0.99 with lion.",
    )
    adam_epsilon: Annotated[float, Field(gt=0, le=1)] = Field(1e-8, description="Added to the square root.")
    weight_decay: Annotated[float, Field(ge=0, le=10)] = Field(
        0.01,
        description="Decoupled decay of matrices; norms, biases and embeddings are never decayed. Left out it is ten "
        "times as much with [scratch], three times with lion, 0 with adafactor.",
    )
    max_grad_norm: Annotated[float, Field(ge=0, le=10**6)] = Field(
        1.0, description="Gradients are scaled down to this global L2 norm; 0 switches clipping off."
    )
    gradient_checkpointing: Auto | bool = Field(
        "auto", description="Compute activations twice to save memory; auto decides by the memory plan."
    )
    reuse_frozen_layers: Auto | bool = Field(
        "auto",
        description="Compute what leaves the blocks below the lowest adapter once and keep it for every epoch; auto "
        "does where that pays and memory or disk have room. Several processes (--hostfile, mlx.launch) cannot.",
    )
    neftune_alpha: Annotated[float, Field(ge=0, le=1000)] = Field(
        0.0, description="Uniform noise on the embeddings during training (2310.05914); 0 is off, 5 is usual."
    )
    logging_steps: Count = Field(1, description="Steps between two training metrics.")
    eval_steps: Count | None = Field(None, description="Steps between two evaluations; default is ten in a run.")
    evals_per_epoch: Count | None = Field(None, description="Evaluations in each epoch; give this or eval_steps.")
    save_steps: Count | None = Field(None, description="Steps between two checkpoints; default is eval_steps.")
    save_minutes: Annotated[float, Field(gt=0, le=1440)] = Field(
        5.0, description="Longest time without a checkpoint, in minutes."
    )
    save_at: Shares = Field(
        (), description="Shares of the run at which a checkpoint is kept for good; 0 is one before the first step."
    )
    keep_checkpoints: Count = Field(
        3, description="Newest checkpoints that are kept; the best, the last and those of save_at always are."
    )
    keep_best: bool = Field(
        True, description="End with the weights of the best validation loss after a step, not the last ones."
    )
    early_stopping_patience: CountOrZero = Field(
        0, description="Evaluations without improvement after which the run ends; 0 never ends it."
    )
    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop", description="A loss or gradient that is not finite: stop the run, or leave that step out."
    )
    report_to: Trackers = Field(
        (),
        description="Trackers that are told losses, rates, speed, memory, resources and answers while it trains; each "
        "needs a package of its own.",
    )

    @model_validator(mode="before")
    @classmethod
    def _of_optimizer(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        name = cast("dict[str, object]", values).get("optimizer")
        return {**OPTIMIZER_DEFAULTS.get(name, {}), **values} if isinstance(name, str) else values

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        pairs = (("epochs", "max_steps"), ("warmup_steps", "warmup_ratio"), ("eval_steps", "evals_per_epoch"))
        problems = [
            f"`{first}` = {getattr(self, first)} and `{second}` = {getattr(self, second)} say the same thing twice; "
            "keep one"
            for first, second in pairs
            if getattr(self, first) is not None and getattr(self, second) is not None
        ]
        twice = sorted({name for name in self.report_to if self.report_to.count(name) > 1})
        problems += [f"`report_to` names {name} twice; once is enough" for name in twice]
        return refuse(self, problems)
