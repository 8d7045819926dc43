"""Record adapters made by PEFT, and the logits torch computes with them, into tests/golden/peft.

    PYTHONPATH=.:tests python tests/golden/record_peft.py

Needs torch, peft and transformers (the extra ``parity``). Models are the tiny ones of tests/tiny.py; every number comes
from a fixed seed. tests/model/adapters/test_files.py reads what this writes.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from tiny import write_tiny_model
from transformers import AutoModelForCausalLM

FOLDER = Path(__file__).resolve().parent / "peft"
TOKENS = [[40, 77, 5, 130, 201, 66, 9, 250]]
STRIDE = 5  # of logits and gradients, every fifth is kept

CASES: dict[str, dict[str, Any]] = {
    "llama-lora": {"r": 2, "lora_alpha": 4, "target_modules": "all-linear"},
    "llama-rslora": {
        "r": 4,
        "lora_alpha": 3,
        "use_rslora": True,
        "target_modules": ["q_proj", "v_proj"],
        "layers_to_transform": [1],
        "layers_pattern": "layers",
    },
    "llama-dora": {"r": 2, "lora_alpha": 4, "use_dora": True, "target_modules": ["q_proj", "down_proj"]},
    "llama-patterns": {
        "r": 2,
        "lora_alpha": 4,
        "target_modules": r".*\.self_attn\.(q|v)_proj",
        "rank_pattern": {"v_proj": 3},
        "alpha_pattern": {r"layers\.1\.self_attn\.q_proj": 7},
    },
    "gemma-lora": {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
    "gemma-dora": {"r": 2, "lora_alpha": 2, "use_dora": True, "target_modules": ["k_proj", "up_proj"]},
    "gpt2-lora": {"r": 2, "lora_alpha": 4, "target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
    "gpt2-dora": {"r": 2, "lora_alpha": 4, "use_dora": True, "target_modules": ["c_attn"], "fan_in_fan_out": True},
    "gpt_neox-lora": {"r": 2, "lora_alpha": 4, "target_modules": ["query_key_value"]},
    "gpt_neox-dora": {"r": 2, "lora_alpha": 4, "use_dora": True, "use_rslora": True, "target_modules": ["dense"]},
}


def record(name: str, settings: dict[str, Any], work: Path) -> None:
    """Write the adapter and ``logits.npz`` of one case: ``base`` and ``adapted`` (T, V / STRIDE), gradients by key.

    Gradients are those of the summed cross-entropy of the next token, flattened, every STRIDE-th number.
    """
    family = name.partition("-")[0]
    base = write_tiny_model(work / name, family)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    tokens = torch.tensor(TOKENS)
    with torch.no_grad():
        plain = model(tokens).logits[0].numpy()
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    rng = np.random.default_rng([1, *name.encode()])
    with torch.no_grad():
        for key, value in sorted(adapted.named_parameters()):
            if "lora_B" in key:
                value.copy_(torch.from_numpy(rng.normal(0, 0.2, value.shape).astype(np.float32)))
            elif "lora_A" in key:
                value.copy_(torch.from_numpy(rng.normal(0, 0.125, value.shape).astype(np.float32)))
            elif "magnitude" in key:
                value.mul_(torch.from_numpy(rng.uniform(0.8, 1.2, value.shape).astype(np.float32)))
        logits = adapted(tokens).logits[0].numpy()
    output = adapted(tokens).logits[0, :-1]
    torch.nn.functional.cross_entropy(output, tokens[0, 1:], reduction="sum").backward()
    gradients = {
        key.replace(".default", "").replace("lora_magnitude_vector.weight", "lora_magnitude_vector"): value.grad
        for key, value in adapted.named_parameters()
        if value.grad is not None
    }
    kept = {f"grad.{key}": value.numpy().ravel()[::STRIDE] for key, value in gradients.items()}
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    adapted.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = f"tiny-{family}"
    config["target_modules"] = (
        sorted(config["target_modules"]) if isinstance(config["target_modules"], list) else config["target_modules"]
    )
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    np.savez_compressed(folder / "logits.npz", base=plain[:, ::STRIDE], adapted=logits[:, ::STRIDE], **kept)
    print(f"{name}: logits differ from the base by up to {np.abs(logits - plain).max():.3f}", file=sys.stderr)


def main() -> None:
    """Record every case."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as work:
        for name, settings in CASES.items():
            record(name, settings, Path(work))


if __name__ == "__main__":
    main()
