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

from mlx_finetune.recipe.data import DataRecipe, with_text_format
from mlx_finetune.recipe.evaluation import EvalRecipe
from mlx_finetune.recipe.fields import (
    Count,
    CountOrZero,
    Names,
    Section,
    Text,
    as_tuple,
    refuse,
)
from mlx_finetune.recipe.grpo import GrpoRecipe, grpo_problems, with_grpo_defaults
from mlx_finetune.recipe.hardware import HardwareRecipe
from mlx_finetune.recipe.heads import VerifierRecipe, scored_problems
from mlx_finetune.recipe.preference import PREFERENCE_TASKS, PreferenceRecipe, unused_problems
from mlx_finetune.recipe.scratch import ScratchRecipe, scratch_problems, with_scratch_defaults
from mlx_finetune.recipe.seq2seq import seq2seq_problems
from mlx_finetune.recipe.training import TrainingRecipe


class LoraRecipe(Section):
    """[lora]: leave the section out for full fine-tuning."""

    rank: Annotated[int, Field(ge=1, le=1024)] = Field(
        16,
        description="Columns of A and rows of B: the capacity of the adapter. grpo without rank and alpha: 8 and 16.",
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


#: Patterns of keys; ``describe`` has a phrase for each.
ENDPOINT_PATH, ENDPOINT_PROMPT = "^[a-z0-9][a-z0-9_-]{0,63}$", r"\{text\}"


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


Task = Literal[
    "sft",
    "pretrain",
    "dpo",
    "cdpo",
    "rdpo",
    "ipo",
    "simpo",
    "orpo",
    "kto",
    "classify",
    "reward",
    "verifier",
    "grpo",
    "seq2seq",
]


class Recipe(Section):
    """One run: a model, the data, what is trained and how."""

    model: str = Field(
        min_length=1,
        description="Catalogue name, hub id, local folder, or .gguf file; left out in a recipe with [scratch].",
    )
    revision: str | None = Field(
        None, min_length=1, description="Commit, tag or branch of a hub model; the commit is pinned in the run."
    )
    adapter: str = Field("", description="Run or adapter folder whose weights training starts from.")
    task: Task = Field(
        "sft",
        description="sft learns answers to prompts; pretrain learns plain text; dpo, cdpo, rdpo, ipo, simpo and orpo "
        "learn from pairs of a chosen and a rejected answer, kto from answers marked good or bad; classify learns the "
        "labels of texts, reward which of two answers is better, verifier whether answers are right; grpo learns from "
        "the rewards of its own answers; seq2seq learns answers with an encoder-decoder model (T5).",
    )
    quantize: Literal[4, 8] | None = Field(
        None,
        description="Bits of the frozen base on a GPU; left out, the weights stay as stored. On a CPU they are written "
        "out as float32, quantised or not.",
    )
    output_dir: str = Field(min_length=1, description="The run folder that will be made.")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="Fixes initial weights, order, dropout, draws.")
    lora: LoraRecipe | None = Field(None, description="Adapter settings; without this section every weight is trained.")
    scratch: ScratchRecipe | None = Field(None, description="A new model with random weights in the place of `model`.")
    verifier: VerifierRecipe = Field(default_factory=lambda: VerifierRecipe.model_validate({}))
    grpo: GrpoRecipe = Field(default_factory=lambda: GrpoRecipe.model_validate({}))
    data: DataRecipe
    preference: PreferenceRecipe | None = Field(None, description="Numbers of the losses on preferences.")
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

    @model_validator(mode="before")
    @classmethod
    def _begin_from_scratch(cls, values: object) -> object:
        return with_text_format(with_scratch_defaults(with_grpo_defaults(values)))

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        if self.scratch is not None and self.task != "pretrain":  # its own rules are beside the point
            return refuse(self, scratch_problems(self.scratch, dict(self), self.data.max_seq_length))
        problems = grpo_problems(dict(self))
        problems += scored_problems(self.task, self.data, self.verifier, len(self.eval.prompts))
        problems += unused_problems(self.task, self.preference)
        if self.scratch is not None:
            problems += scratch_problems(self.scratch, dict(self), self.data.max_seq_length)
            return refuse(self, problems)
        if self.lora is None and self.quantize is not None:
            problems.append(
                f"`quantize` = {self.quantize} without a [lora] section: quantised weights cannot be trained "
                "themselves; add [lora] or remove `quantize`"
            )
        if self.lora is not None and self.training.optimizer == "muon":
            problems.append(
                "`training.optimizer` = 'muon' with a [lora] section: Muon is for whole matrices, not for the two "
                'factors of an adapter; write optimizer = "adamw", or remove [lora]'
            )
        if self.lora is None and self.adapter:
            problems.append(
                f"`adapter` = {self.adapter!r} without a [lora] section: full fine-tuning has no adapter; "
                "add [lora] or remove `adapter`"
            )
        if self.task in PREFERENCE_TASKS:
            problems += _not_of_preferences(self.task, self.data)
        if self.task == "seq2seq":
            problems += seq2seq_problems(
                self.data,
                num_layers=self.lora.num_layers if self.lora else "all",
                neftune_alpha=self.training.neftune_alpha,
                compute_dtype=self.hardware.compute_dtype,
            )
        return refuse(self, problems)


def _not_of_preferences(task: str, data: DataRecipe) -> list[str]:
    """What [data] asks for that makes no sense for two answers to one prompt."""
    problems: list[str] = []
    if not data.mask_prompt:
        problems.append(
            f"`data.mask_prompt` = false with task {task!r}: only answers are compared; remove `mask_prompt`"
        )
    if data.packing is True:
        problems.append(f"`data.packing` = true with task {task!r}: a row holds two answers; remove `packing`")
    if data.truncation == "split":
        problems.append(
            f'`data.truncation` = "split" with task {task!r}: half an answer cannot be compared; write "drop" or '
            '"keep-end"'
        )
    return problems


def section_names() -> Sequence[str]:
    """Names of the recipe's sections, in the order in which a recipe is written."""
    return (
        *("lora", "scratch", "verifier", "grpo", "data", "preference", "training", "eval", "chat", "serve"),
        "hardware",
    )
