"""The settings of the race against ``mlx_lm.lora``, and what each side is told about them. Standard library only.

Both sides get the same model folder (fp32), the same rows, rank, scale, layers, learning rate, AdamW with bias
correction and the same decay, a constant rate without warm-up, and no clipping. ``scale = alpha / rank`` on both sides.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

RANK = 8
ALPHA = 16.0
LEARNING_RATE = 2e-4
WEIGHT_DECAY = 0.01
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
STOCK_KEYS = tuple(f"self_attn.{name}" if name[0] in "qkvo" else f"mlp.{name}" for name in MODULES)
SAVES = 12  # checkpoints in a run, so that both sides have one near any moment
TEXT = ("wikisql", "articles")  # plain text: every token is a target

OURS, STOCK = "ours", "stock"
RECOMPUTE = "-recompute"  # ends the name of an arm that computes activations twice


@dataclass(frozen=True, slots=True)
class Cell:
    """One setting. ``examples`` is a multiple of the batch size, so that no side has a tail to drop."""

    number: int
    data: str
    batch_size: int
    max_length: int
    num_layers: int | None  # None: every block
    mask_prompt: bool
    examples: int
    valid_rows: int

    @property
    def name(self) -> str:
        """For people: ``alpaca b4 512 16 masked``."""
        layers = "all" if self.num_layers is None else f"last {self.num_layers}"
        learned = "text" if self.data in TEXT else "masked" if self.mask_prompt else "whole"
        return f"{self.data}, batch {self.batch_size}, {self.max_length}, {layers}, {learned}"

    @property
    def key(self) -> str:
        """Names the setting in the results; another setting under the same number has another key."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return f"{self.number}-{digest[:8]}"


#: Five of ten with batch 1, four with 2,048 tokens, five with every block, five with masked prompts.
CELLS = (
    Cell(1, "alpaca", 4, 512, 16, True, 32, 24),
    Cell(2, "alpaca", 1, 512, None, False, 24, 24),
    Cell(3, "gsm8k", 4, 512, None, True, 32, 24),
    Cell(4, "gsm8k", 1, 512, 16, True, 24, 24),
    Cell(5, "dialogsum", 4, 2048, 16, True, 24, 16),
    Cell(6, "gsm8k-shots", 1, 2048, None, True, 8, 12),
    Cell(7, "wikisql", 4, 512, None, False, 64, 50),
    Cell(8, "wikisql", 1, 512, 16, False, 32, 50),
    Cell(9, "articles", 1, 2048, 16, False, 6, 6),
    Cell(10, "dialogsum", 4, 2048, None, False, 24, 16),
)
#: Minutes, not hours: the first and the seventh setting with fewer rows.
QUICK_CELLS = (
    Cell(1, "alpaca", 4, 512, 16, True, 16, 8),
    Cell(7, "wikisql", 4, 512, None, False, 20, 8),
)


def base_arm(arm: str) -> str:
    """``ours`` or ``stock`` or the name of a peer, recomputing or not."""
    return arm.removesuffix(RECOMPUTE)


def partner(arm: str) -> str:
    """The arm of ours that ``arm`` is compared with."""
    return OURS + RECOMPUTE if arm.endswith(RECOMPUTE) else OURS


def arms_of_repeat(repeat: int, peers: Sequence[str], *, recompute: bool) -> list[str]:
    """The arms of one repeat in the order in which they run; every second repeat runs backwards."""
    arms = [STOCK, OURS, *peers]
    if recompute:
        arms += [STOCK + RECOMPUTE, OURS + RECOMPUTE]
    return arms[::-1] if repeat % 2 else arms


def save_steps(num_steps: int) -> int:
    """Steps between two checkpoints for about ``SAVES`` of them in a run."""
    return max(1, num_steps // SAVES)


def our_recipe(cell: Cell, model: Path, data: Path, out: Path, *, seed: int, recompute: bool) -> str:
    """The recipe for ``mlxft train``: every row once, no validation, no best checkpoint to look for."""
    layers: object = "all" if cell.num_layers is None else cell.num_layers
    top: Mapping[str, object] = {
        "model": str(model),
        "output_dir": str(out),
        "seed": seed,
        "task": "pretrain" if cell.data in TEXT else "sft",
    }
    sections: Mapping[str, Mapping[str, object]] = {
        "lora": {"rank": RANK, "alpha": ALPHA, "target_modules": list(MODULES), "num_layers": layers},
        "data": {
            "path": str(data / "train.jsonl"),
            "val_split": 0.0,
            "test_split": 0.0,
            "max_seq_length": cell.max_length,
            "mask_prompt": cell.mask_prompt,
        },
        "training": {
            "learning_rate": LEARNING_RATE,
            "epochs": 1,
            "batch_size": cell.batch_size,
            "lr_scheduler": "constant",
            "warmup_steps": 0,
            "weight_decay": WEIGHT_DECAY,
            "max_grad_norm": 0.0,
            "gradient_checkpointing": recompute,
            "save_steps": save_steps(cell.examples // cell.batch_size),
            "save_minutes": 1440.0,
            "keep_checkpoints": 1000,
            "keep_best": False,
        },
        "hardware": {"compute_dtype": "float32"},
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in top.items()]
    for name, values in sections.items():
        lines += ["", f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"


def stock_config(cell: Cell, model: Path, data: Path, out: Path, *, seed: int, recompute: bool) -> str:
    """The configuration for ``mlx_lm.lora --config`` (JSON, which is YAML): one pass, no validation, a report a step.

    ``train_type``, ``train_mode`` and ``fuse`` are for mlx-lm-lora, which reads the same file; the stock ignores them.
    """
    num_steps = cell.examples // cell.batch_size
    return json.dumps(
        {
            "model": str(model),
            "train": True,
            "fine_tune_type": "lora",
            "train_type": "lora",
            "train_mode": "sft",
            "fuse": False,
            "data": str(data),
            "seed": seed,
            "num_layers": -1 if cell.num_layers is None else cell.num_layers,
            "batch_size": cell.batch_size,
            "iters": num_steps,
            "learning_rate": LEARNING_RATE,
            "optimizer": "adamw",
            "optimizer_config": {
                "adamw": {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": WEIGHT_DECAY, "bias_correction": True}
            },
            "steps_per_report": 1,
            "steps_per_eval": 10 * num_steps,
            "save_every": save_steps(num_steps),
            "adapter_path": str(out),
            "max_seq_length": cell.max_length,
            "grad_checkpoint": recompute,
            "mask_prompt": cell.mask_prompt,
            "lora_parameters": {"rank": RANK, "dropout": 0.0, "scale": ALPHA / RANK, "keys": list(STOCK_KEYS)},
        },
        indent=1,
    )
