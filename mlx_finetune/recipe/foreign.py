"""Names that other tools use for what our keys say, and how their values convert.

Counted over the example configurations of Axolotl, LLaMA-Factory, TRL, torchtune, Unsloth, mlx-lm, PEFT, LitGPT, H2O
LLM Studio and AutoTrain. A name that is also one of ours is not here. Nothing is translated silently: the
loader refuses the key and shows the line to write instead.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mlx_finetune.recipe.values import shown, shown_name, toml_value

#: Ours by dotted key -> their names: tool -> keys. Values carry over unchanged unless ``_CONVERSIONS`` says otherwise.
_NAMES: Mapping[str, Mapping[str, str]] = {
    "model": {
        "Axolotl": "base_model",
        "LLaMA-Factory": "model_name_or_path",
        "Unsloth": "model_name",
        "LitGPT": "checkpoint_dir",
        "H2O LLM Studio": "llm_backbone",
        "transformers": "pretrained_model_name_or_path",
    },
    "adapter": {"mlx-lm": "resume_adapter_file", "Axolotl": "lora_model_dir", "LLaMA-Factory": "adapter_name_or_path"},
    "task": {"LLaMA-Factory": "stage", "Axolotl": "rl"},
    "quantize": {
        "Axolotl": "load_in_4bit load_in_8bit",
        "LLaMA-Factory": "quantization_bit",
        "AutoTrain": "quantization",
    },
    "output_dir": {"mlx-lm": "adapter_path", "LitGPT": "out_dir", "H2O LLM Studio": "output_directory"},
    "seed": {"Unsloth": "random_state", "H2O LLM Studio": "random_seed"},
    "lora": {"mlx-lm": "lora_parameters fine_tune_type", "LLaMA-Factory": "finetuning_type"},
    "lora.rank": {"Axolotl": "lora_r", "LLaMA-Factory": "lora_rank", "PEFT": "r"},
    "lora.alpha": {"Axolotl": "lora_alpha", "mlx-lm": "scale"},
    "lora.dropout": {"Axolotl": "lora_dropout"},
    "lora.target_modules": {
        "Axolotl": "lora_target_modules lora_target_linear",
        "LLaMA-Factory": "lora_target",
        "mlx-lm": "keys",
        "torchtune": "lora_attn_modules",
    },
    "lora.num_layers": {"mlx-lm": "lora_layers"},
    "lora.use_dora": {"Axolotl": "peft_use_dora"},
    "lora.use_rslora": {"Axolotl": "peft_use_rslora"},
    "data.path": {
        "Axolotl": "datasets",
        "LLaMA-Factory": "dataset dataset_dir",
        "TRL": "dataset_name",
        "Unsloth": "local_dataset",
        "AutoTrain": "data_path",
    },
    "data.valid": {"LLaMA-Factory": "eval_dataset", "H2O LLM Studio": "validation_dataframe"},
    "data.test": {"Axolotl": "test_datasets"},
    "data.columns": {"AutoTrain": "column_mapping"},
    "data.val_split": {
        "Axolotl": "val_set_size",
        "LLaMA-Factory": "val_size",
        "LitGPT": "val_split_fraction",
        "H2O LLM Studio": "validation_size",
    },
    "data.max_seq_length": {
        "Axolotl": "sequence_len",
        "LLaMA-Factory": "cutoff_len",
        "torchtune": "max_seq_len",
        "TRL": "max_length",
        "AutoTrain": "block_size",
    },
    "data.mask_prompt": {
        "Axolotl": "train_on_inputs",
        "torchtune": "train_on_input",
        "LLaMA-Factory": "train_on_prompt",
        "Unsloth": "train_on_completions train_on_responses_only",
        "TRL": "assistant_only_loss completion_only_loss",
    },
    "data.packing": {"Axolotl": "sample_packing", "torchtune": "packed"},
    "data.chat_template": {"LLaMA-Factory": "template"},
    "data.truncation": {"Axolotl": "excess_length_strategy"},
    "training.learning_rate": {"torchtune": "lr"},
    "training.epochs": {"Axolotl": "num_epochs", "LLaMA-Factory": "num_train_epochs"},
    "training.max_steps": {"mlx-lm": "iters"},
    "training.batch_size": {"Axolotl": "micro_batch_size", "LLaMA-Factory": "per_device_train_batch_size"},
    "training.gradient_accumulation_steps": {
        "mlx-lm": "grad_accumulation_steps",
        "AutoTrain": "gradient_accumulation",
        "H2O LLM Studio": "grad_accumulation",
    },
    "training.lr_scheduler": {"LLaMA-Factory": "lr_scheduler_type", "mlx-lm": "lr_schedule", "AutoTrain": "scheduler"},
    "training.warmup_steps": {"torchtune": "num_warmup_steps", "LitGPT": "lr_warmup_steps"},
    "training.warmup_ratio": {"AutoTrain": "warmup_proportion"},
    "training.optimizer": {"TRL": "optim"},
    "training.max_grad_norm": {"torchtune": "clip_grad_norm", "LitGPT": "max_norm", "H2O LLM Studio": "gradient_clip"},
    "training.gradient_checkpointing": {
        "mlx-lm": "grad_checkpoint",
        "Unsloth": "use_gradient_checkpointing",
        "torchtune": "enable_activation_checkpointing",
    },
    "training.neftune_alpha": {"TRL": "neftune_noise_alpha"},
    "training.logging_steps": {
        "mlx-lm": "steps_per_report",
        "torchtune": "log_every_n_steps",
        "LitGPT": "log_interval",
    },
    "training.eval_steps": {"mlx-lm": "steps_per_eval"},
    "training.save_steps": {"mlx-lm": "save_every", "LitGPT": "save_interval"},
    "training.keep_checkpoints": {"TRL": "save_total_limit"},
    "training.keep_best": {"TRL": "load_best_model_at_end"},
    "chat.temperature": {"mlx-lm": "temp"},
    "hardware.compute_dtype": {"TRL": "bf16 fp16", "torchtune": "dtype", "LitGPT": "precision"},
}

#: Names shared by several tools are listed once above; these are the others that use them.
_ALSO: Mapping[str, str] = {
    "base_model": "Axolotl's and AutoTrain's",
    "model_name_or_path": "LLaMA-Factory's and TRL's",
    "load_in_4bit": "Axolotl's, TRL's and Unsloth's",
    "load_in_8bit": "Axolotl's and TRL's",
    "lora_r": "Axolotl's, TRL's, Unsloth's, LitGPT's and H2O LLM Studio's",
    "lora_rank": "LLaMA-Factory's and torchtune's",
    "lora_alpha": "Axolotl's, PEFT's and LLaMA-Factory's",
    "lora_dropout": "Axolotl's, PEFT's and LLaMA-Factory's",
    "lora_target_modules": "Axolotl's, TRL's and H2O LLM Studio's",
    "max_length": "TRL's and H2O LLM Studio's",
    "lr": "torchtune's, LitGPT's and AutoTrain's",
    "num_epochs": "Axolotl's",
    "num_train_epochs": "LLaMA-Factory's and TRL's",
    "micro_batch_size": "Axolotl's and LitGPT's",
    "per_device_train_batch_size": "LLaMA-Factory's and TRL's",
    "lr_scheduler_type": "LLaMA-Factory's and TRL's",
    "save_total_limit": "TRL's and LLaMA-Factory's",
    "load_best_model_at_end": "TRL's and LLaMA-Factory's",
    "neftune_noise_alpha": "TRL's and LLaMA-Factory's",
    "bf16": "Axolotl's, TRL's and LLaMA-Factory's",
    "fp16": "Axolotl's, TRL's and LLaMA-Factory's",
    "optim": "TRL's and LLaMA-Factory's",
}

#: Names without a key of ours: tool's, and what to do instead.
_WITHOUT_KEY: Mapping[str, tuple[str, str]] = {
    "resume_from_checkpoint": ("Axolotl's, torchtune's and TRL's", "remove it and run `mlxft train RECIPE --resume`"),
    "auto_resume_from_checkpoints": ("Axolotl's", "remove it and run `mlxft train RECIPE --resume`"),
    "saves_per_epoch": ("Axolotl's", "write save_steps, or save_at = [0.25, 0.5, 0.75, 1.0], in [training]"),
    "eval_strategy": ("TRL's", "remove it; eval_steps or evals_per_epoch in [training] decides"),
    "evaluation_strategy": ("transformers'", "remove it; eval_steps or evals_per_epoch in [training] decides"),
    "save_strategy": ("TRL's", "remove it; save_steps in [training] decides"),
    "do_train": ("LLaMA-Factory's", "remove it; `mlxft train` trains"),
    "trust_remote_code": ("transformers'", "remove it; code from a model repository is never run"),
    "pad_to_sequence_len": ("Axolotl's", "remove it; batches are padded to few fixed lengths"),
    "group_by_length": ("Axolotl's and TRL's", "remove it; rows of like length are always batched together"),
    "flash_attention": ("Axolotl's", "remove it; MLX has one fused attention"),
    "flash_attn": ("LLaMA-Factory's", "remove it; MLX has one fused attention"),
    "attn_implementation": ("Axolotl's", "remove it; MLX has one fused attention"),
    "deepspeed": ("Axolotl's and TRL's", "remove it; it does not exist for MLX"),
    "fsdp": ("Axolotl's and TRL's", "remove it; it does not exist for MLX"),
    "val_batches": ("mlx-lm's", "remove it; the whole validation set is always used"),
    "wandb_project": ("Axolotl's", 'write training.report_to = ["wandb"]; WANDB_PROJECT=NAME names the project'),
    "use_wandb": ("LLaMA-Factory's", 'write training.report_to = ["wandb"]'),
}


@dataclass(frozen=True, slots=True)
class Translation:
    """``key`` is ``tool`` (possessive) name for ``ours`` (a dotted key, or empty); ``fix`` says what to write."""

    key: str
    tool: str
    ours: str
    fix: str


def recognise(key: str, value: object, siblings: Mapping[str, object]) -> Translation | None:
    """What ``key = value`` of another tool is here; ``siblings`` are the keys beside it. None for a name of nobody."""
    name = key.replace("-", "_")
    if name in _WITHOUT_KEY:
        tool, fix = _WITHOUT_KEY[name]
        return Translation(key, tool, "", fix)
    for ours, tools in _NAMES.items():
        for tool, names in tools.items():
            if name in names.split():
                return Translation(key, _ALSO.get(name, f"{tool}'s"), ours, _fix(name, ours, value, siblings))
    return None


def known_names() -> Mapping[str, str]:
    """Every recognised name -> our dotted key, empty where there is none."""
    names = {name: ours for ours, tools in _NAMES.items() for keys in tools.values() for name in keys.split()}
    return names | dict.fromkeys(_WITHOUT_KEY, "")


def _fix(name: str, ours: str, value: object, siblings: Mapping[str, object]) -> str:
    if name in _SENTENCES:
        return _SENTENCES[name](value)
    convert = _CONVERSIONS.get(name)
    converted = convert(value, siblings) if convert else value
    return f"write {_assignment(ours, converted)}"


def _assignment(ours: str, value: object) -> str:
    section, _, key = ours.rpartition(".")
    place = f"in [{section}]" if section else "at the top"
    return f"`{key}` {place}" if isinstance(value, dict) else f"{key} = {shown(value)} {place}"


def _flip(value: object, _: Mapping[str, object]) -> object:
    return not value if isinstance(value, bool) else True


def _alpha_of_scale(value: object, siblings: Mapping[str, object]) -> object:
    """mlx-lm multiplies by ``scale``; ours is ``alpha / rank``, so ``alpha = scale * rank`` (mlx-lm's rank is 8)."""
    rank = siblings.get("rank", 8)
    return value * rank if isinstance(value, int | float) and isinstance(rank, int) else value


def _all_linear(value: object, _: Mapping[str, object]) -> object:
    """LLaMA-Factory writes "all" or names with commas; mlx-lm writes paths, of which the last part is the name."""
    if value in ("all", "all-linear", True):
        return "all-linear"
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list):
        return "all-linear"
    return [name.strip().rpartition(".")[2] for name in names if isinstance(name, str)]  # pyright: ignore[reportUnknownVariableType]


def _first_path(value: object, _: Mapping[str, object]) -> object:
    """Axolotl lists tables with a path; the first one is shown."""
    while isinstance(value, list | dict) and value:
        value = value[0] if isinstance(value, list) else value.get("path", "data/mine")  # pyright: ignore[reportUnknownVariableType,reportUnknownMemberType]
    return value if isinstance(value, str) and value else "data/mine"


def _all_layers(value: object, _: Mapping[str, object]) -> object:
    return "all" if value == -1 else value


def _compute_dtype(value: object, _: Mapping[str, object]) -> object:
    text = str(value)
    names = {"16": "float16", "fp16": "float16", "bf16": "bfloat16", "32": "float32", "fp32": "float32"}
    return names.get(text.partition("-")[0], "auto")


def _task(value: object, _: Mapping[str, object]) -> object:
    return {"pt": "pretrain", "sft": "sft"}.get(str(value), value)


def _optimizer(value: object, _: Mapping[str, object]) -> object:
    return "adamw" if "adamw" in str(value) else value


def _scheduler(value: object, _: Mapping[str, object]) -> object:
    if isinstance(value, dict):
        value = value.get("name")  # pyright: ignore[reportUnknownVariableType,reportUnknownMemberType]
    text = str(value)  # pyright: ignore[reportUnknownArgumentType]
    return next((ours for ours in ("cosine", "linear", "constant") if ours in text), "cosine")


def _gradient_checkpointing(value: object, _: Mapping[str, object]) -> object:
    return value if isinstance(value, bool) else True


_CONVERSIONS: Mapping[str, Callable[[object, Mapping[str, object]], object]] = {
    "train_on_inputs": _flip,
    "train_on_input": _flip,
    "train_on_prompt": _flip,
    "scale": _alpha_of_scale,
    "lora_target": _all_linear,
    "lora_target_linear": _all_linear,
    "lora_target_modules": _all_linear,
    "keys": _all_linear,
    "datasets": _first_path,
    "test_datasets": _first_path,
    "lora_layers": _all_layers,
    "dtype": _compute_dtype,
    "precision": _compute_dtype,
    "stage": _task,
    "rl": _task,
    "optim": _optimizer,
    "lr_schedule": _scheduler,
    "lr_scheduler_type": _scheduler,
    "scheduler": _scheduler,
    "use_gradient_checkpointing": _gradient_checkpointing,
}


def _lora_section(value: object) -> str:
    """mlx-lm's table of adapter settings, line by line in our words."""
    if not isinstance(value, dict):
        return "write a [lora] section with rank, alpha, dropout"
    lines: list[str] = []
    for key, item in value.items():  # pyright: ignore[reportUnknownVariableType]
        name = str(key)  # pyright: ignore[reportUnknownArgumentType]
        found = recognise(name, item, value)  # pyright: ignore[reportUnknownArgumentType]
        if found is not None and found.ours.startswith("lora."):
            converted = _CONVERSIONS[name](item, value) if name in _CONVERSIONS else item  # pyright: ignore[reportUnknownArgumentType]
            lines.append(f"{found.ours.removeprefix('lora.')} = {shown(converted)}")
        else:
            lines.append(f"{shown_name(name)} = {shown(item)}")
    return "write a [lora] section with " + ", ".join(lines or ["rank = 8"])


def _bits(bits: int) -> Callable[[object], str]:
    return lambda value: (
        f"write quantize = {bits} at the top" if value is True else "remove it; `quantize` left out is the same"
    )


def _bits_of_name(value: object) -> str:
    return f"write quantize = {8 if '8' in str(value) else 4} at the top, or leave it out"


def _dtype_switch(dtype: str) -> Callable[[object], str]:
    def fix(value: object) -> str:
        return f"write compute_dtype = {toml_value(dtype)} in [hardware]" if value is True else "remove it"

    return fix


def _method(value: object) -> str:
    text = str(value)
    if text == "full":
        return "remove it and leave the [lora] section out: every weight is then trained"
    return "write a [lora] section with use_dora = true" if text == "dora" else "write a [lora] section with rank = 16"


_SENTENCES: Mapping[str, Callable[[object], str]] = {
    "lora_parameters": _lora_section,
    "fine_tune_type": _method,
    "finetuning_type": _method,
    "load_in_4bit": _bits(4),
    "load_in_8bit": _bits(8),
    "quantization": _bits_of_name,
    "bf16": _dtype_switch("bfloat16"),
    "fp16": _dtype_switch("float16"),
    "template": lambda _: 'write chat_template = "auto" in [data]: the tokenizer\'s own template is used',
    "excess_length_strategy": lambda _: 'write truncation = "drop" (or "keep-end", "split") in [data]',
    "resume_adapter_file": lambda value: (
        f"write adapter = {shown(value)} at the top (a folder; only weights are taken)"
    ),
    "column_mapping": lambda _: 'write [data.columns] with our name = "name in the file"',
}
