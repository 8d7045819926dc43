"""mlx-tune in the race: its ``SFTTrainer`` with the configuration that ``mlx_lm.lora`` reads.

mlx-tune 0.6.0 trains through mlx-lm's own loop, so its steps are the stock's; its AdamW has no bias correction, and
no setting for it. ``race_stock.py`` calls ``main`` and watches ``mlx_tune.sft_trainer``.
"""

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Train as ``--config FILE`` on the command line says."""
    import mlx.core as mx
    import numpy as np
    from mlx_tune import FastLanguageModel, SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]

    config: dict[str, Any] = json.loads(Path(sys.argv[sys.argv.index("--config") + 1]).read_bytes())
    np.random.seed(config["seed"])
    mx.random.seed(config["seed"])
    lora = config["lora_parameters"]
    model, tokenizer = FastLanguageModel.from_pretrained(config["model"], max_seq_length=config["max_seq_length"])
    model = FastLanguageModel.get_peft_model(
        model,
        r=lora["rank"],
        lora_alpha=lora["scale"] * lora["rank"],
        target_modules=[key.rpartition(".")[2] for key in lora["keys"]],
    )
    arguments = SFTConfig(
        output_dir=config["adapter_path"],
        per_device_train_batch_size=config["batch_size"],
        learning_rate=config["learning_rate"],
        lr_scheduler_type="constant",
        max_steps=config["iters"],
        logging_steps=config["steps_per_report"],
        save_steps=config["save_every"],
        weight_decay=config["optimizer_config"]["adamw"]["weight_decay"],
        max_seq_length=config["max_seq_length"],
        grad_checkpoint=config["grad_checkpoint"],
        num_layers=None if config["num_layers"] < 0 else config["num_layers"],
        val_batches=0,
    )
    rows = [json.loads(line) for line in (Path(config["data"]) / "train.jsonl").read_text("utf-8").splitlines()]
    trainer = SFTTrainer(model=model, tokenizer=tokenizer, train_dataset=rows, args=arguments)
    trainer._train_on_responses_only = config["mask_prompt"]  # what its train_on_responses_only() sets
    trainer.train()
