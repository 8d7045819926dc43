"""Small runs of grpo for the tests: a recipe around rows, and a bandit that can be solved in a few steps."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
from safetensors.numpy import load_file, save_file
from tiny import write_tiny_model

from mlx_finetune.model.inside.split import SplitModel
from mlx_finetune.model.load import load_model
from mlx_finetune.model.sources.fetch import LocalModel
from mlx_finetune.model.tokens.tokenizer import load_tokenizer

RECIPE = """
model = "{model}"
task = "grpo"
output_dir = "{output}"
seed = 5
[lora]
rank = 4
[grpo]
rewards = ["exact"]
max_tokens = {max_tokens}
group_size = 8
[data]
train = "{data}"
valid = "{data}"
prompt_template = "none"
max_seq_length = 64
[training]
max_steps = {steps}
batch_size = {problems}
learning_rate = {rate}
warmup_steps = 0
lr_scheduler = "constant"
eval_steps = {eval_steps}
save_steps = 2
"""


def load(folder: Path):
    local = LocalModel("tiny", folder, "folder", None, "", None)
    return load_model(local, quantize=None, compute_dtype="float32", on_gpu=False).model


def write_recipe(folder: Path, model: Path, rows: list[dict[str, str]], **keys: object) -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "recipe.toml"
    values = {
        "output": folder / "run",
        "data": folder / "rows.jsonl",
        "max_tokens": 1,
        "problems": 1,
        "rate": 1e-2,
        "steps": 4,
    }
    path.write_text(RECIPE.format(**({"model": model, "eval_steps": 20} | values | keys)))
    return path


def write_bandit(folder: Path) -> Path:
    """A model that says A or B to the prompt of the bandit, each about half of the time, and hardly anything else."""
    write_tiny_model(folder, "llama", chat_template=False)
    tokenizer = load_tokenizer(folder)
    prompt = tokenizer.encode("Pull:").ids
    (a,), (b,) = tokenizer.encode("A").ids, tokenizer.encode("B").ids
    model = load(folder)
    state = np.array(SplitModel(model).hidden(mx.array([prompt]), None)[0, -1], np.float64)
    along = state / (state @ state)
    across = np.random.default_rng(0).normal(size=len(state))
    across -= along * (across @ state)
    weights = load_file(folder / "model.safetensors")
    head = np.tile(-6 * along, (len(weights["lm_head.weight"]), 1))
    head[a], head[b] = 6 * along + 0.2 * across, 6 * along - 0.2 * across
    save_file(weights | {"lm_head.weight": head.astype(np.float32)}, folder / "model.safetensors", {"format": "pt"})
    return folder
