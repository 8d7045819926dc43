"""What it saves that two answers share their prompt's computation: gradients of a DPO step, shared and apart.

    python benchmarks/preference_sharing.py                                   # data/rules: prompts of 50 tokens
    python benchmarks/preference_sharing.py --data FILE --max-tokens 512      # pairs of yours

SmolLM2-135M-Instruct, LoRA on every block, the same batches of pairs on the same model one after the other, in turn.
Prints tokens that go through the model and the ratio of the times of each batch: its median, the least and the largest.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(ROOT / "data" / "rules"), help="pairs: a file or folder")
    parser.add_argument("--model", default="smollm2-135m", help="catalogue name, hub id or folder (%(default)s)")
    parser.add_argument("--max-tokens", type=int, default=512, help="longer pairs are left out (%(default)s)")
    parser.add_argument("--pairs", type=int, default=4, help="pairs in a batch (%(default)s)")
    parser.add_argument("--batches", type=int, default=5, help="batches, spread over the lengths (%(default)s)")
    given = parser.parse_args()
    from mlx_finetune.hardware import blas

    blas.prepare()
    batches, trainers = prepare(given)
    print_times(batches, trainers)


def prepare(given: argparse.Namespace) -> tuple[list[Any], dict[str, Any]]:
    """Batches with a reference of nothing, and a trainer that shares prompts beside one that does not."""
    import numpy as np

    from mlx_finetune.dataset.corpus import load_splits
    from mlx_finetune.dataset.pairs import tokenize_preferences
    from mlx_finetune.dataset.stream import ordered_batches
    from mlx_finetune.model.adapters.lora import adapter_parameters, attach_adapter
    from mlx_finetune.model.inside.split import SplitModel
    from mlx_finetune.model.load import load_model, on_gpu
    from mlx_finetune.model.sources.fetch import fetch_model
    from mlx_finetune.model.tokens.tokenizer import load_tokenizer
    from mlx_finetune.recipe.preference import preference_settings
    from mlx_finetune.recipe.schema import LoraRecipe, Recipe
    from mlx_finetune.train.objectives.preference.objective import preference_objective
    from mlx_finetune.train.objectives.preference.sequences import Sequences
    from mlx_finetune.train.optim import AdamW
    from mlx_finetune.train.step import Trainer

    data = {"path": given.data, "max_seq_length": given.max_tokens}
    values = {"model": given.model, "output_dir": "adapters/none", "task": "dpo", "data": data}
    recipe = Recipe.model_validate(values)
    local = fetch_model(recipe.model, revision=None, report=lambda _: None)
    rows = tokenize_preferences(
        load_splits(recipe.data, base=Path(), task="dpo").train,
        load_tokenizer(local.folder),
        recipe.data,
        task="dpo",
    ).rows
    ordered = ordered_batches(rows, given.pairs)
    ordered.values = np.full((len(rows), 2), -50.0)
    chosen = [ordered[round((place + 0.5) * len(ordered) / given.batches - 0.5)] for place in range(given.batches)]
    model = load_model(local, quantize=None, compute_dtype="float32", on_gpu=on_gpu()).model
    attach_adapter(model, LoraRecipe.model_validate({}), seed=0)
    parameters, split = adapter_parameters(model), SplitModel(model)

    def trainer(is_shared: bool) -> Any:
        return Trainer(
            model,
            preference_objective("dpo", preference_settings("dpo", None), Sequences(is_shared=is_shared)),
            AdamW(0.9, 0.999, 1e-8, 0.0, frozenset()),
            parameters,
            seed=0,
            max_grad_norm=1.0,
            is_packed=False,
            is_compiled=on_gpu(),
            is_blockwise=not on_gpu(),
            keeps_products=True,
            split=split,
        )

    return chosen, {"shared": trainer(True), "apart": trainer(False)}


def print_times(batches: list[Any], trainers: dict[str, Any]) -> None:
    """One line a batch, and the ratio over all."""
    ratios: list[float] = []
    for batch in batches:
        seconds: dict[str, float] = {}
        tokens: dict[str, int] = {}
        order = list(trainers) if len(ratios) % 2 else list(trainers)[::-1]
        for name in order:
            began = time.perf_counter()
            _, result = trainers[name].compute([batch], 0)
            seconds[name], tokens[name] = time.perf_counter() - began, result.num_tokens
        ratios.append(seconds["shared"] / seconds["apart"])
        print(
            f"{len(batch.rows)} pairs: {tokens['apart']} tokens apart in {seconds['apart']:.2f} s, {tokens['shared']} "
            f"shared in {seconds['shared']:.2f} s: {ratios[-1]:.2f}",
            flush=True,
        )
    print(f"shared / apart: median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    for trainer in trainers.values():
        trainer.close()


if __name__ == "__main__":
    main()
