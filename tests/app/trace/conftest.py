"""A small run on rows with categories and wrong answers, checkpoints at 0, 50 and 100 %."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import train, write_recipe

from mlx_finetune.rundir import RunDir

COLOURS = ("red", "blue", "green", "pink")
SETTINGS = (
    "data.packing=false",
    "data.val_split=0.0",
    "training.save_at=[0, 0.5, 1.0]",
    "training.save_steps=6",
    "training.eval_steps=6",
    "training.keep_best=false",
    "training.learning_rate=0.02",
    "eval.prompts=[]",
)


def write_data(folder: Path) -> Path:
    """24 trained, 4 validation and 12 test rows of two kinds."""
    folder.mkdir(parents=True)
    rows = []
    for number in range(40):
        right = COLOURS[number % 4]
        wrong = [colour for colour in COLOURS if colour != right]
        row = {"category": "colour", "prompt": f"What colour is {number}?", "completion": right, "wrong": wrong}
        if number % 2:
            row = {"category": "sum", "prompt": f"{number} and 1?", "completion": str(number + 1)}
        rows.append(row)
    for name, part in (("train", rows[:24]), ("valid", rows[24:28]), ("test", rows[28:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder


@pytest.fixture(scope="module")
def make_run(tiny_model, tmp_path_factory) -> Callable[..., RunDir]:
    """``make_run(model_type, *overrides)`` trains a new run."""

    def make(kind: str = "llama", *overrides: str, is_full: bool = False) -> RunDir:
        folder = tmp_path_factory.mktemp("trace")
        data = write_data(folder / "data")
        recipe = write_recipe(folder, tiny_model(kind))
        if is_full:
            text = recipe.read_text()
            start, end = text.index("[lora]"), text.index("[data]")
            recipe.write_text(text[:start] + text[end:])
        return train(recipe, overrides=(f"data.path={data}", *SETTINGS, *overrides))

    return make


@pytest.fixture(scope="module")
def run(make_run) -> RunDir:
    """One LoRA run on llama, of which no test changes a file outside of trace/."""
    return make_run()
