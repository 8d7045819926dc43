"""The memory plan of T5s of random sizes beside the peak of a real step: ``python benchmarks/seq2seq_memory.py [N]``.

Random weights, two rows or more, LoRA on every linear layer or every weight, with and without recomputation; on
whatever MLX computes here. Prints planned over measured for each, and the range.
"""

import gc
import random
import sys
import time
from typing import Any

from mlx_finetune.hardware import blas

blas.prepare()

import mlx.core as mx  # noqa: E402 - after the BLAS
import numpy as np  # noqa: E402

from mlx_finetune.dataset.stream import make_batch  # noqa: E402
from mlx_finetune.dataset.tokens import Tokens  # noqa: E402
from mlx_finetune.hardware.planning.memory import Layout, plan_memory  # noqa: E402
from mlx_finetune.hardware.planning.shapes import read_shape  # noqa: E402
from mlx_finetune.model.adapters.lora import adapter_parameters, attach_adapter, full_parameters  # noqa: E402
from mlx_finetune.model.inside.noise import checkpoint_blocks  # noqa: E402
from mlx_finetune.model.seq2seq.t5 import Model, ModelArgs  # noqa: E402
from mlx_finetune.recipe.schema import LoraRecipe  # noqa: E402
from mlx_finetune.train.objectives.seq2seq import seq2seq  # noqa: E402
from mlx_finetune.train.optim import AdamW  # noqa: E402
from mlx_finetune.train.step import Trainer  # noqa: E402


def main() -> None:
    """Try some sizes."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 12
    ratios = [compare(random.Random(number)) for number in range(count)]
    print(f"planned over measured: {min(ratios):.2f} to {max(ratios):.2f}")


def compare(draw: random.Random) -> float:
    """Planned over measured for one drawn size."""
    gc.collect()  # the model before holds itself
    heads = draw.choice([4, 6, 8])
    config: dict[str, Any] = {
        "model_type": "t5",
        "vocab_size": draw.choice([1000, 8000]),
        "d_model": draw.choice([128, 192, 256]),
        "d_kv": draw.choice([32, 64]),
        "d_ff": draw.choice([256, 512, 1024]),
        "num_heads": heads,
        "num_layers": draw.choice([2, 4, 6]),
        "feed_forward_proj": draw.choice(["relu", "gated-gelu"]),
        "tie_word_embeddings": draw.random() < 0.5,
    }
    rows, prompt, answer = draw.choice([2, 4]), draw.choice([64, 128, 256]), draw.choice([16, 48])
    recompute, is_full = draw.random() < 0.3, draw.random() < 0.3
    lora = None if is_full else LoraRecipe.model_validate({"rank": draw.choice([4, 16])})
    model = Model(ModelArgs.from_dict(config))
    model.freeze()
    if lora is None:
        parameters = full_parameters(model)
    else:
        attach_adapter(model, lora, seed=1)
        parameters = adapter_parameters(model)
    if recompute:
        checkpoint_blocks(model)
    mx.eval(model.parameters())
    trainer = Trainer(
        model,
        seq2seq(),
        AdamW(0.9, 0.999, 1e-8, 0.0, frozenset()),
        parameters,
        seed=1,
        max_grad_norm=1.0,
        is_packed=False,
        is_compiled=False,
    )
    ids = np.concatenate([np.full(prompt - 1, 5), [1, 0], np.full(answer - 1, 7), [1]]).astype(np.int32)
    tokens = [Tokens(ids, np.arange(len(ids)) > prompt, "made", line) for line in range(rows)]
    batch = make_batch(tokens, [[row] for row in range(rows)], num_sequences=rows, length=len(ids) - 1)
    began = time.perf_counter()
    for step in range(2):
        mx.reset_peak_memory()
        gradients, _ = trainer.compute([batch], step)
        trainer.apply(gradients, learning_rate=1e-3, step=step)
        del gradients
    seconds, peak = time.perf_counter() - began, mx.get_peak_memory()
    share = (answer + 1) / (len(ids) - 1)
    layout = Layout(rows, len(ids) - 1, 1, share)
    plan = plan_memory(
        read_shape(config), lora, layout, value_bytes=4, stored_bits=None, recompute=recompute, on_gpu=False
    )
    what = "full" if is_full else f"rank {lora.rank if lora else 0}"
    kind = f"{config['feed_forward_proj']}, d {config['d_model']}, {config['num_layers']} blocks"
    kind += f", {rows} x {prompt}+{answer}"
    print(
        f"{kind}, {what}{', recomputed' if recompute else ''}: {plan.total / 1e6:.1f} of {peak / 1e6:.1f} MB "
        f"({plan.total / peak:.2f}), {seconds:.1f} s"
    )
    return plan.total / peak


if __name__ == "__main__":
    main()
