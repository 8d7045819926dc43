"""The whole configuration of a run as frozen pydantic models.

The sentence beside each field is the reference manual and the editor's tooltip. Keys of features that do not exist
yet are absent here; ``recipe.load`` refuses them with a sentence. ``"auto"`` means: decided by a stated rule, written
with its reason into ``resolved.toml`` before step 1. Nothing here reads a file; nothing here imports mlx.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from mlx_finetune.recipe.evaluation import EvalRecipe
from mlx_finetune.recipe.fields import (
    Auto,
    Count,
    CountOrZero,
    Fractions,
    Names,
    Section,
    Text,
    as_tuple,
    refuse,
)
from mlx_finetune.recipe.hardware import HardwareRecipe


class LoraRecipe(Section):
    """[lora]: leave the section out for full fine-tuning."""

    rank: Annotated[int, Field(ge=1, le=1024)] = Field(
        16, description="Columns of A and rows of B: the capacity of the adapter."
    )
    alpha: Annotated[float, Field(gt=0, le=65536)] = Field(
        32.0, description="The adapter's output is multiplied by alpha / rank (alpha / sqrt(rank) with use_rslora)."
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Share of the adapter's inputs set to zero during training."
    )
    target_modules: Literal["all-linear", "attention"] | Names = Field(
        "all-linear",
        description="Linear layers that get an adapter: all in attention and MLP, attention only, or a list of names "
        "such as q_proj.",
    )
    num_layers: Literal["all"] | Count = Field(
        "all", description='Blocks that get an adapter, counted from the last: "all" or a number.'
    )
    use_dora: bool = Field(False, description="Learn a magnitude for each output row as well (DoRA).")
    use_rslora: bool = Field(False, description="Scale by alpha / sqrt(rank) instead of alpha / rank (rsLoRA).")

    @property
    def scale(self) -> float:
        """The factor on B A: ``alpha / rank``, or ``alpha / sqrt(rank)`` with rsLoRA (2312.03732)."""
        return self.alpha / (self.rank**0.5 if self.use_rslora else self.rank)


class SourceRecipe(Section):
    """[[data.sources]]: one of several training sources."""

    path: Text = Field(description="File, folder, or hub id of this source.")
    weight: Annotated[float, Field(gt=0, le=100)] = Field(
        1.0, description="How often each row is seen in an epoch; 0.5 shows a fresh half each time."
    )


#: Patterns of keys; ``describe`` has a phrase for each.
ENDPOINT_PATH, ENDPOINT_PROMPT = "^[a-z0-9][a-z0-9_-]{0,63}$", r"\{text\}"
Corrections = bool | Text | Names
Sources = Annotated[tuple[SourceRecipe, ...], BeforeValidator(as_tuple, json_schema_input_type=list[SourceRecipe])]

Tracker = Literal["wandb", "trackio", "tensorboard"]
Trackers = Annotated[tuple[Tracker, ...], BeforeValidator(as_tuple, json_schema_input_type=list[Tracker])]

DataFormat = Literal["auto", "text", "messages", "sharegpt", "alpaca", "prompt-completion"]
Truncation = Literal["drop", "keep-end", "split"]


class DataRecipe(Section):
    """[data]: which rows, how they become tokens, which tokens are targets."""

    path: Text | None = Field(
        None, description="File, folder with train/valid/test files, load_from_disk folder, or hub id."
    )
    train: Text | None = Field(None, description="Training file, when the files are named one by one.")
    valid: Text | None = Field(None, description="Validation file; goes with train.")
    test: Text | None = Field(None, description="Test file; goes with train.")
    sources: Sources = Field((), description="Several training sources, each with a weight.")
    corrections: Corrections = Field(
        False,
        description="Train on answers put right by /fix in chats too: true takes those of the run in output_dir and of "
        "the run that adapter names; otherwise run folders, runs or files (the last correction of a question counts).",
    )
    corrections_weight: Annotated[float, Field(gt=0, le=100)] = Field(
        1.0, description="How often each correction is seen in an epoch."
    )
    format: DataFormat = Field("auto", description="Layout of a row; auto decides over the whole file.")
    columns: dict[str, str] = Field(
        {}, description='Our field name to the name in the file, for instance instruction = "question".'
    )
    val_split: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="Share of rows for validation when no validation file is given; by content hash, so stable."
    )
    test_split: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1,
        description="Share of rows set aside as a test set when no valid and no test file is given; by content hash.",
    )
    max_seq_length: Annotated[int, Field(ge=8, le=1_048_576)] = Field(
        2048, description="Longest sequence in tokens; longer rows are treated as truncation says."
    )
    mask_prompt: bool = Field(True, description="Learn the answers only; false learns every token of a row.")
    packing: Auto | bool = Field(
        "auto", description="Several rows in one sequence, none seeing the others; auto decides by model and lengths."
    )
    chat_template: str = Field(
        "auto", min_length=1, description='"auto" takes the tokenizer\'s own; otherwise a path to a Jinja file.'
    )
    template_arguments: dict[str, bool | int | float | str] = Field(
        {}, description="Extra variables for the chat template, for instance enable_thinking = false."
    )
    prompt_template: str = Field(
        "auto",
        min_length=1,
        description='For models without a chat template: "alpaca", "none" (prompt and answer joined), or a text file '
        'with {instruction}, {input} and {output}. "auto" is alpaca where the rows have instructions.',
    )
    truncation: Truncation = Field(
        "drop", description="Rows longer than max_seq_length: dropped, kept from the end, or split; always counted."
    )

    @model_validator(mode="after")
    def _one_way_to_name_files(self) -> Self:
        given = [name for name in ("path", "train", "sources") if getattr(self, name)]
        problems: list[str] = []
        if not given:
            problems.append("no data is named; write one of `path`, `train` or `sources`")
        if len(given) > 1:
            what = " and ".join(f"`{name}`" for name in given)
            problems.append(f"{what} both name the training data; keep one")
        if self.path:
            problems += [
                f"`{name}` = {value!r} does not go with `path`; write `train` instead of `path`, or leave `{name}` out"
                for name, value in (("valid", self.valid), ("test", self.test))
                if value
            ]
        if self.val_split + self.test_split >= 1:
            problems.append(
                f"`val_split` = {self.val_split} and `test_split` = {self.test_split} leave nothing to train on; "
                "their sum must be below 1"
            )
        return refuse(self, problems)


class TrainingRecipe(Section):
    """[training]: steps, optimizer, schedule, cadence. Every ``*_steps`` counts optimizer steps."""

    learning_rate: Auto | Annotated[float, Field(gt=0, le=10)] = Field(
        "auto", description="Peak learning rate; auto is 2e-4 for adapters and 1e-5 for full fine-tuning."
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
    optimizer: Literal["adamw"] = Field("adamw", description="AdamW with bias correction; its state is fp32.")
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="Decay of the gradient average.")
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = Field(0.999, description="Decay of the squared gradients.")
    adam_epsilon: Annotated[float, Field(gt=0, le=1)] = Field(1e-8, description="Added to the square root.")
    weight_decay: Annotated[float, Field(ge=0, le=10)] = Field(
        0.01, description="Decoupled decay of matrices; norms, biases and embeddings are never decayed."
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
    save_at: Fractions = Field((), description="Shares of the run at which a checkpoint is kept for good.")
    keep_checkpoints: Count = Field(
        3, description="Newest checkpoints that are kept; the best, the last and those of save_at always are."
    )
    keep_best: bool = Field(True, description="End with the weights of the best validation loss, not the last ones.")
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


class ChatRecipe(Section):
    """[chat]: how answers are drawn in chat, generate and the prompts of [eval]."""

    temperature: Annotated[float, Field(ge=0, le=10)] = Field(0.7, description="0 always takes the likeliest token.")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(0.9, description="Smallest set of tokens with this mass.")
    top_k: CountOrZero = Field(50, description="Only the k likeliest tokens; 0 is off.")
    min_p: Annotated[float, Field(ge=0, le=1)] = Field(0.0, description="Drop tokens below this share of the top one.")
    repetition_penalty: Annotated[float, Field(ge=1, le=10)] = Field(
        1.0, description="Makes tokens of the last 64 less likely; 1 is off."
    )
    max_tokens: Annotated[int, Field(ge=1, le=1_048_576)] = Field(512, description="Longest answer in tokens.")
    system: str = Field("", description="System message put in front of every conversation.")


with warnings.catch_warnings():
    # ``schema`` is also the name of a method of pydantic that was replaced by another; nothing here calls it.
    warnings.filterwarnings("ignore", message='Field name "schema"')

    class EndpointRecipe(Section):
        """[[serve.endpoints]]: one address of mlxft serve that takes a text and answers with JSON of one schema."""

        path: Annotated[str, Field(pattern=ENDPOINT_PATH)] = Field(
            description="What follows the server's address: timeline is asked at http://127.0.0.1:8080/timeline.",
            examples=["timeline"],
        )
        schema: Text = Field(  # pyright: ignore[reportIncompatibleMethodOverride]
            description="JSON Schema file of the answers, kept with the run. Its path counts from where mlxft is "
            "started, else from the recipe's folder.",
            examples=["timeline.schema.json"],
        )
        prompt: Annotated[str, Field(pattern=ENDPOINT_PROMPT)] = Field(
            "{text}", description="The prompt; {text} stands for the text that was sent."
        )


Endpoints = Annotated[
    tuple[EndpointRecipe, ...], BeforeValidator(as_tuple, json_schema_input_type=list[EndpointRecipe])
]


class ServeRecipe(Section):
    """[serve]: what mlxft serve offers besides OpenAI's interface."""

    endpoints: Endpoints = Field((), description="Addresses that take a text and answer with JSON of one schema.")

    @model_validator(mode="after")
    def _paths_differ(self) -> Self:
        paths = [endpoint.path for endpoint in self.endpoints]
        twice = sorted({path for path in paths if paths.count(path) > 1})
        taken = sorted(set(paths) & {"v1", "health"})
        problems = [f"`endpoints` has the path {path!r} twice; give each a path of its own" for path in twice]
        problems += [
            f"`endpoints` has the path {path!r}, which the server needs itself; choose another" for path in taken
        ]
        return refuse(self, problems)


class Recipe(Section):
    """One run: a model, the data, what is trained and how."""

    model: str = Field(min_length=1, description="Catalogue name, hub id, local folder, or .gguf file.")
    revision: str | None = Field(
        None, min_length=1, description="Commit, tag or branch of a hub model; the commit is pinned in the run."
    )
    adapter: str = Field("", description="Run or adapter folder whose weights training starts from.")
    task: Literal["sft", "pretrain"] = Field(
        "sft", description="sft learns answers to prompts; pretrain learns plain text."
    )
    quantize: Literal[4, 8] | None = Field(
        None,
        description="Bits of the frozen base on a GPU; left out, the weights stay as stored. On a CPU they are written "
        "out as float32, quantised or not.",
    )
    output_dir: str = Field(min_length=1, description="The run folder that will be made.")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="Fixes initial weights, order, dropout, draws.")
    lora: LoraRecipe | None = Field(None, description="Adapter settings; without this section every weight is trained.")
    data: DataRecipe
    training: TrainingRecipe = Field(default_factory=lambda: TrainingRecipe.model_validate({}))
    eval: EvalRecipe = Field(default_factory=lambda: EvalRecipe.model_validate({}))
    chat: ChatRecipe = Field(default_factory=lambda: ChatRecipe.model_validate({}))
    serve: ServeRecipe = Field(default_factory=lambda: ServeRecipe.model_validate({}))
    hardware: HardwareRecipe = Field(default_factory=lambda: HardwareRecipe.model_validate({}))

    @property
    def run_folder(self) -> Path:
        """``output_dir`` as a path, a leading ``~`` replaced by the home folder."""
        path = Path(self.output_dir)
        return path.expanduser() if path.parts[:1] == ("~",) else path

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        problems: list[str] = []
        if self.lora is None and self.quantize is not None:
            problems.append(
                f"`quantize` = {self.quantize} without a [lora] section: quantised weights cannot be trained "
                "themselves; add [lora] or remove `quantize`"
            )
        if self.lora is None and self.adapter:
            problems.append(
                f"`adapter` = {self.adapter!r} without a [lora] section: full fine-tuning has no adapter; "
                "add [lora] or remove `adapter`"
            )
        return refuse(self, problems)


def section_names() -> Sequence[str]:
    """Names of the recipe's sections, in the order in which a recipe is written."""
    return ("lora", "data", "training", "eval", "chat", "serve", "hardware")
