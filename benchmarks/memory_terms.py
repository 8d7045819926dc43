"""Measured peak memory of real training steps beside the plan's: what the constants of hardware/memory.py rest on.

    python benchmarks/memory_terms.py [--model smollm2-135m] [--set B,T,LAYERS,RECOMPUTE ...]

Each line is one fresh process: two steps on random tokens, ``mx.get_peak_memory()``, the plan, their ratio. The
figures depend on sizes and not on speed, so a busy machine does.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = (
    "4,64,all,0",
    "4,128,all,0",
    "4,256,all,0",
    "4,256,15,0",
    "4,256,4,0",
    "1,512,all,0",
    "4,256,all,1",
    "4,256,4,1",
)


def measure(model_name: str, setting: str) -> None:
    """Print one line for one setting."""
    from mlx_finetune.hardware import blas

    blas.prepare()
    import mlx.core as mx
    import numpy as np

    from mlx_finetune.dataset.stream import Batch
    from mlx_finetune.hardware.memory import Layout, plan_memory
    from mlx_finetune.hardware.shapes import read_shape
    from mlx_finetune.model.fetch import fetch_model
    from mlx_finetune.model.load import load_model, on_gpu
    from mlx_finetune.model.lora import adapter_parameters, attach_adapter
    from mlx_finetune.model.noise import checkpoint_blocks
    from mlx_finetune.recipe.schema import LoraRecipe
    from mlx_finetune.train.objective import OBJECTIVES
    from mlx_finetune.train.optim import AdamW, decayed_names
    from mlx_finetune.train.step import Trainer

    batch_size, length, layers, recompute = setting.split(",")
    layout = Layout(int(batch_size), int(length))
    local = fetch_model(model_name, report=lambda _: None)
    dtype, value_bytes = ("bfloat16", 2) if on_gpu() else ("float32", 4)
    loaded = load_model(local, quantize=None, compute_dtype=dtype, on_gpu=on_gpu())
    lora = LoraRecipe.model_validate({"num_layers": layers if layers == "all" else int(layers)})
    attach_adapter(loaded.model, lora, seed=0)
    if recompute == "1":
        checkpoint_blocks(loaded.model)
    parameters = adapter_parameters(loaded.model)
    optimizer = AdamW(0.9, 0.999, 1e-8, 0.01, decayed_names(parameters))
    trainer = Trainer(
        loaded.model,
        OBJECTIVES["sft"],
        optimizer,
        parameters,
        seed=0,
        max_grad_norm=1.0,
        is_packed=False,
        is_compiled=on_gpu(),
    )
    shape = (layout.batch_size, layout.length + 1)
    tokens = np.random.default_rng(0).integers(0, loaded.info.vocab_size, shape).astype(np.int32)
    batch = Batch(tokens, np.ones(shape, np.bool_), np.ones(shape, np.int32), (0,), is_packed=False)
    mx.reset_peak_memory()
    for step in range(2):
        gradients, _ = trainer.compute([batch], step)
        trainer.apply(gradients, learning_rate=1e-4, step=step)
    stored_bits = loaded.info.stored_bits if on_gpu() else None
    config = json.loads((local.folder / "config.json").read_bytes())
    planned = plan_memory(
        read_shape(config),
        lora,
        layout,
        value_bytes=value_bytes,
        stored_bits=stored_bits,
        recompute=recompute == "1",
    )
    peak = mx.get_peak_memory()
    print(f"{setting:<16} measured {peak / 1e9:.3f} GB  planned {planned.total / 1e9:.3f}  {planned.total / peak:.3f}")


def main() -> None:
    """Measure every setting in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--set", dest="settings", nargs="*", default=SETTINGS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        measure(given.model, given.one)
        return
    print("batch,length,layers,recompute")
    for setting in given.settings:
        command = [sys.executable, __file__, "--model", given.model, "--one", setting]
        subprocess.run(command, check=True, cwd=ROOT)


if __name__ == "__main__":
    main()
