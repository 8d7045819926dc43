"""Runs that can answer, without training: a tiny base, an adapter with weights that matter, and what a run records."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
from saved_adapters import save_adapter

from mlx_finetune import rundir
from mlx_finetune.model.adapters.lora import adapter_layers, attach_adapter
from mlx_finetune.model.load import load_model
from mlx_finetune.model.sources.fetch import fetch_model, hash_model
from mlx_finetune.recipe.schema import LoraRecipe, Recipe
from mlx_finetune.rundir import RunDir

CHAT = {"temperature": 0.0, "max_tokens": 8, "system": "Be brief."}


def write_adapter(folder: Path, base: Path, *, seed: int = 1) -> None:
    """An adapter for ``base`` whose B is not zero, in both layouts."""
    loaded = load_model(
        fetch_model(str(base), report=lambda _: None), quantize=None, compute_dtype="float32", on_gpu=False
    )
    spec = attach_adapter(loaded.model, LoraRecipe.model_validate({"rank": 4, "alpha": 8.0}), seed=seed)
    for index, layer in enumerate(adapter_layers(loaded.model).values()):
        layer.lora_b = mx.random.normal(layer.lora_b.shape, scale=0.3, key=mx.random.key(100 * seed + index))
    folder.mkdir(parents=True, exist_ok=True)
    save_adapter(folder, loaded.model, spec, loaded.info)


def write_facts(
    run: Path, base: Path, *, chat: dict[str, object] | None = None, full: bool = False
) -> dict[str, object]:
    """run.json as the trainer writes it."""
    recipe = Recipe.model_validate(
        {
            "model": str(base),
            "output_dir": str(run),
            "lora": None if full else {},
            "data": {"path": "rows.jsonl"},
            "chat": CHAT if chat is None else chat,
        }
    )
    facts: dict[str, object] = {
        "format_version": rundir.FORMAT_VERSION,
        "model": base.name,
        "model_folder": str(base),
        "model_sha256": hash_model(base),
        "revision": None,
        "task": "sft",
        "full": full,
        "status": "finished",
        "resolved": recipe.model_dump(mode="json"),
    }
    run.mkdir(parents=True, exist_ok=True)
    (run / rundir.RUN_INFO).write_text(json.dumps(facts))
    return facts


def write_run(folder: Path, base: Path, *, chat: dict[str, object] | None = None) -> RunDir:
    """A finished run in ``folder``."""
    write_facts(folder, base, chat=chat)
    write_adapter(folder, base)
    return RunDir(folder)


def write_full_run(folder: Path, base: Path, trained: Path) -> RunDir:
    """A finished run of full fine-tuning: ``trained`` is what ``base`` has become."""
    write_facts(folder, base, full=True)
    shutil.copytree(trained, folder / "model")
    return RunDir(folder)
